//! The dense operation and its gradients.
//!
//! Y = act(X W + 1 bᵀ). Rows are samples:
//!
//! | tensor | shape |
//! |---|---|
//! | X, dX | `[batch, inputs]` |
//! | W, dW | `[inputs, outputs]` (a weight stored `[outputs, inputs]`, as PyTorch does, is `w.transpose()`) |
//! | b, db | `[outputs]` |
//! | Y, dY | `[batch, outputs]` |
//!
//! With Z = X W + 1 bᵀ and dZ its gradient: dX = dZ Wᵀ, dW = Xᵀ dZ, db = Σ over rows of dZ. The backward calls
//! are those of this affine part: they take dZ, which is dY where the activation is the identity, and otherwise
//! what [`activation::backward`](crate::activation) makes of dY and Z.
//!
//! | call | runs |
//! |---|---|
//! | forward | one GEMM, bias and activation in its epilogue |
//! | `backward_input`, `backward_weight` | one GEMM each, over transposed views |
//! | `backward_bias` | sums of columns in a fixed order, columns in parallel |
#![forbid(unsafe_code)]

use crate::activation::Activation;
use crate::element::Element;
use crate::error::{Result, expect};
use crate::gemm::{Bias, Gemm, Operand};
use crate::parallel;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// Options of the dense operation: plain data.
///
/// ```
/// use tilewise::{TensorView, activation::Activation, linear::Dense};
/// let x = TensorView::from_slice(&[1.0f32, 2.0], [1, 2])?;
/// let w = TensorView::from_slice(&[1.0, -1.0, 3.0, 0.5, 1.0, -3.0], [2, 3])?;
/// let b = TensorView::from_slice(&[0.5, 0.0, 0.0], [3])?;
/// let y = Dense::new().activation(Activation::Relu).forward(x, w, Some(b))?;
/// assert_eq!(y.as_slice(), [2.5, 1.0, 0.0]);
/// # Ok::<(), tilewise::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dense {
    activation: Activation,
}

/// The gradients of the affine part, from [`Dense::backward`].
pub struct DenseGradients<T> {
    /// dX, `[batch, inputs]`.
    pub input: Tensor<T, 2>,
    /// dW, `[inputs, outputs]`.
    pub weight: Tensor<T, 2>,
    /// db, `[outputs]`.
    pub bias: Tensor<T, 1>,
}

/// Where [`Dense::backward_into`] writes; what is `None` is not computed.
pub struct DenseGradientsMut<'a, T> {
    /// dX, `[batch, inputs]`.
    pub input: Option<TensorViewMut<'a, T, 2>>,
    /// dW, `[inputs, outputs]`.
    pub weight: Option<TensorViewMut<'a, T, 2>>,
    /// db, `[outputs]`.
    pub bias: Option<TensorViewMut<'a, T, 1>>,
}

impl Dense {
    /// Y = X W + 1 bᵀ.
    pub fn new() -> Self {
        Self::default()
    }

    /// Applied to each element of the sum, in the GEMM's epilogue.
    pub fn activation(self, activation: Activation) -> Self {
        Self { activation }
    }

    /// Y `[batch, outputs]` from X `[batch, inputs]`, W `[inputs, outputs]` (a view, or packed by
    /// [`Packed::rhs`](crate::gemm::Packed::rhs)) and b `[outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit, [`Error::Packed`](crate::Error::Packed) where the weights were packed for something
    /// else, [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn forward<'a, T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        weight: impl Into<Operand<'a, T>>,
        bias: Option<TensorView<'_, T, 1>>,
    ) -> Result<Tensor<T, 2>> {
        let weight = weight.into();
        let shape = check_forward("Dense::forward", x, &weight, bias)?;
        let mut y = Tensor::zeros(shape)?;
        self.run(x, weight, bias, y.view_mut())?;
        Ok(y)
    }

    /// [`forward`](Self::forward) into `y`, whose old contents are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into<'a, T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        weight: impl Into<Operand<'a, T>>,
        bias: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let (op, weight) = ("Dense::forward_into", weight.into());
        let shape = check_forward(op, x, &weight, bias)?;
        expect(op, "y", &y.shape(), &shape)?;
        self.run(x, weight, bias, y)
    }

    fn run<T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        weight: Operand<'_, T>,
        bias: Option<TensorView<'_, T, 1>>,
        y: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let mut gemm = Gemm::new().activation(self.activation);
        if let Some(bias) = bias {
            gemm = gemm.bias(Bias::PerColumn(bias));
        }
        gemm.run(x, weight, y)
    }

    /// dX = dZ Wᵀ, `[batch, inputs]`, from dZ `[batch, outputs]` and W `[inputs, outputs]`.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit, [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    ///
    /// ```
    /// use tilewise::{TensorView, linear::Dense};
    /// let dz = TensorView::from_slice(&[1.0, 2.0], [1, 2])?;
    /// let w = TensorView::from_slice(&[1.0, 10.0, 0.0, -1.0], [2, 2])?;
    /// assert_eq!(Dense::new().backward_input(dz, w)?.as_slice(), [21.0, -2.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward_input<T: Element>(
        &self,
        dz: TensorView<'_, T, 2>,
        weight: TensorView<'_, T, 2>,
    ) -> Result<Tensor<T, 2>> {
        let shape = check_input("Dense::backward_input", dz, weight)?;
        let mut dx = Tensor::zeros(shape)?;
        Gemm::new().run(dz, weight.transpose(), dx.view_mut())?;
        Ok(dx)
    }

    /// dX = dZ Wᵀ + beta · dX: overwrites with beta 0, accumulates with beta 1.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input).
    pub fn backward_input_into<T: Element>(
        &self,
        dz: TensorView<'_, T, 2>,
        weight: TensorView<'_, T, 2>,
        beta: T,
        dx: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let op = "Dense::backward_input_into";
        expect(op, "dx", &dx.shape(), &check_input(op, dz, weight)?)?;
        Gemm::new().beta(beta).run(dz, weight.transpose(), dx)
    }

    /// dW = Xᵀ dZ, `[inputs, outputs]`, from X `[batch, inputs]` and dZ `[batch, outputs]`.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input).
    pub fn backward_weight<T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        dz: TensorView<'_, T, 2>,
    ) -> Result<Tensor<T, 2>> {
        let shape = check_weight("Dense::backward_weight", x, dz)?;
        let mut dw = Tensor::zeros(shape)?;
        Gemm::new().run(x.transpose(), dz, dw.view_mut())?;
        Ok(dw)
    }

    /// dW = Xᵀ dZ + beta · dW: overwrites with beta 0, accumulates with beta 1.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input).
    pub fn backward_weight_into<T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        dz: TensorView<'_, T, 2>,
        beta: T,
        dw: TensorViewMut<'_, T, 2>,
    ) -> Result<()> {
        let op = "Dense::backward_weight_into";
        expect(op, "dw", &dw.shape(), &check_weight(op, x, dz)?)?;
        Gemm::new().beta(beta).run(x.transpose(), dz, dw)
    }

    /// db = Σ over rows of dZ, `[outputs]`, from dZ `[batch, outputs]`.
    ///
    /// # Errors
    /// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn backward_bias<T: Element>(&self, dz: TensorView<'_, T, 2>) -> Result<Tensor<T, 1>> {
        let mut db = Tensor::zeros([dz.shape()[1]])?;
        sum_rows(dz, T::ZERO, db.view_mut())?;
        Ok(db)
    }

    /// db = Σ over rows of dZ + beta · db: overwrites with beta 0, accumulates with beta 1.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where shapes do not fit.
    pub fn backward_bias_into<T: Element>(
        &self,
        dz: TensorView<'_, T, 2>,
        beta: T,
        db: TensorViewMut<'_, T, 1>,
    ) -> Result<()> {
        expect("Dense::backward_bias_into", "db", &db.shape(), &dz.shape()[1..])?;
        sum_rows(dz, beta, db)
    }

    /// All gradients, from X `[batch, inputs]`, W `[inputs, outputs]` and dZ `[batch, outputs]`.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input).
    ///
    /// ```
    /// use tilewise::{TensorView, linear::Dense};
    /// let x = TensorView::from_slice(&[1.0, 2.0], [2, 1])?;
    /// let w = TensorView::from_slice(&[3.0], [1, 1])?;
    /// let dz = TensorView::from_slice(&[1.0, -1.0], [2, 1])?;
    /// let gradients = Dense::new().backward(x, w, dz)?;
    /// assert_eq!(gradients.input.as_slice(), [3.0, -3.0]);
    /// assert_eq!(gradients.weight.as_slice(), [-1.0]);
    /// assert_eq!(gradients.bias.as_slice(), [0.0]);
    /// # Ok::<(), tilewise::Error>(())
    /// ```
    pub fn backward<T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        weight: TensorView<'_, T, 2>,
        dz: TensorView<'_, T, 2>,
    ) -> Result<DenseGradients<T>> {
        check_backward("Dense::backward", x, weight, dz)?;
        Ok(DenseGradients {
            input: self.backward_input(dz, weight)?,
            weight: self.backward_weight(x, dz)?,
            bias: self.backward_bias(dz)?,
        })
    }

    /// The gradients asked for, each added to `beta` times what its output held: beta 0 overwrites, 1
    /// accumulates.
    ///
    /// # Errors
    /// As [`backward_input`](Self::backward_input); all shapes are checked before anything is written.
    pub fn backward_into<T: Element>(
        &self,
        x: TensorView<'_, T, 2>,
        weight: TensorView<'_, T, 2>,
        dz: TensorView<'_, T, 2>,
        beta: T,
        gradients: DenseGradientsMut<'_, T>,
    ) -> Result<()> {
        let op = "Dense::backward_into";
        check_backward(op, x, weight, dz)?;
        let DenseGradientsMut { input, weight: dw, bias } = gradients;
        if let Some(dx) = &input {
            expect(op, "gradients.input", &dx.shape(), &x.shape())?;
        }
        if let Some(dw) = &dw {
            expect(op, "gradients.weight", &dw.shape(), &weight.shape())?;
        }
        if let Some(db) = &bias {
            expect(op, "gradients.bias", &db.shape(), &dz.shape()[1..])?;
        }
        if let Some(dx) = input {
            self.backward_input_into(dz, weight, beta, dx)?;
        }
        if let Some(dw) = dw {
            self.backward_weight_into(x, dz, beta, dw)?;
        }
        bias.map_or(Ok(()), |db| self.backward_bias_into(dz, beta, db))
    }
}

/// The shape of Y.
fn check_forward<T: Element>(
    op: &'static str,
    x: TensorView<'_, T, 2>,
    weight: &Operand<'_, T>,
    bias: Option<TensorView<'_, T, 1>>,
) -> Result<[usize; 2]> {
    let [batch, inputs] = x.shape();
    let weight = match weight {
        Operand::View(view) => view.shape(),
        Operand::Packed(packed) => packed.shape(),
    };
    let outputs = weight[1];
    expect(op, "weight", &weight, &[inputs, outputs])?;
    if let Some(bias) = bias {
        expect(op, "bias", &bias.shape(), &[outputs])?;
    }
    Ok([batch, outputs])
}

/// The shape of dX.
fn check_input<T: Element>(
    op: &'static str,
    dz: TensorView<'_, T, 2>,
    weight: TensorView<'_, T, 2>,
) -> Result<[usize; 2]> {
    let ([batch, outputs], [inputs, _]) = (dz.shape(), weight.shape());
    expect(op, "weight", &weight.shape(), &[inputs, outputs])?;
    Ok([batch, inputs])
}

/// The shape of dW.
fn check_weight<T: Element>(
    op: &'static str,
    x: TensorView<'_, T, 2>,
    dz: TensorView<'_, T, 2>,
) -> Result<[usize; 2]> {
    let ([batch, inputs], [_, outputs]) = (x.shape(), dz.shape());
    expect(op, "dz", &dz.shape(), &[batch, outputs])?;
    Ok([inputs, outputs])
}

fn check_backward<T: Element>(
    op: &'static str,
    x: TensorView<'_, T, 2>,
    weight: TensorView<'_, T, 2>,
    dz: TensorView<'_, T, 2>,
) -> Result<()> {
    let ([batch, inputs], [_, outputs]) = (x.shape(), weight.shape());
    expect(op, "weight", &weight.shape(), &[inputs, outputs])?;
    expect(op, "dz", &dz.shape(), &[batch, outputs])
}

/// Columns summed at a time: their sums stay in registers or L1.
const COLUMNS: usize = 64;

/// Rows that are summed before the sum joins the total, so that rounding grows with `ROWS + rows / ROWS`.
const ROWS: usize = 64;

/// Fewest elements that a task is worth.
const GRAIN: usize = 1 << 16;

/// out = Σ over rows + beta · out, of one shape. Each column is summed in one order, whatever the tasks.
fn sum_rows<T: Element>(matrix: TensorView<'_, T, 2>, beta: T, out: TensorViewMut<'_, T, 1>) -> Result<()> {
    sum_rows_in(parallel::tasks(matrix.len(), GRAIN), matrix, beta, out)
}

fn sum_rows_in<T: Element>(
    tasks: usize,
    matrix: TensorView<'_, T, 2>,
    beta: T,
    mut out: TensorViewMut<'_, T, 1>,
) -> Result<()> {
    let [_, columns] = matrix.shape();
    if tasks > 1 && columns > COLUMNS {
        let at = columns.div_ceil(COLUMNS) / 2 * COLUMNS;
        let (low, high) = matrix.split_at(1, at)?;
        let (low_out, high_out) = out.split_at(0, at)?;
        let (first, second) = parallel::join(
            || sum_rows_in(tasks / 2, low, beta, low_out),
            || sum_rows_in(tasks - tasks / 2, high, beta, high_out),
        );
        return first.and(second);
    }
    for first in (0..columns).step_by(COLUMNS) {
        let count = COLUMNS.min(columns - first);
        let sums = sum_columns(matrix.slice(1, first..first + count, 1)?);
        for (j, &sum) in sums[..count].iter().enumerate() {
            if let Some(out) = out.get_mut([first + j]) {
                *out = if beta == T::ZERO { sum } else { sum + beta * *out };
            }
        }
    }
    Ok(())
}

/// The sums of at most [`COLUMNS`] columns.
fn sum_columns<T: Element>(matrix: TensorView<'_, T, 2>) -> [T; COLUMNS] {
    let [rows, columns] = matrix.shape();
    let mut total = [T::ZERO; COLUMNS];
    for first in (0..rows).step_by(ROWS) {
        let mut sums = [T::ZERO; COLUMNS];
        for i in first..rows.min(first + ROWS) {
            match matrix.row(i) {
                Some(row) => sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x),
                None => (0..columns).zip(&mut sums).for_each(|(j, sum)| {
                    *sum += matrix.get([i, j]).copied().unwrap_or(T::NAN);
                }),
            }
        }
        total.iter_mut().zip(sums).for_each(|(total, sum)| *total += sum);
    }
    total
}
