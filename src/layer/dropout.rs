//! Dropout.

use super::describe::debug;
use super::{Layer, Parameter, Parameters, not_called};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::parallel;
use crate::random;
use crate::tensor::{Tensor, TensorView};

/// Elements that share a look at the generator's key; tasks are cut between them.
const CHUNK: usize = 1 << 12;

/// Fewest elements a task is worth.
const GRAIN: usize = 1 << 15;

/// In training, each element of tensors of rank `N` is 0 with probability p, else multiplied by 1/(1 − p); in inference
/// all stay as they are. No parameters.
///
/// [`forward`](Layer::forward) is training, [`infer`](Layer::infer) is not. Which elements stay depends on the seed, the
/// number of the call and the place in row-major order alone: not on strides, element type, threads or machine. Nothing
/// is kept but the number of the call. Source: Nitish Srivastava et al., "Dropout: a simple way to prevent neural
/// networks from overfitting", JMLR 15 (2014).
///
/// ```
/// use tilewise::{Tensor, layer::{Dropout, Layer}};
/// let mut layer = Dropout::<f32>::new(0.5, 7)?;
/// let x = Tensor::full([10, 10], 1.0)?;
/// let y = layer.forward(x.view())?;
/// assert!(y.iter().all(|&y| y == 0.0 || y == 2.0));
/// assert!(layer.backward(x.view())? == y); // the same elements
/// assert!(layer.infer(x.view())? == x);
/// # Ok::<(), tilewise::Error>(())
/// ```
pub struct Dropout<T, const N: usize = 2> {
    probability: f64,
    seed: u64,
    calls: u64,
    /// Key and shape of the last call of `forward`.
    last: Option<(u64, [usize; N])>,
    element: std::marker::PhantomData<T>,
}

impl<T: Element, const N: usize> Dropout<T, N> {
    /// A layer that makes an element 0 with this probability.
    ///
    /// # Errors
    /// [`Error::Argument`] where it is not in 0 … 1.
    pub fn new(probability: f64, seed: u64) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::argument("Dropout::new", "probability", probability, "from 0 to 1"));
        }
        Ok(Self { probability, seed, calls: 0, last: None, element: std::marker::PhantomData })
    }

    /// The key of the last call, whose shape was this.
    fn key(&self, dy: [usize; N]) -> Result<u64> {
        let op = "Dropout::backward";
        let (key, expected) = self.last.ok_or_else(|| not_called(op))?;
        expect(op, "dy", &dy, &expected)?;
        Ok(key)
    }

    fn apply(&self, key: u64, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let mut y = x.to_tensor()?;
        // Dropped where the 32 random bits are below: exact to 2⁻³².
        let threshold = (self.probability * 2f64.powi(32)).round() as u64;
        let kept = if self.probability < 1.0 { 1.0 / (1.0 - self.probability) } else { 0.0 };
        let kept = T::from_f64(kept);
        let tasks = parallel::tasks(y.len(), GRAIN);
        parallel::for_each_chunk_mut(y.as_mut_slice(), CHUNK, tasks, &|first, run| {
            // One value of the generator for two neighbours.
            for (number, pair) in ((first * CHUNK / 2) as u64..).zip(run.chunks_mut(2)) {
                let bits = random::at(key, number);
                for (x, bits) in pair.iter_mut().zip([bits & 0xFFFF_FFFF, bits >> 32]) {
                    *x = if bits < threshold { T::ZERO } else { *x * kept };
                }
            }
        });
        Ok(y)
    }
}

debug!([T: Element, const N: usize] Dropout<T, N>, "Dropout", probability, seed);

impl<T: Element, const N: usize> Parameters<T> for Dropout<T, N> {
    fn visit(&self, _: &mut dyn FnMut(&str, &Parameter<T>)) {}

    fn visit_mut(&mut self, _: &mut dyn FnMut(&str, &mut Parameter<T>)) {}
}

impl<T: Element, const N: usize> Layer<T, N, N> for Dropout<T, N> {
    fn check_forward(&self, x: [usize; N]) -> Result<[usize; N]> {
        Ok(x)
    }

    fn check_backward(&self, dy: [usize; N]) -> Result<[usize; N]> {
        self.key(dy).map(|_| dy)
    }

    fn forward(&mut self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        let key = random::at(self.seed, self.calls);
        let y = self.apply(key, x)?;
        self.calls = self.calls.wrapping_add(1);
        self.last = Some((key, x.shape()));
        Ok(y)
    }

    fn infer(&self, x: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        x.to_tensor()
    }

    fn backward(&mut self, dy: TensorView<'_, T, N>) -> Result<Tensor<T, N>> {
        self.apply(self.key(dy.shape())?, dy)
    }
}
