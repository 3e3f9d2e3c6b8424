//! ResNet-50 and MobileNetV2, forward, over random weights: convolutions with batch normalisation folded in, the activation
//! and the shortcut added in the convolution, weights packed once.
//!
//! K. He et al., "Deep residual learning for image recognition" (2015), with the stride in the 3 × 3 convolution, as
//! PyTorch has it; M. Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks" (2018).
#![allow(dead_code)] // each user uses its part

use std::time::Instant;

use tilewise::activation::Activation;
use tilewise::conv::{Algorithm, Chain, Convolution, Link, PackedConvolution};
use tilewise::gemm::{Bias, Gemm, Packed};
use tilewise::pool::{AveragePool, MaxPool};
use tilewise::random::Rng;
use tilewise::{Result, Tensor, TensorView, TensorViewMut};

pub const CLASSES: usize = 1000;
const SIDE: usize = 224;
/// Features move between as many, and the images lie in one behind them.
const SLOTS: usize = 4;
const IMAGES: usize = SLOTS;
/// With sums as large as their addends, values would grow from block to block.
const SHORTCUT_GAIN: f32 = 0.3;

/// Channels, rows and columns.
type Shape = [usize; 3];

/// A slot, and what lies in it.
type Place = (usize, Shape);

struct Conv {
    options: Convolution<2>,
    weight: PackedConvolution<f32>,
    bias: Tensor<f32, 1>,
    /// The slot of what is added.
    shortcut: Option<usize>,
    kernel: usize,
    depthwise: bool,
    multiplications: f64,
}

struct Step {
    from: Place,
    to: Place,
    /// One after the other; if none, the maxima of windows of 3 × 3 with stride 2.
    convs: Vec<Conv>,
}

pub struct Network {
    steps: Vec<Step>,
    /// Aligned as vectors are: else each load and store of one would touch two cache lines.
    slots: Vec<Tensor<f32, 1>>,
    features: Place,
    pooled: Tensor<f32, 2>,
    head: Packed<f32>,
    head_bias: Tensor<f32, 1>,
    scores: Tensor<f32, 2>,
    batch: usize,
    channels_last: bool,
    /// All weights and biases, in order, for those who build the same network with another library.
    pub numbers: Vec<f32>,
}

/// How features lie and how they are convolved.
#[derive(Clone, Copy)]
pub struct Manner {
    pub channels_last: bool,
    pub algorithm: Algorithm,
    /// The convolutions of a block of MobileNetV2 run as one.
    pub chained: bool,
}

struct Builder {
    batch: usize,
    manner: Manner,
    rng: Rng,
    steps: Vec<Step>,
    numbers: Vec<f32>,
    largest: usize,
}

/// What a convolution is, but for its channels in.
struct Kind {
    channels: usize,
    kernel: usize,
    stride: usize,
    depthwise: bool,
    activation: Activation,
}

fn kind(channels: usize, kernel: usize, stride: usize, activation: Activation) -> Kind {
    Kind { channels, kernel, stride, depthwise: false, activation }
}

impl Builder {
    fn new(batch: usize, manner: Manner) -> Self {
        Self {
            batch,
            manner,
            rng: Rng::seed(1),
            steps: Vec::new(),
            numbers: Vec::new(),
            largest: 3 * SIDE * SIDE,
        }
    }

    fn random<const N: usize>(&mut self, shape: [usize; N], most: f32) -> Result<Tensor<f32, N>> {
        let rng = &mut self.rng;
        let tensor = Tensor::from_fn(shape, |_| rng.uniform(-most, most))?;
        self.numbers.extend_from_slice(tensor.as_slice());
        Ok(tensor)
    }

    /// A convolution between slots; gives the shape of what comes out.
    fn conv(
        &mut self,
        (from, shape): Place,
        to: usize,
        kind: Kind,
        shortcut: Option<usize>,
    ) -> Result<Shape> {
        let Kind { channels, kernel, stride, depthwise, activation } = kind;
        let groups = if depthwise { shape[0] } else { 1 };
        let fan_in = (shape[0] / groups * kernel * kernel) as f32;
        let gain = if shortcut.is_some() { SHORTCUT_GAIN } else { 1.0 };
        let weight =
            self.random([channels, shape[0] / groups, kernel, kernel], gain * (6.0 / fan_in).sqrt())?;
        let bias = self.random([channels], 0.1)?;
        let options = Convolution::new().stride([stride; 2]).padding([kernel / 2; 2]).groups(groups);
        let options = options.activation(activation);
        let [_, after @ ..] = options.output_shape([1, shape[0], shape[1], shape[2]], weight.shape())?;
        // Filters for few outputs come from memory each time: the fewer points they have, the better.
        let few = self.batch * after[1] * after[2] < channels;
        let options = options.algorithm(if few { Algorithm::Auto } else { self.manner.algorithm });
        self.largest = self.largest.max(after.iter().product());
        let weight = match self.manner.channels_last {
            true => options.pack_channels_last(weight.view())?,
            false => options.pack(weight.view())?,
        };
        let multiplications = (kernel * kernel * shape[0] / groups * after.iter().product::<usize>()) as f64;
        let conv = Conv { options, weight, bias, shortcut, kernel, depthwise, multiplications };
        self.steps.push(Step { from: (from, shape), to: (to, after), convs: vec![conv] });
        Ok(after)
    }

    /// The steps from `first` on become one, where the manner says so.
    fn chain(&mut self, first: usize) {
        if !self.manner.chained {
            return;
        }
        let parts = self.steps.split_off(first);
        let (Some(from), Some(to)) = (parts.first().map(|step| step.from), parts.last().map(|step| step.to))
        else {
            return;
        };
        let convs = parts.into_iter().flat_map(|step| step.convs).collect();
        self.steps.push(Step { from, to, convs });
    }

    fn finish(mut self, (slot, shape): Place) -> Result<Network> {
        let (batch, channels_last) = (self.batch, self.manner.channels_last);
        let head = self.random([CLASSES, shape[0]], (3.0 / shape[0] as f32).sqrt())?;
        let head_bias = self.random([CLASSES], 0.1)?;
        let image = Tensor::from_fn([batch, 3, SIDE, SIDE], |_| self.rng.uniform(-1.0, 1.0))?;
        let image = if channels_last { image.view().permute([0, 2, 3, 1])?.to_tensor()? } else { image };
        let empty = || Tensor::zeros([batch * self.largest]);
        let mut slots = (0..SLOTS).map(|_| empty()).collect::<Result<Vec<_>>>()?;
        slots.push(Tensor::from_slice(image.as_slice(), [image.as_slice().len()])?);
        Ok(Network {
            steps: self.steps,
            slots,
            features: (slot, shape),
            pooled: Tensor::zeros([batch, shape[0]])?,
            head: Packed::rhs(head.view().transpose())?,
            head_bias,
            scores: Tensor::zeros([batch, CLASSES])?,
            batch,
            channels_last,
            numbers: self.numbers,
        })
    }
}

pub fn resnet50(batch: usize, manner: Manner) -> Result<Network> {
    let (relu, linear) = (Activation::Relu, Activation::Identity);
    let mut net = Builder::new(batch, manner);
    let stem = net.conv((IMAGES, [3, SIDE, SIDE]), 1, kind(64, 7, 2, relu), None)?;
    let mut x = (0, [stem[0], stem[1] / 2, stem[2] / 2]);
    net.steps.push(Step { from: (1, stem), to: x, convs: Vec::new() });
    for (blocks, width, first) in [(3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2)] {
        for block in 0..blocks {
            let stride = if block == 0 { first } else { 1 };
            let narrow = net.conv(x, 2, kind(width, 1, 1, relu), None)?;
            let middle = net.conv((2, narrow), 3, kind(width, 3, stride, relu), None)?;
            let shortcut = if block == 0 {
                net.conv(x, 2, kind(4 * width, 1, stride, linear), None)?;
                2
            } else {
                x.0
            };
            let to = 1 - x.0;
            x = (to, net.conv((3, middle), to, kind(4 * width, 1, 1, relu), Some(shortcut))?);
        }
    }
    net.finish(x)
}

pub fn mobilenet_v2(batch: usize, manner: Manner) -> Result<Network> {
    let (relu6, linear) = (Activation::relu6(), Activation::Identity);
    let mut net = Builder::new(batch, manner);
    let mut x = (1, net.conv((IMAGES, [3, SIDE, SIDE]), 1, kind(32, 3, 2, relu6), None)?);
    let settings = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    for (expansion, channels, blocks, first) in settings {
        for block in 0..blocks {
            let stride = if block == 0 { first } else { 1 };
            let (inputs, first) = (x.1[0], net.steps.len());
            let wide = if expansion == 1 {
                x
            } else {
                (2, net.conv(x, 2, kind(expansion * inputs, 1, 1, relu6), None)?)
            };
            let depthwise = Kind { depthwise: true, ..kind(wide.1[0], 3, stride, relu6) };
            let middle = net.conv(wide, 3, depthwise, None)?;
            let shortcut = (stride == 1 && inputs == channels).then_some(x.0);
            let to = 1 - x.0;
            x = (to, net.conv((3, middle), to, kind(channels, 1, 1, linear), shortcut)?);
            net.chain(first);
        }
    }
    let last = net.conv(x, 2, kind(1280, 1, 1, relu6), None)?;
    net.finish((2, last))
}

impl Step {
    fn run(&self, slots: &mut [Tensor<f32, 1>], batch: usize, last: bool) -> Result<()> {
        let Self { from, to, convs } = self;
        // What is written is neither read nor added.
        let mut out = std::mem::replace(&mut slots[to.0], Tensor::zeros([0])?);
        let x = view(slots[from.0].as_slice(), batch, from.1, last)?;
        let y = view_mut(out.as_mut_slice(), batch, to.1, last)?;
        let shortcut = match convs.last().and_then(|conv| conv.shortcut) {
            Some(slot) => Some(view(slots[slot].as_slice(), batch, to.1, last)?),
            None => None,
        };
        match &convs[..] {
            [] => MaxPool::new([3, 3]).stride([2, 2]).padding([1, 1]).forward_into(x, y)?,
            [a] => chain([a], x, shortcut, y)?,
            [a, b] => chain([a, b], x, shortcut, y)?,
            [a, b, c, ..] => chain([a, b, c], x, shortcut, y)?,
        }
        slots[to.0] = out;
        Ok(())
    }

    fn name(&self) -> String {
        let ([c_in, rows, _], [c_out, after, _]) = (self.from.1, self.to.1);
        let sizes = format!("{c_in:>4} -> {c_out:<4} {rows:>3} -> {after:<3}");
        match &self.convs[..] {
            [] => format!("max 3x3      {sizes}"),
            [conv] => {
                let kind = if conv.depthwise { "depthwise" } else { "" };
                let add = if conv.shortcut.is_some() { "+" } else { " " };
                format!("{0}x{0}{add}{kind:9}{sizes}", conv.kernel)
            }
            [.., last] => {
                let add = if last.shortcut.is_some() { "+" } else { " " };
                format!("block of {}{add}  {sizes}", self.convs.len())
            }
        }
    }

    fn multiplications(&self) -> f64 {
        self.convs.iter().map(|conv| conv.multiplications).sum()
    }
}

/// Convolutions as one.
fn chain<const L: usize>(
    convs: [&Conv; L],
    x: TensorView<'_, f32, 4>,
    shortcut: Option<TensorView<'_, f32, 4>>,
    y: TensorViewMut<'_, f32, 4>,
) -> Result<()> {
    let chain = Chain::new(convs.map(|conv| Link::new(conv.options, &conv.weight, Some(conv.bias.view()))));
    match shortcut {
        Some(shortcut) => chain.forward_add_into(x, shortcut, y),
        None => chain.forward_into(x, y),
    }
}

impl Network {
    /// The scores of the images, `[batch, CLASSES]`.
    pub fn run(&mut self) -> Result<&[f32]> {
        for step in &self.steps {
            step.run(&mut self.slots, self.batch, self.channels_last)?;
        }
        self.scores()
    }

    /// The mean of the features of each image, and its scores.
    fn scores(&mut self) -> Result<&[f32]> {
        let (batch, (slot, shape)) = (self.batch, self.features);
        let means = self.pooled.view_mut().reshape([batch, shape[0], 1, 1])?;
        AveragePool::<2>::global()
            .forward_into(view(self.slots[slot].as_slice(), batch, shape, self.channels_last)?, means)?;
        let head = Gemm::new().bias(Bias::PerColumn(self.head_bias.view()));
        head.run(self.pooled.view(), &self.head, self.scores.view_mut())?;
        Ok(self.scores.as_slice())
    }

    /// For each kind of step, in order of appearance: what it is, how often it is there, its multiplications and the
    /// seconds of all of its kind, the least of `rounds`.
    pub fn profile(&mut self, rounds: usize) -> Result<Vec<(String, usize, f64, f64)>> {
        let (mut best, mut scores) = (vec![f64::INFINITY; self.steps.len()], f64::INFINITY);
        for _ in 0..rounds {
            for (step, best) in self.steps.iter().zip(&mut best) {
                let start = Instant::now();
                step.run(&mut self.slots, self.batch, self.channels_last)?;
                *best = best.min(start.elapsed().as_secs_f64());
            }
            let start = Instant::now();
            self.scores()?;
            scores = scores.min(start.elapsed().as_secs_f64());
        }
        let mut kinds: Vec<(String, usize, f64, f64)> = Vec::new();
        for (step, seconds) in self.steps.iter().zip(best) {
            let (name, work) = (step.name(), step.multiplications() * self.batch as f64);
            match kinds.iter_mut().find(|kind| kind.0 == name) {
                Some(kind) => *kind = (name, kind.1 + 1, kind.2 + work, kind.3 + seconds),
                None => kinds.push((name, 1, work, seconds)),
            }
        }
        let work = (self.batch * self.features.1[0] * CLASSES) as f64;
        kinds.push((format!("{:39}", "means and scores"), 1, work, scores));
        Ok(kinds)
    }

    /// The images, in the order of their memory.
    pub fn images(&self) -> &[f32] {
        self.slots[IMAGES].as_slice()
    }
}

/// Images at the beginning of a slot, `[batch, channels, rows, columns]`, with channels last in memory or first.
fn view(slot: &[f32], batch: usize, [c, h, w]: Shape, last: bool) -> Result<TensorView<'_, f32, 4>> {
    let slot = &slot[..batch * c * h * w];
    if last {
        return TensorView::from_slice(slot, [batch, h, w, c])?.permute([0, 3, 1, 2]);
    }
    TensorView::from_slice(slot, [batch, c, h, w])
}

/// [`view`] to write to.
fn view_mut(
    slot: &mut [f32],
    batch: usize,
    [c, h, w]: Shape,
    last: bool,
) -> Result<TensorViewMut<'_, f32, 4>> {
    let slot = &mut slot[..batch * c * h * w];
    if last {
        return TensorViewMut::from_slice(slot, [batch, h, w, c])?.permute([0, 3, 1, 2]);
    }
    TensorViewMut::from_slice(slot, [batch, c, h, w])
}
