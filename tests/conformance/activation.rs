//! Functions of each element.

use tilewise::activation::{self, Activation};
use tilewise::{Element, Tensor, vecmath};

use super::{Array, Call, Result, skip};

#[rustfmt::skip]
pub const OPERATORS: &[&str] = &[
    "Celu", "Elu", "Erf", "Exp", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Mish", "PRelu", "Relu", "Selu",
    "Sigmoid", "Softplus", "Softsign", "Swish", "Tanh", "ThresholdedRelu",
];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let x = call.need(0)?;
    let flat = x.flat::<T>()?;
    let mut y = Tensor::zeros(flat.shape())?;
    let activation = match call.node.operator.as_str() {
        "Elu" => Activation::Elu { alpha: call.float("alpha", 1.0) },
        "Gelu" if call.text("approximate").is_some_and(|how| how == "tanh") => Activation::GeluTanh,
        "Gelu" => Activation::Gelu,
        "HardSigmoid" => {
            Activation::HardSigmoid { alpha: call.float("alpha", 0.2), beta: call.float("beta", 0.5) }
        }
        "HardSwish" => Activation::HardSwish,
        "LeakyRelu" => Activation::LeakyRelu { slope: call.float("alpha", 0.01) },
        "Relu" => Activation::Relu,
        "Sigmoid" => Activation::Sigmoid,
        "Softplus" => Activation::Softplus,
        "Tanh" => Activation::Tanh,
        function => {
            match function {
                "Erf" => vecmath::erf(flat.view(), y.view_mut())?,
                "Exp" => vecmath::exp(flat.view(), y.view_mut())?,
                "Log" => vecmath::log(flat.view(), y.view_mut())?,
                other => return skip(format!("Tilewise lacks {other}")),
            }
            return Ok(vec![Array::new(y.as_slice(), &x.shape)]);
        }
    };
    activation::forward(activation, flat.view(), y.view_mut())?;
    Ok(vec![Array::new(y.as_slice(), &x.shape)])
}
