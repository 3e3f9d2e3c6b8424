//! The dual form.

use super::sweep::TrainDual;
use super::{Outcome, Perceptron, Rule, check_labels};
use crate::element::Element;
use crate::error::{Result, expect};
use crate::gemm;
use crate::machine;
use crate::tensor::{Tensor, TensorView};

/// A perceptron kept as the number of times each sample was a mistake: w = Σ αⱼ yⱼ xⱼ, b = Σ αⱼ yⱼ.
///
/// It needs the samples only through their Gram matrix G = X Xᵀ `[samples, samples]`, which it computes once; a
/// mistake then costs one row of G. Worth it where features are more than samples.
///
/// ```
/// use tilewise::TensorView;
/// use tilewise::perceptron::{DualPerceptron, Rule};
///
/// let x = TensorView::from_slice(&[3.0, 3.0, 4.0, 3.0, 1.0, 1.0], [3, 2])?;
/// let mut dual = DualPerceptron::<f64>::new(x, &[1, 1, -1])?;
/// assert!(dual.fit(&Rule::new())?.separable);
/// assert_eq!(dual.alpha().as_slice(), Some(&[2.0, 0.0, 5.0][..]));
/// assert_eq!(dual.to_primal(x)?.weights().as_slice(), Some(&[1.0, 1.0][..]));
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct DualPerceptron<T> {
    gram: Tensor<T, 2>,
    labels: Tensor<i8, 1>,
    alpha: Tensor<T, 1>,
    /// Σ αⱼ yⱼ Gⱼᵢ for each sample i.
    products: Tensor<T, 1>,
    bias: T,
}

impl<T: Element> DualPerceptron<T> {
    /// α = 0, b = 0 over the samples X `[samples, features]` with a label, 1 or −1, for each row.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where there is not one label for each row,
    /// [`Error::Argument`](crate::Error::Argument) where one is neither 1 nor −1,
    /// [`Error::Alloc`](crate::Error::Alloc) where there is no memory for the Gram matrix.
    pub fn new(x: TensorView<'_, T, 2>, labels: &[i8]) -> Result<Self> {
        let [samples, _] = x.shape();
        check_labels("DualPerceptron::new", labels, samples)?;
        let mut gram = Tensor::zeros([samples, samples])?;
        gemm::gram(T::ONE, x, T::ZERO, gram.view_mut())?;
        Ok(Self {
            gram,
            labels: Tensor::from_slice(labels, [samples])?,
            alpha: Tensor::zeros([samples])?,
            products: Tensor::zeros([samples])?,
            bias: T::ZERO,
        })
    }

    /// G = X Xᵀ, `[samples, samples]`.
    pub fn gram(&self) -> TensorView<'_, T, 2> {
        self.gram.view()
    }

    /// α, `[samples]`: η times the number of mistakes at each sample.
    pub fn alpha(&self) -> TensorView<'_, T, 1> {
        self.alpha.view()
    }

    /// b.
    pub fn bias(&self) -> T {
        self.bias
    }

    /// Learns, beginning with what it knows.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) where the rate is not positive and finite.
    pub fn fit(&mut self, rule: &Rule<T>) -> Result<Outcome> {
        self.fit_traced(rule, |_| {})
    }

    /// [`fit`](Self::fit), calling `mistake` with the row of each mistake, in order.
    ///
    /// # Errors
    /// As [`fit`](Self::fit).
    pub fn fit_traced(&mut self, rule: &Rule<T>, mut mistake: impl FnMut(usize)) -> Result<Outcome> {
        rule.check("DualPerceptron::fit")?;
        let train = TrainDual {
            rule: *rule,
            labels: self.labels.as_slice(),
            gram: self.gram.as_slice(),
            alpha: self.alpha.as_mut_slice(),
            bias: &mut self.bias,
            products: self.products.as_mut_slice(),
            mistake: &mut mistake,
        };
        Ok(train.run(machine::isa()?))
    }

    /// The same perceptron in primal form: w = Σ αⱼ yⱼ xⱼ over the samples X `[samples, features]` that this one
    /// was made from.
    ///
    /// # Errors
    /// [`Error::Shape`](crate::Error::Shape) where X has another number of rows,
    /// [`Error::Alloc`](crate::Error::Alloc) where there is no memory.
    pub fn to_primal(&self, x: TensorView<'_, T, 2>) -> Result<Perceptron<T>> {
        let [_, features] = x.shape();
        let samples = self.alpha.len();
        expect("DualPerceptron::to_primal", "x", &x.shape(), &[samples, features])?;
        let mut signed = self.alpha.view().to_tensor()?.reshape([1, samples])?;
        let factors = signed.as_mut_slice().iter_mut().zip(&self.labels);
        factors.filter(|&(_, &label)| label < 0).for_each(|(factor, _)| *factor = -*factor);
        let mut weights = Tensor::zeros([1, features])?;
        gemm::gemm(T::ONE, signed.view(), x, T::ZERO, weights.view_mut())?;
        Ok(Perceptron::from_parts(weights.reshape([features])?, self.bias))
    }
}
