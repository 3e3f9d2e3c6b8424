//! Small layers of all kinds over inputs of hostile shapes and strides: forward, inference, backward, exchanged parameters, steps of
//! optimizers, decoding step by step; embeddings and encodings of positions.
//!
//! The operations below have targets of their own. What is tried here is that a layer keeps its word: what is refused
//! leaves what was kept, inference gives what training gives, one step after the other what all at once give.
#![no_main]

mod drive;
mod sequences;
#[path = "../support/mod.rs"]
mod support;

use drive::{Step, drive};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sequences::{Cells, Heads};
use support::{Few, Lie, Number, with_some_isa};
use tilewise::activation::Activation;
use tilewise::conv::{Convolution, ConvolutionTranspose};
use tilewise::layer::{self, Activate, Dropout, FeedForward, Flatten, Init, Linear, Sequential};
use tilewise::pool::{AveragePool, MaxPool};
use tilewise::random::Rng;
use tilewise::{Result, Tensor};

#[derive(Arbitrary, Debug)]
struct Input {
    isa: u8,
    kind: Kind,
    /// Of the first input, which fits.
    shape: [Few; 4],
    /// A size that the layer is made with, in place of the one that fits.
    wrong: Option<Number>,
    lies: [Lie; 2],
    steps: [Step; 4],
    seed: u32,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Linear { outputs: Few, bias: bool },
    Chain { hidden: Few, probability: u8 },
    FeedForward { hidden: Few, gated: bool, probability: u8 },
    Activate(u8),
    Dropout(u8),
    Flatten,
    LayerNorm,
    RmsNorm,
    BatchNorm(u8),
    GroupNorm(u8),
    InstanceNorm,
    Conv(Windows),
    ConvTranspose(Windows),
    MaxPool(Windows),
    AvgPool(Windows),
    Attention(Heads),
    Recurrent(Cells),
    Embedding { things: Few, numbers: [Number; 4], dy: Option<Number> },
    Rotary { positions: u8, first: Number, interleaved: bool, partial: bool, given: bool, dim: Option<Few> },
    Sinusoidal,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Windows {
    outputs: u8,
    kernel: [Number; 2],
    stride: [Number; 2],
    dilation: [Number; 2],
    padding: [Number; 2],
    groups: u8,
    bias: bool,
    activation: u8,
}

fuzz_target!(|input: Input| {
    with_some_isa(input.isa, || {
        let made = run(&input);
        if let Err(error) = made {
            assert!(!error.to_string().is_empty());
        }
    });
});

/// Sizes of which memory cannot be had without asking for it, or small ones.
fn size(Number(size): Number) -> usize {
    if size > 64 && size < isize::MAX as usize / 4 { size % 40 } else { size }
}

/// As [`size`], for windows that do not take long.
fn tap(number: Number) -> usize {
    let size = size(number);
    if size <= 64 { size % 6 } else { size }
}

fn probability(tag: u8) -> f64 {
    [0.0, 0.25, 0.5, 0.0, 0.75, 1.0, 1.5, -0.5, f64::NAN][usize::from(tag % 9)]
}

/// Fails with an error where the layer cannot be made; what is tried with it must not.
fn run(input: &Input) -> Result<()> {
    let rng = &mut Rng::seed(u64::from(input.seed));
    let [a, b, c, d] = input.shape.map(|size| size.0);
    let other = |fits: usize| input.wrong.map_or(fits, size);
    let (rows, sequence, image) = ([a, b], [a % 5, b, c], [a % 4, b % 12, c % 12, d % 12]);
    let init = Init::kaiming_uniform();
    match input.kind {
        Kind::Linear { outputs, bias } => {
            let mut layer = Linear::<f32>::new(other(b), outputs.0, init, rng)?;
            if !bias {
                layer = Linear::from_parts(layer.weight().view()?.to_tensor()?, None)?;
            }
            drive(input, &mut layer, rows, true);
        }
        Kind::Chain { hidden, probability: tag } => {
            let (first, last) =
                (Linear::new(other(b), hidden.0, init, rng)?, Linear::new(hidden.0, 3, init, rng)?);
            let between = Activate::new(Activation::Gelu);
            let drop = Dropout::new(probability(tag), 7)?;
            let mut layer = Sequential::<f32>::new().push(first).push(between).push(drop).push(last);
            drive(input, &mut layer, rows, probability(tag) == 0.0);
        }
        Kind::FeedForward { hidden, gated, probability: tag } => {
            let make = if gated { FeedForward::<f32>::gated } else { FeedForward::<f32>::new };
            let mut layer = make(other(c), hidden.0, Activation::Silu, rng)?.dropout(probability(tag), 3)?;
            drive(input, &mut layer, sequence, probability(tag) == 0.0);
        }
        Kind::Activate(which) => {
            let all = [Activation::Relu, Activation::Tanh, Activation::Mish, Activation::Sign];
            drive(input, &mut Activate::<f32, 3>::new(all[usize::from(which % 4)]), sequence, true);
        }
        Kind::Dropout(tag) => {
            let mut layer = Dropout::<f32, 3>::new(probability(tag), u64::from(input.seed))?;
            drive(input, &mut layer, sequence, probability(tag) == 0.0);
        }
        Kind::Flatten => {
            drive(input, &mut Flatten::<4>::new(), image, true);
        }
        Kind::LayerNorm => {
            drive(input, &mut layer::LayerNorm::<f32, 3>::new(other(c))?, sequence, true);
        }
        Kind::RmsNorm => {
            drive(input, &mut layer::RmsNorm::<f32, 3>::new(other(c))?, sequence, true);
        }
        Kind::BatchNorm(momentum) => {
            let layer = layer::BatchNorm::<f32, 4>::new(other(image[1]))?;
            drive(input, &mut layer.momentum(probability(momentum))?, image, false);
        }
        Kind::GroupNorm(groups) => {
            let mut layer = layer::GroupNorm::<f32, 4>::new(usize::from(groups % 5), other(image[1]))?;
            drive(input, &mut layer, image, true);
        }
        Kind::InstanceNorm => {
            drive(input, &mut layer::InstanceNorm::<f32, 4>::new(other(image[1]))?, image, true);
        }
        Kind::Conv(windows) => {
            let (groups, outputs) = windows.channels();
            let options =
                Convolution::<2>::new().stride(windows.stride.map(tap)).dilation(windows.dilation.map(tap));
            let options = options.padding(windows.padding.map(tap)).groups(groups);
            let options = options.activation(windows.activation());
            let kernel = windows.kernel.map(tap);
            let mut layer = layer::Conv2d::<f32>::new(other(image[1]), outputs, kernel, options, init, rng)?;
            if !windows.bias {
                layer = layer::Conv2d::from_parts(options, layer.weight().view()?.to_tensor()?, None)?;
            }
            drive(input, &mut layer, image, true);
        }
        Kind::ConvTranspose(windows) => {
            let (groups, outputs) = windows.channels();
            let options = ConvolutionTranspose::<2>::new()
                .stride(windows.stride.map(tap))
                .dilation(windows.dilation.map(tap));
            let options = options.padding(windows.padding.map(tap)).groups(groups);
            let kernel = windows.kernel.map(tap);
            let mut layer =
                layer::ConvTranspose2d::<f32>::new(other(image[1]), outputs, kernel, options, init, rng)?;
            drive(input, &mut layer, image, true);
        }
        Kind::MaxPool(windows) => {
            // No window over padding alone, whose maximum is −∞.
            let kernel = windows.kernel.map(tap);
            let padding = [0, 1].map(|axis| tap(windows.padding[axis]).min(kernel[axis].saturating_sub(1)));
            let pool = MaxPool::new(kernel).stride(windows.stride.map(tap)).padding(padding);
            drive(input, &mut layer::MaxPool2d::new(pool), image, true);
        }
        Kind::AvgPool(windows) => {
            let pool = AveragePool::new(windows.kernel.map(tap)).stride(windows.stride.map(tap));
            let pool = pool.padding(windows.padding.map(tap)).dilation(windows.dilation.map(tap));
            drive(input, &mut layer::AvgPool2d::new(pool), image, true);
        }
        Kind::Attention(heads) => sequences::attention(input, heads, sequence, rng)?,
        Kind::Recurrent(cells) => sequences::recurrent(input, cells, sequence, rng)?,
        Kind::Embedding { things, numbers, dy } => {
            let mut table = layer::Embedding::<f32>::new(things.0, other(b), init, rng)?;
            sequences::embedding(input, &mut table, numbers.map(|number| number.0), dy.map(size));
        }
        Kind::Rotary { .. } => sequences::rotary(input, [a % 4, b % 4, c, d])?,
        Kind::Sinusoidal => sequences::sinusoidal(other(a), b)?,
    }
    Ok(())
}

impl Windows {
    /// Groups, and output channels.
    fn channels(&self) -> (usize, usize) {
        let groups = [1, 1, 2, 3, 0, 4, 1, 8][usize::from(self.groups % 8)];
        (groups, if self.outputs >= 250 { 7 } else { usize::from(self.outputs % 4) * groups })
    }

    fn activation(&self) -> Activation {
        [Activation::Identity, Activation::Relu, Activation::Identity, Activation::Tanh]
            [usize::from(self.activation % 4)]
    }
}

/// True where all are numbers and finite.
fn finite<const N: usize>(tensor: &Tensor<f32, N>) -> bool {
    tensor.iter().all(|x| x.is_finite())
}
