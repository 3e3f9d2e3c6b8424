//! The parameters of one layer of a stack.

use crate::element::Element;
use crate::error::Result;
use crate::layer::Parameter;
use crate::rnn::{WeightGradientsMut, WeightTensors, Weights};
use crate::tensor::Tensor;

pub(super) struct Weighted<T> {
    input: Parameter<T>,
    recurrent: Parameter<T>,
    bias: Option<Parameter<T>>,
    recurrent_bias: Option<Parameter<T>>,
    peephole: Option<Parameter<T>>,
    projection: Option<Parameter<T>>,
}

impl<T: Element> Weighted<T> {
    pub(super) fn new(tensors: WeightTensors<T>) -> Result<Self> {
        let vector = |tensor: Option<Tensor<T, 2>>| tensor.map(Parameter::new).transpose();
        Ok(Self {
            input: Parameter::new(tensors.input)?,
            recurrent: Parameter::new(tensors.recurrent)?,
            bias: vector(tensors.bias)?,
            recurrent_bias: vector(tensors.recurrent_bias)?,
            peephole: vector(tensors.peephole)?,
            projection: tensors.projection.map(Parameter::new).transpose()?,
        })
    }

    pub(super) fn view(&self) -> Result<Weights<'_, T>> {
        Ok(Weights {
            input: self.input.view()?,
            recurrent: self.recurrent.view()?,
            bias: self.bias.as_ref().map(Parameter::view).transpose()?,
            recurrent_bias: self.recurrent_bias.as_ref().map(Parameter::view).transpose()?,
            peephole: self.peephole.as_ref().map(Parameter::view).transpose()?,
            projection: self.projection.as_ref().map(Parameter::view).transpose()?,
        })
    }

    /// The shapes of h and, with an LSTM, of c for a batch.
    pub(super) fn states(&self, batch: usize) -> Result<[[usize; 3]; 2]> {
        let ([directions, rows, _], [_, _, columns]) =
            (self.input.view::<3>()?.shape(), self.recurrent.view::<3>()?.shape());
        Ok([[directions, batch, columns], [directions, batch, rows / 4]])
    }

    /// Values, and gradients to be written.
    pub(super) fn views(&mut self) -> Result<(Weights<'_, T>, WeightGradientsMut<'_, T>)> {
        macro_rules! maybe {
            ($part:ident) => {
                self.$part.as_mut().map(Parameter::views).transpose()?.unzip()
            };
        }
        let ((input, d_input), (recurrent, d_recurrent)) = (self.input.views()?, self.recurrent.views()?);
        let ((bias, d_bias), (recurrent_bias, d_recurrent_bias)) = (maybe!(bias), maybe!(recurrent_bias));
        let ((peephole, d_peephole), (projection, d_projection)) = (maybe!(peephole), maybe!(projection));
        Ok((
            Weights { input, recurrent, bias, recurrent_bias, peephole, projection },
            WeightGradientsMut {
                input: Some(d_input),
                recurrent: Some(d_recurrent),
                bias: d_bias,
                recurrent_bias: d_recurrent_bias,
                peephole: d_peephole,
                projection: d_projection,
            },
        ))
    }

    pub(super) fn visit(&self, layer: usize, f: &mut dyn FnMut(&str, &Parameter<T>)) {
        f(&format!("{layer}.input"), &self.input);
        f(&format!("{layer}.recurrent"), &self.recurrent);
        for (name, parameter) in [
            ("bias", &self.bias),
            ("recurrent_bias", &self.recurrent_bias),
            ("peephole", &self.peephole),
            ("projection", &self.projection),
        ] {
            if let Some(parameter) = parameter {
                f(&format!("{layer}.{name}"), parameter);
            }
        }
    }

    pub(super) fn visit_mut(&mut self, layer: usize, f: &mut dyn FnMut(&str, &mut Parameter<T>)) {
        f(&format!("{layer}.input"), &mut self.input);
        f(&format!("{layer}.recurrent"), &mut self.recurrent);
        for (name, parameter) in [
            ("bias", &mut self.bias),
            ("recurrent_bias", &mut self.recurrent_bias),
            ("peephole", &mut self.peephole),
            ("projection", &mut self.projection),
        ] {
            if let Some(parameter) = parameter {
                f(&format!("{layer}.{name}"), parameter);
            }
        }
    }
}
