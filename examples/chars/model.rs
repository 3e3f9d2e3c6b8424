//! The model: an embedding, LSTM layers or a decoder, and a dense layer that reads what they give for every character.

use clap::ValueEnum;
use tilewise::Tensor;
use tilewise::layer::optimizer::Optimizer;
use tilewise::layer::{
    Embedding, Init, Layer, Linear, Lstm, Parameter, Parameters, RecurrentSizes, State, clip_gradient_norm,
};
use tilewise::loss::CrossEntropy;
use tilewise::random::Rng;
use tilewise::rnn;

use crate::decoder::Decoder;
use crate::text::Alphabet;

/// Numbers that stand for a character before an LSTM.
const DIMENSIONS: usize = 64;
/// Long products of slopes may explode.
const MAX_NORM: f64 = 1.0;

/// What stands between the embedding and the dense layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Net {
    /// LSTM layers, which carry a state through the text.
    Lstm,
    /// Decoder blocks, which attend to the characters of a window.
    Transformer,
}

/// What a model is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    pub net: Net,
    pub hidden: usize,
    pub layers: usize,
    /// Heads of the decoder.
    pub heads: usize,
    /// Characters that the decoder sees.
    pub context: usize,
    pub dropout: f64,
}

pub struct Model {
    pub alphabet: Alphabet,
    pub options: Options,
    /// The losses of all passes so far.
    pub epochs: Vec<Epoch>,
    pub embedding: Embedding<f32>,
    pub body: Body,
    pub head: Linear<f32>,
}

pub enum Body {
    Lstm(Lstm<f32>),
    Transformer(Decoder),
}

/// Mean losses in nats per character.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Epoch {
    pub train: f64,
    pub test: f64,
}

/// Characters `[time, batch]`, and those that follow each.
pub struct Window<'w> {
    pub characters: &'w [usize],
    pub next: &'w [usize],
    pub batch: usize,
}

impl Model {
    pub fn new(alphabet: Alphabet, options: Options, seed: u64) -> tilewise::Result<Self> {
        let (mut rng, hidden) = (Rng::seed(seed), options.hidden);
        let dimensions = if options.net == Net::Lstm { DIMENSIONS } else { hidden };
        let embedding = Embedding::new(alphabet.len(), dimensions, Init::xavier_uniform(), &mut rng)?;
        let body = match options.net {
            Net::Lstm => {
                let sizes =
                    RecurrentSizes { inputs: dimensions, hidden, layers: options.layers, directions: 1 };
                let lstm = Lstm::stacked(rnn::Lstm::new(), sizes, &mut rng)?;
                Body::Lstm(lstm.dropout(options.dropout, seed)?)
            }
            Net::Transformer => Body::Transformer(Decoder::new(&options, seed, &mut rng)?),
        };
        let head = Linear::new(hidden, alphabet.len(), Init::xavier_uniform(), &mut rng)?;
        Ok(Self { alphabet, options, epochs: Vec::new(), embedding, body, head })
    }

    pub fn parameters(&self) -> usize {
        self.parameter_count()
    }

    /// Characters that can be read at a time, of so many.
    pub fn window(&self, wanted: usize) -> usize {
        match self.options.net {
            Net::Lstm => wanted,
            Net::Transformer => wanted.min(self.options.context),
        }
    }

    /// What is known before the first character, where the model carries a state.
    pub fn start(&self, batch: usize) -> tilewise::Result<Option<State<f32>>> {
        match &self.body {
            Body::Lstm(lstm) => lstm.zero_state(batch).map(Some),
            Body::Transformer(_) => Ok(None),
        }
    }

    /// One step of training from a state, which is carried on. Gives the mean loss.
    pub fn train(
        &mut self,
        window: &Window<'_>,
        state: &mut Option<State<f32>>,
        optimizer: &mut dyn Optimizer<f32>,
    ) -> tilewise::Result<f64> {
        let rows = window.characters.len();
        let x = self.embedding.forward(window.characters)?;
        let [_, dimensions] = x.shape();
        let x = x.reshape([rows / window.batch, window.batch, dimensions])?;
        let y = match &mut self.body {
            Body::Lstm(lstm) => {
                let (y, last) = lstm.forward_from(x.view(), state.as_ref(), None)?;
                *state = Some(last);
                y
            }
            Body::Transformer(decoder) => decoder.forward(x.view())?,
        };
        let logits = self.head.forward(y.view().reshape([rows, self.options.hidden])?)?;
        let (loss, d_logits) = CrossEntropy::new().forward_backward(logits.view(), window.next)?;
        self.zero_gradients();
        let dy = self.head.backward(d_logits.view())?.reshape(y.shape())?;
        let dx = match &mut self.body {
            Body::Lstm(lstm) => lstm.backward(dy.view())?,
            Body::Transformer(decoder) => decoder.backward(dy.view())?,
        };
        self.embedding.backward(dx.view().reshape([rows, dimensions])?)?;
        clip_gradient_norm(self, MAX_NORM)?;
        optimizer.step(self)?;
        Ok(f64::from(loss))
    }

    /// The mean loss, from a state, which is carried on.
    pub fn test(&self, window: &Window<'_>, state: &mut Option<State<f32>>) -> tilewise::Result<f64> {
        let rows = window.characters.len();
        let x = self.embedding.infer(window.characters)?;
        let [_, dimensions] = x.shape();
        let x = x.reshape([rows / window.batch, window.batch, dimensions])?;
        let y = match &self.body {
            Body::Lstm(lstm) => {
                let (y, last) = lstm.infer_from(x.view(), state.as_ref(), None)?;
                *state = Some(last);
                y
            }
            Body::Transformer(decoder) => decoder.infer(x.view())?,
        };
        let logits: Tensor<f32, 2> = self.head.infer(y.view().reshape([rows, self.options.hidden])?)?;
        Ok(f64::from(CrossEntropy::new().forward_backward(logits.view(), window.next)?.0))
    }
}

impl Parameters<f32> for Model {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        self.embedding.visit(&mut |name, parameter| f(&format!("embedding.{name}"), parameter));
        match &self.body {
            Body::Lstm(lstm) => lstm.visit(&mut |name, parameter| f(&format!("lstm.{name}"), parameter)),
            Body::Transformer(decoder) => {
                decoder.visit(&mut |name, parameter| f(&format!("decoder.{name}"), parameter));
            }
        }
        self.head.visit(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        self.embedding.visit_mut(&mut |name, parameter| f(&format!("embedding.{name}"), parameter));
        match &mut self.body {
            Body::Lstm(lstm) => lstm.visit_mut(&mut |name, parameter| f(&format!("lstm.{name}"), parameter)),
            Body::Transformer(decoder) => {
                decoder.visit_mut(&mut |name, parameter| f(&format!("decoder.{name}"), parameter));
            }
        }
        self.head.visit_mut(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }
}
