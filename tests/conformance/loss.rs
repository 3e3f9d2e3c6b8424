//! Losses: a class for each place of `[batch, classes, places…]`.

use tilewise::loss::{CrossEntropy, Reduction};
use tilewise::softmax::Softmax;
use tilewise::{Element, Tensor};

use super::{Array, Call, Result};

pub const OPERATORS: &[&str] = &["NegativeLogLikelihoodLoss", "SoftmaxCrossEntropyLoss"];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let (x, labels) = (call.need(0)?, call.need(1)?);
    let classes = x.shape[1];
    let mut order: Vec<usize> = (0..x.rank()).filter(|&axis| axis != 1).collect();
    order.push(1);
    let rows = x.permute(&order).to::<T, 2>([labels.data.len(), classes])?;
    // A class that is ignored may be one that cannot be, a negative one for example.
    const IGNORED: usize = usize::MAX;
    let ignored = call.attribute("ignore_index").map(|attribute| attribute.int as f64);
    let label = |&x: &f64| if Some(x) == ignored { IGNORED } else { x as usize };
    let targets: Vec<usize> = labels.data.iter().map(label).collect();
    let reduction = call.text("reduction").unwrap_or_else(|| "mean".to_owned());
    let mut loss = CrossEntropy::new().ignore_index(IGNORED);
    if call.node.operator == "NegativeLogLikelihoodLoss" {
        loss = loss.log_probabilities();
    }
    if reduction == "sum" {
        loss = loss.reduction(Reduction::Sum);
    }
    let weights = match call.input(2) {
        Some(weights) => weights.flat::<T>()?,
        None => Tensor::full([classes], T::ONE)?,
    };
    let target = (&targets[..], weights.view());
    let found = match (reduction.as_str(), call.input(2)) {
        ("none", Some(_)) => Array::new(loss.row_losses(rows.view(), target)?.as_slice(), &labels.shape),
        ("none", None) => Array::new(loss.row_losses(rows.view(), &targets)?.as_slice(), &labels.shape),
        (_, Some(_)) => Array::new(&[loss.forward(rows.view(), target)?], &[]),
        (_, None) => Array::new(&[loss.forward(rows.view(), &targets)?], &[]),
    };
    let mut outputs = vec![found];
    if call.wants(1) {
        let places = x.data.len() / x.shape[0] / classes;
        let images = x.to::<T, 3>([x.shape[0], classes, places])?;
        let y = Softmax::new(1).logarithm().forward(images.view())?;
        outputs.push(Array::new(y.as_slice(), &x.shape));
    }
    Ok(outputs)
}
