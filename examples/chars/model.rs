//! The model: an embedding, LSTM layers, and a dense layer that reads every state.

use tilewise::Tensor;
use tilewise::layer::optimizer::Optimizer;
use tilewise::layer::{
    Embedding, Init, Layer, Linear, Lstm, Parameter, Parameters, RecurrentSizes, State, clip_gradient_norm,
};
use tilewise::loss::CrossEntropy;
use tilewise::random::Rng;
use tilewise::rnn;

use crate::text::Alphabet;

/// Numbers that stand for a character.
const DIMENSIONS: usize = 64;
/// Long products of slopes may explode.
const MAX_NORM: f64 = 1.0;

pub struct Model {
    pub alphabet: Alphabet,
    pub hidden: usize,
    pub layers: usize,
    pub dropout: f64,
    /// The losses of all passes so far.
    pub epochs: Vec<Epoch>,
    pub embedding: Embedding<f32>,
    pub lstm: Lstm<f32>,
    pub head: Linear<f32>,
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
    pub fn new(
        alphabet: Alphabet,
        hidden: usize,
        layers: usize,
        dropout: f64,
        seed: u64,
    ) -> tilewise::Result<Self> {
        let mut rng = Rng::seed(seed);
        let embedding = Embedding::new(alphabet.len(), DIMENSIONS, Init::xavier_uniform(), &mut rng)?;
        let sizes = RecurrentSizes { inputs: DIMENSIONS, hidden, layers, directions: 1 };
        let lstm = Lstm::stacked(rnn::Lstm::new(), sizes, &mut rng)?.dropout(dropout, seed)?;
        let head = Linear::new(hidden, alphabet.len(), Init::xavier_uniform(), &mut rng)?;
        Ok(Self { alphabet, hidden, layers, dropout, epochs: Vec::new(), embedding, lstm, head })
    }

    pub fn parameters(&mut self) -> usize {
        self.parameter_count()
    }

    /// One step of training from a state, which is carried on. Gives the mean loss.
    pub fn train(
        &mut self,
        window: &Window<'_>,
        state: &mut State<f32>,
        optimizer: &mut dyn Optimizer<f32>,
    ) -> tilewise::Result<f64> {
        let rows = window.characters.len();
        let x = self.embedding.forward(window.characters)?;
        let [_, dimensions] = x.shape();
        let x = x.reshape([rows / window.batch, window.batch, dimensions])?;
        let (y, last) = self.lstm.forward_from(x.view(), Some(state), None)?;
        let logits = self.head.forward(y.view().reshape([rows, self.hidden])?)?;
        let (loss, d_logits) = CrossEntropy::new().forward_backward(logits.view(), window.next)?;
        self.zero_gradients();
        let dy = self.head.backward(d_logits.view())?.reshape(y.shape())?;
        let dx = self.lstm.backward(dy.view())?;
        self.embedding.backward(dx.view().reshape([rows, dimensions])?)?;
        clip_gradient_norm(self, MAX_NORM)?;
        optimizer.step(self)?;
        *state = last;
        Ok(f64::from(loss))
    }

    /// The mean loss, from a state, which is carried on.
    pub fn test(&self, window: &Window<'_>, state: &mut State<f32>) -> tilewise::Result<f64> {
        let rows = window.characters.len();
        let x = self.embedding.infer(window.characters)?;
        let [_, dimensions] = x.shape();
        let x = x.reshape([rows / window.batch, window.batch, dimensions])?;
        let (y, last) = self.lstm.infer_from(x.view(), Some(state), None)?;
        let logits: Tensor<f32, 2> = self.head.infer(y.view().reshape([rows, self.hidden])?)?;
        *state = last;
        Ok(f64::from(CrossEntropy::new().forward_backward(logits.view(), window.next)?.0))
    }
}

impl Parameters<f32> for Model {
    fn visit(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        self.embedding.visit(&mut |name, parameter| f(&format!("embedding.{name}"), parameter));
        self.lstm.visit(&mut |name, parameter| f(&format!("lstm.{name}"), parameter));
        self.head.visit(&mut |name, parameter| f(&format!("head.{name}"), parameter));
    }
}
