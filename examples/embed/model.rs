//! MiniLM: six of BERT's layers, whose outputs' mean over a sentence, scaled to length 1, is its embedding.
//!
//! W. Wang et al., "MiniLM: deep self-attention distillation" (2020); N. Reimers and I. Gurevych, "Sentence-BERT" (2019).
//!
//! Sentences lie one behind the other as rows, without padding: what works row by row (products, normalisation, GELU)
//! takes all of them at once, and attention those of one length at once.

use std::error::Error;

use tilewise::activation::Activation;
use tilewise::attention::Attention;
use tilewise::gemm::{Bias, Gemm, Packed};
use tilewise::norm::LayerNormalization;
use tilewise::{Tensor, TensorView, TensorViewMut};

use crate::weights::Weights;

/// Numbers of an embedding.
pub const WIDTH: usize = 384;
/// The longest sentence, in tokens, that the model was trained on.
pub const LONGEST: usize = 256;
const LAYERS: usize = 6;
const HEADS: usize = 12;
const HEAD: usize = WIDTH / HEADS;
const WIDE: usize = 4 * WIDTH;
const VOCABULARY: usize = 30_522;
const PLACES: usize = 512;
const EPSILON: f64 = 1e-12;

type Matrix<'a> = TensorViewMut<'a, f32, 2>;

pub struct MiniLm {
    words: Tensor<f32, 2>,
    /// What is added at each place of a sentence: the embeddings of the place and of the first kind of token.
    places: Tensor<f32, 2>,
    norm: Norm,
    layers: Vec<Block>,
}

struct Block {
    /// Queries, keys and values in one product.
    attend: Dense,
    mix: Dense,
    mix_norm: Norm,
    widen: Dense,
    narrow: Dense,
    norm: Norm,
}

/// A weight packed once, and its bias.
struct Dense {
    weight: Packed<f32>,
    bias: Tensor<f32, 1>,
}

struct Norm {
    scale: Tensor<f32, 1>,
    shift: Tensor<f32, 1>,
}

/// Memory that calls share, so that later ones ask for none.
#[derive(Default)]
pub struct Memory {
    order: Vec<usize>,
    x: Vec<f32>,
    sum: Vec<f32>,
    attended: Vec<f32>,
    wide: Vec<f32>,
}

impl Dense {
    /// From weights `[outputs, inputs]`.
    fn pack(weight: &Tensor<f32, 2>, bias: Tensor<f32, 1>) -> tilewise::Result<Self> {
        Ok(Self { weight: Packed::rhs(weight.view().transpose())?, bias })
    }

    fn load(
        weights: &Weights<'_>,
        name: &str,
        [inputs, outputs]: [usize; 2],
    ) -> Result<Self, Box<dyn Error>> {
        let weight = weights.get(&format!("{name}.weight"), [outputs, inputs])?;
        Ok(Self::pack(&weight, weights.get(&format!("{name}.bias"), [outputs])?)?)
    }

    /// Several layers that read the same rows as one.
    fn join(weights: &Weights<'_>, names: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut weight = Tensor::zeros([names.len() * WIDTH, WIDTH])?;
        let mut bias = Tensor::zeros([names.len() * WIDTH])?;
        for (i, name) in names.iter().enumerate() {
            let rows = i * WIDTH..(i + 1) * WIDTH;
            let part = weights.get(&format!("{name}.weight"), [WIDTH, WIDTH])?;
            weight.view_mut().slice(0, rows.clone(), 1)?.assign(part.view())?;
            let part = weights.get(&format!("{name}.bias"), [WIDTH])?;
            bias.view_mut().slice(0, rows, 1)?.assign(part.view())?;
        }
        Ok(Self::pack(&weight, bias)?)
    }

    fn options(&self) -> Gemm<'_, f32> {
        Gemm::new().bias(Bias::PerColumn(self.bias.view()))
    }
}

impl Norm {
    fn load(weights: &Weights<'_>, name: &str) -> Result<Self, Box<dyn Error>> {
        let get = |part: &str| weights.get(&format!("{name}.LayerNorm.{part}"), [WIDTH]);
        Ok(Self { scale: get("weight")?, shift: get("bias")? })
    }

    fn run(&self, x: TensorView<'_, f32, 2>, y: Matrix<'_>) -> tilewise::Result<()> {
        let norm = LayerNormalization::new().epsilon(EPSILON);
        norm.forward_into(x, Some(self.scale.view()), Some(self.shift.view()), y)
    }
}

/// `[rows, width]` at the beginning of a buffer, which grows where it must.
fn matrix(buffer: &mut Vec<f32>, rows: usize, width: usize) -> tilewise::Result<Matrix<'_>> {
    if buffer.len() < rows * width {
        buffer.resize(rows * width, 0.0);
    }
    TensorViewMut::from_slice(&mut buffer[..rows * width], [rows, width])
}

impl MiniLm {
    /// From the tensors of a file of the safetensors format, under the names of BERT's layers.
    pub fn parse(bytes: &[u8]) -> Result<Self, Box<dyn Error>> {
        let weights = Weights::parse(bytes)?;
        let mut places: Tensor<f32, 2> =
            weights.get("embeddings.position_embeddings.weight", [PLACES, WIDTH])?;
        let kinds: Tensor<f32, 2> = weights.get("embeddings.token_type_embeddings.weight", [2, WIDTH])?;
        for place in places.as_mut_slice().chunks_exact_mut(WIDTH) {
            place.iter_mut().zip(kinds.as_slice()).for_each(|(place, kind)| *place += kind);
        }
        let layers = (0..LAYERS).map(|layer| {
            let part = |name: &str| format!("encoder.layer.{layer}.{name}");
            let attend = ["query", "key", "value"].map(|name| part(&format!("attention.self.{name}")));
            Ok(Block {
                attend: Dense::join(&weights, &attend)?,
                mix: Dense::load(&weights, &part("attention.output.dense"), [WIDTH, WIDTH])?,
                mix_norm: Norm::load(&weights, &part("attention.output"))?,
                widen: Dense::load(&weights, &part("intermediate.dense"), [WIDTH, WIDE])?,
                narrow: Dense::load(&weights, &part("output.dense"), [WIDE, WIDTH])?,
                norm: Norm::load(&weights, &part("output"))?,
            })
        });
        Ok(Self {
            words: weights.get("embeddings.word_embeddings.weight", [VOCABULARY, WIDTH])?,
            places,
            norm: Norm::load(&weights, "embeddings")?,
            layers: layers.collect::<Result<_, Box<dyn Error>>>()?,
        })
    }

    /// The embeddings of sentences of at least one and at most [`LONGEST`] tokens, as rows of `y`, `[sentences, WIDTH]`.
    pub fn embed(
        &self,
        sentences: &[Vec<u32>],
        memory: &mut Memory,
        mut y: Matrix<'_>,
    ) -> tilewise::Result<()> {
        let Memory { order, x, sum, attended, wide } = memory;
        order.clear();
        order.extend(0..sentences.len());
        order.sort_unstable_by_key(|&i| sentences[i].len());
        let rows = sentences.iter().map(Vec::len).sum();

        self.look_up(sentences, order, matrix(sum, rows, WIDTH)?);
        self.norm.run(matrix(sum, rows, WIDTH)?.view(), matrix(x, rows, WIDTH)?)?;
        for block in &self.layers {
            let (mut x, mut sum) = (matrix(x, rows, WIDTH)?, matrix(sum, rows, WIDTH)?);
            let mut qkv = matrix(wide, rows, 3 * WIDTH)?;
            block.attend.options().run(x.view(), &block.attend.weight, qkv.view_mut())?;
            let mut attended = matrix(attended, rows, WIDTH)?;
            attend(sentences, order, qkv.view(), attended.view_mut())?;
            block.mix.options().residual(x.view()).run(attended.view(), &block.mix.weight, sum.view_mut())?;
            block.mix_norm.run(sum.view(), x.view_mut())?;
            let mut wide = matrix(wide, rows, WIDE)?;
            let gelu = block.widen.options().activation(Activation::Gelu);
            gelu.run(x.view(), &block.widen.weight, wide.view_mut())?;
            block.narrow.options().residual(x.view()).run(
                wide.view(),
                &block.narrow.weight,
                sum.view_mut(),
            )?;
            block.norm.run(sum.view(), x.view_mut())?;
        }

        let mut x = &x[..rows * WIDTH];
        for &i in order.iter() {
            let (sentence, rest) = x.split_at(sentences[i].len() * WIDTH);
            x = rest;
            if let Some(y) = y.view_mut().select::<1>(0, i)?.as_mut_slice() {
                mean(sentence, y);
            }
        }
        Ok(())
    }

    /// The sums of the embeddings of words and places.
    fn look_up(&self, sentences: &[Vec<u32>], order: &[usize], mut sum: Matrix<'_>) {
        let (words, places) = (self.words.as_slice(), self.places.as_slice());
        let rows = sum.as_mut_slice().unwrap_or_default().chunks_exact_mut(WIDTH);
        let tokens = order.iter().flat_map(|&i| sentences[i].iter().zip(places.chunks_exact(WIDTH)));
        for (row, (&token, place)) in rows.zip(tokens) {
            let word = &words[token as usize * WIDTH..][..WIDTH];
            for ((sum, word), place) in row.iter_mut().zip(word).zip(place) {
                *sum = word + place;
            }
        }
    }
}

/// Attention within each sentence; sentences of one length together.
fn attend(
    sentences: &[Vec<u32>],
    order: &[usize],
    qkv: TensorView<'_, f32, 2>,
    mut y: Matrix<'_>,
) -> tilewise::Result<()> {
    let mut start = 0;
    for alike in order.chunk_by(|&i, &j| sentences[i].len() == sentences[j].len()) {
        let (count, length) = (alike.len(), sentences[alike[0]].len());
        let rows = start..start + count * length;
        start = rows.end;
        let qkv = qkv.slice(0, rows.clone(), 1)?.reshape([count, length, 3, HEADS, HEAD])?;
        let part = |i| qkv.select::<4>(2, i)?.permute([0, 2, 1, 3]);
        let y = y.view_mut().slice(0, rows, 1)?.reshape([count, length, HEADS, HEAD])?;
        Attention::new().forward_into(part(0)?, part(1)?, part(2)?, y.permute([0, 2, 1, 3])?)?;
    }
    Ok(())
}

/// The mean of rows, scaled to length 1.
fn mean(rows: &[f32], y: &mut [f32]) {
    y.fill(0.0);
    for row in rows.chunks_exact(WIDTH) {
        y.iter_mut().zip(row).for_each(|(y, x)| *y += x);
    }
    // A multiple of the mean has its direction.
    let length = y.iter().map(|y| y * y).sum::<f32>().sqrt();
    y.iter_mut().for_each(|y| *y /= length);
}

/// The cosine of the angle between embeddings.
pub fn similarity(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
