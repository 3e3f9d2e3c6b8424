//! Normalisation.

use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, RmsNormalization,
};
use tilewise::{Element, Tensor};

use super::{Array, Call, Result};

#[rustfmt::skip]
pub const OPERATORS: &[&str] = &[
    "BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization",
];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    match call.node.operator.as_str() {
        "LayerNormalization" | "RMSNormalization" => rows::<T>(call),
        _ => channels::<T>(call),
    }
}

/// All axes from one on are a row.
fn rows<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let x = call.need(0)?;
    let (outer, inner) = x.shape.split_at(call.axis(-1, x.rank()));
    let (rows, n) = (outer.iter().product(), inner.iter().product::<usize>());
    let epsilon = call.float("epsilon", 1e-5);
    let vector = |at| call.input(at).map(|x: &Array| x.broadcast(inner)?.flat::<T>()).transpose();
    let (scale, shift) = (vector(1)?, vector(2)?);
    let (scale, shift) = (scale.as_ref().map(Tensor::view), shift.as_ref().map(Tensor::view));
    let matrix = x.to::<T, 2>([rows, n])?;
    if call.node.operator == "RMSNormalization" {
        let y = RmsNormalization::new().epsilon(epsilon).forward(matrix.view(), scale)?;
        return Ok(vec![Array::new(y.as_slice(), &x.shape)]);
    }
    let norm = LayerNormalization::new().epsilon(epsilon);
    let mut outputs = vec![Array::new(norm.forward(matrix.view(), scale, shift)?.as_slice(), &x.shape)];
    if call.wants(1) {
        let found = norm.statistics(matrix.view())?;
        let shape = [outer, &vec![1; inner.len()]].concat();
        outputs.extend([found.mean, found.inverse_deviation].map(|x| Array::new(x.as_slice(), &shape)));
    }
    Ok(outputs)
}

fn channels<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let x = call.need(0)?;
    let [batch, channels] = [x.shape[0], x.shape[1]];
    let images = x.to::<T, 3>([batch, channels, x.shape[2..].iter().product()])?;
    let (scale, shift) = (call.need(1)?.flat::<T>()?, call.need(2)?.flat::<T>()?);
    let (scale, shift) = (Some(scale.view()), Some(shift.view()));
    let epsilon = call.float("epsilon", 1e-5);
    let y = match call.node.operator.as_str() {
        "GroupNormalization" => {
            let groups = call.int("num_groups", 1) as usize;
            GroupNormalization::new(groups).epsilon(epsilon).forward(images.view(), scale, shift)?
        }
        "InstanceNormalization" => {
            InstanceNormalization::new().epsilon(epsilon).forward(images.view(), scale, shift)?
        }
        _ => {
            let norm = BatchNormalization::new().epsilon(epsilon);
            let (mut mean, mut variance) = (call.need(3)?.flat::<T>()?, call.need(4)?.flat::<T>()?);
            if call.flag("training_mode") {
                let (y, found) = norm.forward_training(images.view(), scale, shift)?;
                // The momentum there is the share of the old.
                let momentum = 1.0 - call.float("momentum", 0.9);
                found.update_biased(momentum, mean.view_mut(), variance.view_mut())?;
                return Ok(vec![Array::new(y.as_slice(), &x.shape), mean.into(), variance.into()]);
            }
            norm.forward_inference(images.view(), mean.view(), variance.view(), scale, shift)?
        }
    };
    Ok(vec![Array::new(y.as_slice(), &x.shape)])
}
