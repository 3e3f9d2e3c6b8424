//! Weights as PyTorch and ONNX keep them.
//!
//! | | LSTM | GRU | directions | biases |
//! |---|---|---|---|---|
//! | here, PyTorch, cuDNN | i, f, g, o | r, z, n | here one tensor, in PyTorch one each | two vectors |
//! | ONNX | i, o, f, c | z, r, h | one tensor | one vector, that of U before that of W |
//!
//! c and g, and h and n, are names of one gate.
//!
//! What the attributes of ONNX's operators RNN, LSTM and GRU are called here:
//!
//! | ONNX | here |
//! |---|---|
//! | `activations` f (RNN) | [`Elman::activation`](super::Elman::activation) |
//! | `activations` f, g, h (LSTM) | [`Lstm::activations`](super::Lstm::activations): of i, f and o, of g, of c on its way to h |
//! | `activations` f, g (GRU) | [`Gru::activations`](super::Gru::activations): of r and z, of n |
//! | the second half of `activations` | `reverse_activation`, `reverse_activations` |
//! | `activation_alpha`, `activation_beta` | [`onnx_activations`] takes them |
//! | `clip` | `activation_clip`; [`Lstm::clip`](super::Lstm::clip) is another thing |
//! | `input_forget` | [`Lstm::coupled`](super::Lstm::coupled) |
//! | `linear_before_reset` = 1 or 0 | [`Reset::After`](super::Reset::After) or [`Reset::Before`](super::Reset::Before) |
//! | `direction` | [`Direction`](super::Direction) |
#![forbid(unsafe_code)]

use super::descriptor::Recurrent;
use super::weights::{DirectionWeights, WeightTensors, Weights};
use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::tensor::{Tensor, TensorView};

impl<T: Element> WeightTensors<T> {
    /// Views of all of them.
    pub fn view(&self) -> Weights<'_, T> {
        Weights {
            input: self.input.view(),
            recurrent: self.recurrent.view(),
            bias: self.bias.as_ref().map(Tensor::view),
            recurrent_bias: self.recurrent_bias.as_ref().map(Tensor::view),
            peephole: self.peephole.as_ref().map(Tensor::view),
            projection: self.projection.as_ref().map(Tensor::view),
        }
    }

    /// From PyTorch's `weight_ih_lK`, `weight_hh_lK`, `bias_ih_lK`, `bias_hh_lK` and `weight_hr_lK`: the forward direction
    /// and, where there is one, that whose names end in `_reverse`. The order of gates is the same here.
    ///
    /// # Errors
    /// [`Error::Shape`] where the shapes of the directions differ, [`Error::Argument`] where one has what the other has
    /// not, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::rnn::{DirectionWeights, WeightTensors};
    /// use tilewise::Tensor;
    /// let (w_ih, w_hh) = (Tensor::<f32, 2>::zeros([3 * 4, 2])?, Tensor::<f32, 2>::zeros([3 * 4, 4])?);
    /// let (input, recurrent) = (w_ih.view(), w_hh.view());
    /// let gru = DirectionWeights { input, recurrent, bias: None, recurrent_bias: None, peephole: None, projection: None };
    /// assert_eq!(WeightTensors::from_pytorch(gru, Some(gru))?.recurrent.shape(), [2, 12, 4]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn from_pytorch(
        forward: DirectionWeights<'_, T>,
        reverse: Option<DirectionWeights<'_, T>>,
    ) -> Result<Self> {
        macro_rules! both {
            ($part:ident) => {
                stack(stringify!($part), forward.$part, reverse.map(|reverse| reverse.$part))?
            };
        }
        macro_rules! maybe {
            ($part:ident) => {
                match (forward.$part, reverse.map(|reverse| reverse.$part)) {
                    (None, None | Some(None)) => None,
                    (Some(one), None) => Some(stack(stringify!($part), one, None)?),
                    (Some(one), Some(Some(two))) => Some(stack(stringify!($part), one, Some(two))?),
                    _ => {
                        let expected = "in both directions or in none";
                        return Err(Error::argument(PYTORCH, stringify!($part), "given in one", expected));
                    }
                }
            };
        }
        Ok(Self {
            input: both!(input),
            recurrent: both!(recurrent),
            bias: maybe!(bias),
            recurrent_bias: maybe!(recurrent_bias),
            peephole: maybe!(peephole),
            projection: maybe!(projection),
        })
    }

    /// From the inputs W `[directions, gates·hidden, inputs]`, R `[directions, gates·hidden, hidden]`, B `[directions,
    /// 2·gates·hidden]` and P `[directions, 3·hidden]` of ONNX's operators RNN, LSTM and GRU, whose order of gates is
    /// another. A GRU with the attribute `linear_before_reset` = 0 is [`Reset::Before`](super::Reset::Before).
    ///
    /// # Errors
    /// [`Error::Shape`] where shapes do not fit, [`Error::Alloc`] where there is no memory.
    ///
    /// ```
    /// use tilewise::rnn::{Gru, WeightTensors};
    /// use tilewise::TensorView;
    /// // hidden = 1: the rows are z, r, h.
    /// let w = TensorView::from_slice(&[10.0, 20.0, 30.0], [1, 3, 1])?;
    /// let b = TensorView::from_slice(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [1, 6])?;
    /// let weights = WeightTensors::from_onnx(Gru::new(), w, w, Some(b), None)?;
    /// assert_eq!(weights.input.as_slice(), [20.0, 10.0, 30.0]); // r, z, n
    /// assert_eq!(weights.recurrent_bias.unwrap().as_slice(), [5.0, 4.0, 6.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn from_onnx(
        cell: impl Recurrent,
        w: TensorView<'_, T, 3>,
        r: TensorView<'_, T, 3>,
        b: Option<TensorView<'_, T, 2>>,
        p: Option<TensorView<'_, T, 2>>,
    ) -> Result<Self> {
        const OP: &str = "rnn::from_onnx";
        let gates = cell.gates();
        let [directions, rows, inputs] = w.shape();
        let hidden = rows / gates;
        expect(OP, "w", &w.shape(), &[directions, gates * hidden, inputs])?;
        expect(OP, "r", &r.shape(), &[directions, rows, hidden])?;
        let twice = rows.checked_mul(2);
        let twice = twice.ok_or_else(|| Error::Overflow { op: OP, shape: crate::Dims::new(&[2, rows]) })?;
        b.map_or(Ok(()), |b| expect(OP, "b", &b.shape(), &[directions, twice]))?;
        if let Some(p) = p {
            if gates != 4 {
                return Err(Error::argument(OP, "p", "given", "none, but with an LSTM"));
            }
            expect(OP, "p", &p.shape(), &[directions, 3 * hidden])?;
        }
        // For each gate here, where ONNX has it.
        let order: &[usize] = match gates {
            4 => &[0, 2, 3, 1],
            3 => &[1, 0, 2],
            _ => &[0],
        };
        let vector = |view: TensorView<'_, T, 2>, first: usize, order: &[usize]| {
            let rows = order.len() * hidden;
            let view = view.slice(1, first * rows..(first + 1) * rows, 1)?;
            let from = |row: usize| order[row / hidden] * hidden + row % hidden;
            Tensor::from_fn([directions, rows], |[d, row]| get(view, [d, from(row)]))
        };
        let matrix = |view: TensorView<'_, T, 3>| {
            let from = |row: usize| order[row / hidden] * hidden + row % hidden;
            Tensor::from_fn(view.shape(), |[d, row, column]| get(view, [d, from(row), column]))
        };
        Ok(Self {
            input: matrix(w)?,
            recurrent: matrix(r)?,
            bias: b.map(|b| vector(b, 0, order)).transpose()?,
            recurrent_bias: b.map(|b| vector(b, 1, order)).transpose()?,
            // i, o, f there.
            peephole: p.map(|p| vector(p, 0, &[0, 2, 1])).transpose()?,
            projection: None,
        })
    }
}

/// The activations that ONNX's attributes `activations`, `activation_alpha` and `activation_beta` name: α and β go to
/// those that have one, in order, and where they run out the defaults of
/// [`Activation::from_onnx`](crate::activation::Activation::from_onnx) stand.
///
/// # Errors
/// [`Error::Argument`] where a name is none of ONNX's.
///
/// ```
/// use tilewise::activation::Activation::{HardSigmoid, LeakyRelu, Tanh};
/// use tilewise::rnn::{Lstm, onnx_activations};
/// let found = onnx_activations(["HardSigmoid", "Tanh", "LeakyRelu"], &[0.25, 0.1], &[0.5])?;
/// assert_eq!(found, [HardSigmoid { alpha: 0.25, beta: 0.5 }, Tanh, LeakyRelu { slope: 0.1 }]);
/// let lstm = Lstm::new().activations([found[0], found[1], found[2]]);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub fn onnx_activations<'n>(
    names: impl IntoIterator<Item = &'n str>,
    alphas: &[f64],
    betas: &[f64],
) -> Result<Vec<Activation>> {
    let (mut alphas, mut betas) = (alphas.iter().copied(), betas.iter().copied());
    let of = |name: &'n str| match Activation::from_onnx(name, None, None)? {
        Activation::Affine { .. } | Activation::HardSigmoid { .. } | Activation::ScaledTanh { .. } => {
            Activation::from_onnx(name, alphas.next(), betas.next())
        }
        Activation::Elu { .. } | Activation::LeakyRelu { .. } | Activation::ThresholdedRelu { .. } => {
            Activation::from_onnx(name, alphas.next(), None)
        }
        plain => Ok(plain),
    };
    names.into_iter().map(of).collect()
}

const PYTORCH: &str = "rnn::from_pytorch";

fn get<T: Element, const N: usize>(view: TensorView<'_, T, N>, index: [usize; N]) -> T {
    view.get(index).copied().unwrap_or(T::NAN)
}

/// One or two of a shape, one after the other along a new first axis.
fn stack<T: Element, const N: usize, const M: usize>(
    arg: &'static str,
    one: TensorView<'_, T, N>,
    two: Option<TensorView<'_, T, N>>,
) -> Result<Tensor<T, M>> {
    let directions = 1 + usize::from(two.is_some());
    if let Some(two) = two {
        expect(PYTORCH, arg, &two.shape(), &one.shape())?;
    }
    let shape = std::array::from_fn(|axis| if axis == 0 { directions } else { one.shape()[axis - 1] });
    let mut tensor = Tensor::zeros(shape)?;
    tensor.view_mut().select::<N>(0, 0)?.assign(one)?;
    if let Some(two) = two {
        tensor.view_mut().select::<N>(0, 1)?.assign(two)?;
    }
    Ok(tensor)
}
