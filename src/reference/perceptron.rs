//! The perceptron, in both forms.

use super::{at, expect};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::TensorView;

/// A perceptron that has learned, and how it went.
#[derive(Clone, Debug, PartialEq)]
pub struct Learned {
    /// w.
    pub weights: Vec<f64>,
    /// b.
    pub bias: f64,
    /// The samples that were mistakes, in order.
    pub mistakes: Vec<usize>,
    /// True where the last pass was without mistakes.
    pub separable: bool,
}

/// The primal form from w = 0, b = 0, over samples X `[samples, features]` with labels 1 and −1.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) where there is not one label for each row.
///
/// ```
/// use tilewise::{TensorView, reference};
/// let x = TensorView::from_slice(&[3.0, 3.0, 4.0, 3.0, 1.0, 1.0], [3, 2])?;
/// let learned = reference::perceptron(x, &[1, 1, -1], 1.0, 100)?;
/// assert_eq!(learned.mistakes, [0, 2, 2, 2, 0, 2, 2]);
/// assert_eq!((learned.weights, learned.bias), (vec![1.0, 1.0], -3.0));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn perceptron<T: Element>(
    x: TensorView<'_, T, 2>,
    labels: &[i8],
    rate: f64,
    max_passes: usize,
) -> Result<Learned> {
    let [samples, features] = x.shape();
    expect("reference::perceptron", "labels", &[labels.len()], &[samples])?;
    let mut learned = Learned { weights: vec![0.0; features], bias: 0.0, mistakes: vec![], separable: false };
    for _ in 0..max_passes {
        let before = learned.mistakes.len();
        for (i, &label) in labels.iter().enumerate() {
            let mut score = learned.bias;
            for (j, w) in learned.weights.iter().enumerate() {
                score += w * at(x, [i, j]);
            }
            if f64::from(label) * score <= 0.0 {
                for (j, w) in learned.weights.iter_mut().enumerate() {
                    *w += rate * f64::from(label) * at(x, [i, j]);
                }
                learned.bias += rate * f64::from(label);
                learned.mistakes.push(i);
            }
        }
        if learned.mistakes.len() == before {
            learned.separable = true;
            break;
        }
    }
    Ok(learned)
}

/// The dual form, with margins summed anew from α and inner products of samples at every step; gives α beside what
/// the primal form gives.
///
/// # Errors
/// As [`perceptron`].
///
/// ```
/// use tilewise::{TensorView, reference};
/// let x = TensorView::from_slice(&[3.0, 3.0, 4.0, 3.0, 1.0, 1.0], [3, 2])?;
/// let (alpha, learned) = reference::dual_perceptron(x, &[1, 1, -1], 1.0, 100)?;
/// assert_eq!(alpha, [2.0, 0.0, 5.0]);
/// assert_eq!(learned, reference::perceptron(x, &[1, 1, -1], 1.0, 100)?);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn dual_perceptron<T: Element>(
    x: TensorView<'_, T, 2>,
    labels: &[i8],
    rate: f64,
    max_passes: usize,
) -> Result<(Vec<f64>, Learned)> {
    let [samples, features] = x.shape();
    expect("reference::dual_perceptron", "labels", &[labels.len()], &[samples])?;
    let mut learned = Learned { weights: vec![0.0; features], bias: 0.0, mistakes: vec![], separable: false };
    let mut alpha = vec![0.0; samples];
    for _ in 0..max_passes {
        let before = learned.mistakes.len();
        for (i, &label) in labels.iter().enumerate() {
            let mut score = learned.bias;
            for (j, &other) in labels.iter().enumerate() {
                let mut product = 0.0;
                for k in 0..features {
                    product += at(x, [j, k]) * at(x, [i, k]);
                }
                score += alpha[j] * f64::from(other) * product;
            }
            if f64::from(label) * score <= 0.0 {
                alpha[i] += rate;
                learned.bias += rate * f64::from(label);
                learned.mistakes.push(i);
            }
        }
        if learned.mistakes.len() == before {
            learned.separable = true;
            break;
        }
    }
    for (j, w) in learned.weights.iter_mut().enumerate() {
        for (i, &label) in labels.iter().enumerate() {
            *w += alpha[i] * f64::from(label) * at(x, [i, j]);
        }
    }
    Ok((alpha, learned))
}
