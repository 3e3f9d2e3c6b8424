//! A transformer over the patches of an image, trained by AdamW on the softmax cross-entropy.
//!
//! After A. Dosovitskiy et al., "An image is worth 16 × 16 words" (ICLR 2021), with the mean of all patches in place of a
//! token for the class.

use tilewise::conv::Convolution;
use tilewise::layer::optimizer::{AdamW, Optimizer};
use tilewise::layer::{
    AvgPool1d, Conv2d, Init, Layer, LayerNorm, Linear, NormOrder, Parameter, Parameters, TransformerBlock,
    sinusoidal,
};
use tilewise::loss::CrossEntropy;
use tilewise::pool::AveragePool;
use tilewise::random::Rng;
use tilewise::{Tensor, TensorView};

use crate::model::{CLASSES, Drawing, Model, Picture, Samples};
use crate::models::Entry;

pub const ENTRY: Entry = Entry {
    name: "transformer",
    about: "a transformer of two blocks over patches of the image",
    build: |rows, cols, seed| Ok(Box::new(Transformer::new(rows, cols, seed)?)),
};

/// Pixels from a patch to the next.
const STEP: usize = 4;
/// Pixels that a patch overlaps the next by, on each side of what is its own.
const OVERLAP: usize = 2;
/// The size of positions beside patches.
const POSITIONS: f32 = 0.2;
const WIDTH: usize = 64;
const HEADS: usize = 4;
const HIDDEN: usize = 128;
const BLOCKS: usize = 2;
const BATCH: usize = 16;
const EPOCHS: usize = 8;
/// Falls to nothing along half a cosine.
const RATE: f64 = 2e-3;
/// Images that are read at a time when nothing is learned.
const CHUNK: usize = 250;

struct Transformer {
    net: Net,
    optimizer: AdamW<f32>,
    /// Images learned from so far.
    seen: usize,
}

struct Net {
    /// A convolution with one window for each patch.
    patches: Conv2d<f32>,
    /// Patches along the sides of an image.
    grid: [usize; 2],
    /// Added to the patches, `[patches, WIDTH]`.
    positions: Parameter<f32>,
    blocks: Vec<TransformerBlock<f32>>,
    norm: LayerNorm<f32, 3>,
    mean: AvgPool1d,
    head: Linear<f32>,
}

impl Net {
    fn new(rows: usize, cols: usize, seed: u64) -> tilewise::Result<Self> {
        let mut rng = Rng::seed(seed);
        let sides = |size: usize| [OVERLAP, OVERLAP + size.next_multiple_of(STEP) - size];
        let options = Convolution::new().stride([STEP; 2]).padding_sides([sides(rows), sides(cols)]);
        let (kernel, init) = ([STEP + 2 * OVERLAP; 2], Init::kaiming_normal());
        let grid = [rows.div_ceil(STEP), cols.div_ceil(STEP)];
        let patches = Conv2d::new(1, WIDTH, kernel, options, init, &mut rng)?;
        let mut positions = sinusoidal::<f32>(grid[0] * grid[1], WIDTH)?;
        positions.as_mut_slice().iter_mut().for_each(|x| *x *= POSITIONS);
        let mut block = |_| TransformerBlock::encoder(WIDTH, HEADS, HIDDEN, NormOrder::Pre, &mut rng);
        let blocks = (0..BLOCKS).map(&mut block).collect::<tilewise::Result<_>>()?;
        Ok(Self {
            patches,
            grid,
            positions: Parameter::new(positions)?,
            blocks,
            norm: LayerNorm::new(WIDTH)?,
            mean: AvgPool1d::new(AveragePool::global()),
            head: Linear::new(WIDTH, CLASSES, Init::xavier_uniform(), &mut rng)?,
        })
    }

    /// Sequences of patches `[batch, patches, WIDTH]`, each with its place, from `[batch, WIDTH, rows, cols]`.
    fn sequence(&self, y: &Tensor<f32, 4>) -> tilewise::Result<Tensor<f32, 3>> {
        let ([batch, ..], patches) = (y.shape(), self.grid[0] * self.grid[1]);
        let y = y.view().reshape([batch, WIDTH, patches])?.permute([0, 2, 1])?;
        let mut x = y.to_tensor()?;
        for x in x.as_mut_slice().chunks_exact_mut(patches * WIDTH) {
            x.iter_mut().zip(self.positions.value()).for_each(|(x, position)| *x += position);
        }
        Ok(x)
    }

    /// How much each patch is looked at in the last block: the mean over heads and queries, `[batch, patches]`.
    fn attention(&self, x: TensorView<'_, f32, 4>) -> tilewise::Result<Tensor<f32, 2>> {
        let mut x = self.sequence(&self.patches.infer(x)?)?;
        let Some((last, before)) = self.blocks.split_last() else { return Tensor::zeros([x.shape()[0], 0]) };
        for block in before {
            x = block.infer(x.view())?;
        }
        let weights = last.attention_weights(x.view())?;
        let [batch, heads, queries, keys] = weights.shape();
        let weights = weights.view().reshape([batch, heads * queries, keys])?;
        AveragePool::<1>::global().forward(weights.permute([0, 2, 1])?)?.reshape([batch, keys])
    }

    /// The gradient for what the convolution gives.
    fn backward_to_patches(&mut self, dy: TensorView<'_, f32, 2>) -> tilewise::Result<Tensor<f32, 4>> {
        self.check_backward(dy.shape())?;
        let d = self.head.backward(dy)?;
        let batch = d.shape()[0];
        let d: Tensor<f32, 3> = self.mean.backward(d.view().reshape([batch, WIDTH, 1])?)?;
        let mut d = self.norm.backward(d.view().permute([0, 2, 1])?)?;
        for block in self.blocks.iter_mut().rev() {
            d = block.backward(d.view())?;
        }
        let gradient = self.positions.gradient_mut();
        for d in d.as_slice().chunks_exact(gradient.len()) {
            gradient.iter_mut().zip(d).for_each(|(sum, d)| *sum += d);
        }
        let d = d.view().permute([0, 2, 1])?.to_tensor()?;
        d.reshape([batch, WIDTH, self.grid[0], self.grid[1]])
    }
}

impl Parameters<f32> for Net {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        self.patches.visit(&mut |name, parameter| f(&format!("patches.{name}"), parameter));
        f("positions", &self.positions);
        for (number, block) in self.blocks.iter().enumerate() {
            block.visit(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
        self.norm.visit(&mut |name, parameter| f(&format!("norm.{name}"), parameter));
        self.head.visit(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        self.patches.visit_mut(&mut |name, parameter| f(&format!("patches.{name}"), parameter));
        f("positions", &mut self.positions);
        for (number, block) in self.blocks.iter_mut().enumerate() {
            block.visit_mut(&mut |name, parameter| f(&format!("{number}.{name}"), parameter));
        }
        self.norm.visit_mut(&mut |name, parameter| f(&format!("norm.{name}"), parameter));
        self.head.visit_mut(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }
}

/// From images `[batch, 1, rows, cols]` to scores `[batch, CLASSES]`.
impl Layer<f32, 4, 2> for Net {
    fn check_forward(&self, x: [usize; 4]) -> tilewise::Result<[usize; 2]> {
        let [batch, width, rows, cols] = self.patches.check_forward(x)?;
        if [rows, cols] != self.grid {
            return Err(tilewise::Error::shape("Net::forward", "grid of patches", &[rows, cols], &self.grid));
        }
        let x =
            self.blocks.iter().try_fold([batch, rows * cols, width], |x, block| block.check_forward(x))?;
        let [batch, _, width] = self.norm.check_forward(x)?;
        self.head.check_forward([batch, width])
    }

    fn check_backward(&self, dy: [usize; 2]) -> tilewise::Result<[usize; 4]> {
        let [batch, width] = self.head.check_backward(dy)?;
        let d = self.norm.check_backward([batch, self.grid[0] * self.grid[1], width])?;
        self.blocks.iter().rev().try_fold(d, |d, block| block.check_backward(d))?;
        self.patches.check_backward([batch, width, self.grid[0], self.grid[1]])
    }

    fn forward(&mut self, x: TensorView<'_, f32, 4>) -> tilewise::Result<Tensor<f32, 2>> {
        self.check_forward(x.shape())?;
        let y = self.patches.forward(x)?;
        let mut x = self.sequence(&y)?;
        for block in &mut self.blocks {
            x = block.forward(x.view())?;
        }
        let x = self.norm.forward(x.view())?;
        let mean = self.mean.forward(x.view().permute([0, 2, 1])?)?;
        self.head.forward(mean.view().reshape([mean.shape()[0], WIDTH])?)
    }

    fn infer(&self, x: TensorView<'_, f32, 4>) -> tilewise::Result<Tensor<f32, 2>> {
        let mut x = self.sequence(&self.patches.infer(x)?)?;
        for block in &self.blocks {
            x = block.infer(x.view())?;
        }
        let x = self.norm.infer(x.view())?;
        let mean = self.mean.infer(x.view().permute([0, 2, 1])?)?;
        self.head.infer(mean.view().reshape([mean.shape()[0], WIDTH])?)
    }

    fn backward(&mut self, dy: TensorView<'_, f32, 2>) -> tilewise::Result<Tensor<f32, 4>> {
        let d = self.backward_to_patches(dy)?;
        self.patches.backward(d.view())
    }

    fn backward_parameters(&mut self, dy: TensorView<'_, f32, 2>) -> tilewise::Result<()> {
        let d = self.backward_to_patches(dy)?;
        self.patches.backward_parameters_owned(d)
    }
}

impl Transformer {
    fn new(rows: usize, cols: usize, seed: u64) -> tilewise::Result<Self> {
        let net = Net::new(rows, cols, seed)?;
        Ok(Self { net, optimizer: AdamW::new(RATE), seen: 0 })
    }
}

impl Model for Transformer {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn parameters(&self) -> usize {
        self.net.parameter_count()
    }

    fn train_epoch(
        &mut self,
        train: &Samples,
        order: &[usize],
        progress: &mut dyn FnMut(usize, f64),
    ) -> tilewise::Result<f64> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let (mut done, mut sum) = (0, 0.0);
        for batch in order.chunks(BATCH) {
            train.gather(batch, &mut pixels, &mut labels);
            let x = TensorView::from_slice(&pixels, [batch.len(), 1, train.rows, train.cols])?;
            let logits = self.net.forward(x)?;
            let (loss, d_logits) = CrossEntropy::new().forward_backward(logits.view(), &labels)?;
            self.net.zero_gradients();
            self.net.backward_parameters(d_logits.view())?;
            let share = (self.seen as f64 / (EPOCHS * train.len()) as f64).min(0.98);
            self.optimizer.set_learning_rate(RATE * 0.5 * (1.0 + (std::f64::consts::PI * share).cos()));
            self.optimizer.step(&mut self.net)?;
            self.seen += batch.len();
            done += batch.len();
            sum += f64::from(loss) * batch.len() as f64;
            progress(done, sum / done as f64);
        }
        Ok(sum / done.max(1) as f64)
    }

    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
        let mut scores = Vec::with_capacity(images.len() * CLASSES);
        for chunk in images.pixels.chunks(CHUNK * images.image_len()) {
            let shape = [chunk.len() / images.image_len(), 1, images.rows, images.cols];
            scores.extend(self.net.infer(TensorView::from_slice(chunk, shape)?)?.iter());
        }
        Ok(scores)
    }

    fn default_epochs(&self) -> usize {
        EPOCHS
    }

    /// The first image of each digit, and where the last block looks.
    fn drawings(&mut self, test: &Samples) -> tilewise::Result<Vec<Drawing>> {
        let (mut images, mut maps) = (Vec::new(), Vec::new());
        for digit in 0..CLASSES {
            let Some(index) = test.labels.iter().position(|&label| label == digit) else { continue };
            let (image, caption) = (test.image(index), digit.to_string());
            let (rows, cols) = (test.rows, test.cols);
            let map = self.net.attention(TensorView::from_slice(image, [1, 1, rows, cols])?)?;
            let values = image.to_vec();
            images.push(Picture { caption: caption.clone(), rows, cols, values });
            // What every patch gets is no news.
            let least = map.iter().copied().fold(f32::INFINITY, f32::min);
            let values = map.iter().map(|weight| weight - least).collect();
            maps.push(Picture { caption, rows: self.net.grid[0], cols: self.net.grid[1], values });
        }
        Ok(vec![
            Drawing { title: "Transformer: some of the digits".to_owned(), pictures: images },
            Drawing { title: "Transformer: the attention that their patches get".to_owned(), pictures: maps },
        ])
    }
}
