//! Those who are compared: what each has to do, and who there is.

mod blas;
mod candle;
mod faer;
mod gemm;
mod matrixmultiply;
mod rten;
mod tilewise;
mod tract;

use crate::problem::Problem;

/// The library that all others are compared with.
pub const TILEWISE: &str = "tilewise";

/// A library that multiplies matrices.
pub trait Peer<T> {
    fn name(&self) -> &'static str;

    /// Its version and what it says of itself.
    fn about(&self) -> String;

    /// What happens before the clock starts. None where it has no such product.
    fn prepare<'p>(&'p self, problem: &'p Problem<T>) -> Option<Box<dyn Product<T> + 'p>>;
}

/// A product ready to be timed.
pub trait Product<T> {
    /// Computes C.
    fn run(&mut self, c: &mut [T]);

    /// Completes C after the clock has stopped, for those that do not write all of it themselves.
    fn complete(&mut self, _c: &mut [T]) {}
}

impl<T, F: FnMut(&mut [T])> Product<T> for F {
    fn run(&mut self, c: &mut [T]) {
        self(c);
    }
}

/// Boxes a closure that needs nothing to complete C.
fn product<'p, T>(run: impl FnMut(&mut [T]) + 'p) -> Option<Box<dyn Product<T> + 'p>> {
    Some(Box::new(run))
}

/// An element type, and those who multiply it.
pub trait Scalar: ::tilewise::Element {
    fn peers(threads: usize) -> Vec<Box<dyn Peer<Self>>>;
}

impl Scalar for f32 {
    fn peers(threads: usize) -> Vec<Box<dyn Peer<f32>>> {
        let mut peers: Vec<Box<dyn Peer<f32>>> = vec![
            Box::new(tilewise::Tilewise),
            Box::new(gemm::Gemm { threads }),
            Box::new(matrixmultiply::MatrixMultiply),
            Box::new(faer::Faer { threads }),
            Box::new(rten::Rten::new()),
            Box::new(tract::Tract::new(threads)),
            Box::new(candle::Candle),
        ];
        peers.extend(blas::found(threads).into_iter().map(|blas| Box::new(blas) as Box<dyn Peer<f32>>));
        peers
    }
}

impl Scalar for f64 {
    fn peers(threads: usize) -> Vec<Box<dyn Peer<f64>>> {
        let mut peers: Vec<Box<dyn Peer<f64>>> = vec![
            Box::new(tilewise::Tilewise),
            Box::new(gemm::Gemm { threads }),
            Box::new(matrixmultiply::MatrixMultiply),
            Box::new(faer::Faer { threads }),
            Box::new(candle::Candle),
        ];
        peers.extend(blas::found(threads).into_iter().map(|blas| Box::new(blas) as Box<dyn Peer<f64>>));
        peers
    }
}

/// The version of a crate, from this crate's lock file.
fn version(name: &str) -> String {
    let mut lines = include_str!("../../Cargo.lock").lines();
    let wanted = format!("name = \"{name}\"");
    lines.find(|line| **line == wanted);
    lines.next().unwrap_or_default().replace("version = ", "").replace('"', "")
}
