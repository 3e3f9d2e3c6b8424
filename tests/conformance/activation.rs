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
    if call.node.operator == "PRelu" {
        return prelu::<T>(call);
    }
    let flat = x.flat::<T>()?;
    let mut y = Tensor::zeros(flat.shape())?;
    let activation = match call.node.operator.as_str() {
        "Celu" => Activation::Celu { alpha: call.float("alpha", 1.0) },
        "Elu" => Activation::Elu { alpha: call.float("alpha", 1.0) },
        "Gelu" if call.text("approximate").is_some_and(|how| how == "tanh") => Activation::GeluTanh,
        "Gelu" => Activation::Gelu,
        "HardSigmoid" => {
            Activation::HardSigmoid { alpha: call.float("alpha", 0.2), beta: call.float("beta", 0.5) }
        }
        "HardSwish" => Activation::HardSwish,
        "LeakyRelu" => Activation::LeakyRelu { slope: call.float("alpha", 0.01) },
        "Mish" => Activation::Mish,
        "Relu" => Activation::Relu,
        "Selu" => match Activation::selu() {
            Activation::Selu { alpha, scale } => {
                Activation::Selu { alpha: call.float("alpha", alpha), scale: call.float("gamma", scale) }
            }
            other => other,
        },
        "Sigmoid" => Activation::Sigmoid,
        "Softplus" => Activation::Softplus,
        "Softsign" => Activation::Softsign,
        "Swish" => Activation::Swish { beta: call.float("alpha", 1.0) },
        "ThresholdedRelu" => Activation::ThresholdedRelu { threshold: call.float("alpha", 1.0) },
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

/// Slopes broadcast from the last axes on; before version 7 a vector was one for each channel.
fn prelu<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let (x, mut slope) = (call.need(0)?, call.need(1)?.clone());
    if call.operator_set < 7 && slope.rank() == 1 {
        slope.shape.resize(x.rank() - 1, 1);
    }
    let wide = |shape: &[usize]| {
        let missing = 6 - shape.len();
        std::array::from_fn::<_, 6, _>(|axis| axis.checked_sub(missing).map_or(1, |axis| shape[axis]))
    };
    let (shape, narrow) = (wide(&x.shape), wide(&slope.shape));
    let mut y = Tensor::zeros(shape)?;
    activation::prelu(x.to::<T, 6>(shape)?.view(), slope.to(narrow)?.view(), y.view_mut())?;
    Ok(vec![Array::new(y.as_slice(), &x.shape)])
}
