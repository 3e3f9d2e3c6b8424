//! Silero VAD for 16 kHz: a short-time Fourier transform written as a convolution, four convolutions over its magnitudes,
//! an LSTM that goes on from chunk to chunk, and one output.
//!
//! Silero Team, "Silero VAD: pre-trained enterprise-grade voice activity detector" (2021).
//!
//! ```text
//! 64 samples of before, 512 new ones, 64 of them mirrored    → spectrum  [258, 4 frames]: real parts, imaginary parts
//! magnitudes  [129, 4] → 128 channels, 4 frames → 64, 2 → 64, 1 → 128, 1 → LSTM of 128 → probability
//! ```
//!
//! All tensors have their channels last in memory; convolutions see them through permuted views.

use std::error::Error;

use tilewise::activation::{self, Activation};
use tilewise::conv::{Convolution, PackedConvolution};
use tilewise::gemm::{Bias, Gemm};
use tilewise::rnn::{self, DirectionWeights, PackedWeights, Recurrent, StateMut, WeightTensors};
use tilewise::{Tensor, TensorView};

use crate::weights::Weights;

/// Samples a second.
pub const RATE: u32 = 16_000;
/// Samples that give one probability.
pub const CHUNK: usize = 512;
/// Samples of the chunk before that are seen again.
const CONTEXT: usize = 64;
const MIRRORED: usize = 64;
const SIGNAL: usize = CONTEXT + CHUNK + MIRRORED;
const WINDOW: usize = 256;
const HOP: usize = 128;
const FRAMES: usize = (SIGNAL - WINDOW) / HOP + 1;
/// Of real signals, half of the spectrum says all.
const BINS: usize = WINDOW / 2 + 1;
const HIDDEN: usize = 128;

pub struct Silero {
    spectrum: PackedConvolution<f32>,
    encoder: Vec<Encoder>,
    lstm: PackedWeights<f32>,
    head: Tensor<f32, 2>,
    head_bias: Tensor<f32, 1>,
}

/// A convolution with ReLU behind it.
struct Encoder {
    convolution: Convolution<1>,
    weight: PackedConvolution<f32>,
    bias: Tensor<f32, 1>,
    /// Frames and channels of what comes out.
    output: [usize; 2],
}

/// The states of streams that are heard side by side, and memory for a step.
pub struct Streams {
    signal: Tensor<f32, 2>,
    spectrum: Tensor<f32, 3>,
    magnitudes: Tensor<f32, 3>,
    encoded: Vec<Tensor<f32, 3>>,
    hidden: Tensor<f32, 2>,
    cell: Tensor<f32, 2>,
    shown: Tensor<f32, 2>,
    probabilities: Tensor<f32, 2>,
}

/// `[batch, frames, channels]` as the convolutions want it.
fn channels_first(x: TensorView<'_, f32, 3>) -> tilewise::Result<TensorView<'_, f32, 3>> {
    x.permute([0, 2, 1])
}

impl Silero {
    /// From the tensors of a file of the safetensors format.
    pub fn parse(bytes: &[u8]) -> Result<Self, Box<dyn Error>> {
        let weights = Weights::parse(bytes)?;
        let (mut channels, mut frames) = (BINS, FRAMES);
        let mut encoder = Vec::new();
        for (i, (outputs, stride)) in [(128, 1), (64, 2), (64, 2), (128, 1)].into_iter().enumerate() {
            let weight =
                weights.get(&format!("model.encoder.{i}.reparam_conv.weight"), [outputs, channels, 3])?;
            let bias = weights.get(&format!("model.encoder.{i}.reparam_conv.bias"), [outputs])?;
            let convolution = Convolution::new().stride([stride]).padding([1]).activation(Activation::Relu);
            (channels, frames) = (outputs, frames.div_ceil(stride));
            let weight = convolution.pack(weight.view())?;
            encoder.push(Encoder { convolution, weight, bias, output: [frames, channels] });
        }
        let gates = [4 * HIDDEN, HIDDEN];
        let (input, recurrent): (Tensor<f32, 2>, Tensor<f32, 2>) = (
            weights.get("model.decoder.rnn.weight_ih", gates)?,
            weights.get("model.decoder.rnn.weight_hh", gates)?,
        );
        let bias = weights.get("model.decoder.rnn.bias_ih", [4 * HIDDEN])?;
        let recurrent_bias = weights.get("model.decoder.rnn.bias_hh", [4 * HIDDEN])?;
        let lstm = WeightTensors::from_pytorch(
            DirectionWeights {
                input: input.view(),
                recurrent: recurrent.view(),
                bias: Some(bias.view()),
                recurrent_bias: Some(recurrent_bias.view()),
                peephole: None,
                projection: None,
            },
            None,
        )?;
        let spectrum = weights.get("model.stft.forward_basis_buffer", [2 * BINS, 1, WINDOW])?;
        Ok(Self {
            spectrum: Self::transform().pack(spectrum.view())?,
            encoder,
            lstm: rnn::Lstm::new().pack(lstm.view())?,
            head: weights.get("model.decoder.decoder.2.weight", [1, HIDDEN, 1])?.reshape([HIDDEN, 1])?,
            head_bias: weights.get("model.decoder.decoder.2.bias", [1])?,
        })
    }

    fn transform() -> Convolution<1> {
        Convolution::new().stride([HOP])
    }

    /// Streams at their beginning.
    pub fn streams(&self, batch: usize) -> tilewise::Result<Streams> {
        let encoded = self
            .encoder
            .iter()
            .map(|&Encoder { output: [frames, channels], .. }| Tensor::zeros([batch, frames, channels]));
        Ok(Streams {
            signal: Tensor::zeros([batch, SIGNAL])?,
            spectrum: Tensor::zeros([batch, FRAMES, 2 * BINS])?,
            magnitudes: Tensor::zeros([batch, FRAMES, BINS])?,
            encoded: encoded.collect::<tilewise::Result<_>>()?,
            hidden: Tensor::zeros([batch, HIDDEN])?,
            cell: Tensor::zeros([batch, HIDDEN])?,
            shown: Tensor::zeros([batch, HIDDEN])?,
            probabilities: Tensor::zeros([batch, 1])?,
        })
    }

    /// The probabilities that there is speech in the next chunk of each stream; `chunks` is `[batch, CHUNK]`.
    pub fn step<'s>(&self, chunks: &[f32], streams: &'s mut Streams) -> tilewise::Result<&'s [f32]> {
        streams.listen(chunks);
        let signal = streams.signal.view().insert_axis::<3>(1)?;
        let spectrum = streams.spectrum.view_mut().permute([0, 2, 1])?;
        Self::transform().forward_into(signal, &self.spectrum, None, spectrum)?;
        streams.measure();

        let mut x = streams.magnitudes.view();
        for (layer, y) in self.encoder.iter().zip(&mut streams.encoded) {
            let (weight, bias) = (&layer.weight, Some(layer.bias.view()));
            let into = y.view_mut().permute([0, 2, 1])?;
            layer.convolution.forward_into(channels_first(x)?, weight, bias, into)?;
            x = y.view();
        }

        let state = StateMut::new(streams.hidden.view_mut()).cell(streams.cell.view_mut());
        rnn::Lstm::new().step(x.select(1, 0)?, &self.lstm, state)?;
        activation::forward(Activation::Relu, streams.hidden.view(), streams.shown.view_mut())?;
        let head = Gemm::new().bias(Bias::PerColumn(self.head_bias.view())).activation(Activation::Sigmoid);
        head.run(streams.shown.view(), self.head.view(), streams.probabilities.view_mut())?;
        Ok(streams.probabilities.as_slice())
    }
}

impl Streams {
    /// Moves the signals on by a chunk each, and mirrors their ends.
    fn listen(&mut self, chunks: &[f32]) {
        const END: usize = CONTEXT + CHUNK;
        let signals = self.signal.as_mut_slice().chunks_exact_mut(SIGNAL);
        for (signal, chunk) in signals.zip(chunks.chunks_exact(CHUNK)) {
            signal.copy_within(CHUNK..END, 0);
            signal[CONTEXT..END].copy_from_slice(chunk);
            let (heard, mirrored) = signal.split_at_mut(END);
            // The last sample is the mirror, and is not seen twice.
            mirrored.iter_mut().zip(heard[..END - 1].iter().rev()).for_each(|(mirrored, &x)| *mirrored = x);
        }
    }

    /// The magnitudes of the spectrum.
    fn measure(&mut self) {
        let frames = self.spectrum.as_slice().chunks_exact(2 * BINS);
        for (spectrum, y) in frames.zip(self.magnitudes.as_mut_slice().chunks_exact_mut(BINS)) {
            let (real, imaginary) = spectrum.split_at(BINS);
            for ((y, re), im) in y.iter_mut().zip(real).zip(imaginary) {
                *y = (re * re + im * im).sqrt();
            }
        }
    }

    /// The state of the LSTM: h and c, `[batch, 128]`.
    #[cfg(test)]
    pub fn state(&self) -> [&[f32]; 2] {
        [self.hidden.as_slice(), self.cell.as_slice()]
    }
}
