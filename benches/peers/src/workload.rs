//! The products that are timed, read from the file that the Python script reads too.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    F32,
    F64,
}

/// Which operands are stored transposed: `Nt` is C = A · Bᵀ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Layout {
    Nn,
    Nt,
    Tn,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Workload {
    pub name: String,
    pub dtype: Dtype,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub layout: Layout,
    /// B may be packed before the clock starts, by those who can.
    pub prepacked: bool,
    pub batch: usize,
    /// C = A · Aᵀ.
    pub gram: bool,
}

impl Workload {
    pub fn all() -> Vec<Self> {
        serde_json::from_str(include_str!("../workloads.json")).expect("workloads.json is well formed")
    }

    /// Useful operations, a multiply-add being two. A Gram matrix is symmetric: one triangle of it is useful.
    pub fn flops(&self) -> f64 {
        let elements = if self.gram { self.m * (self.m + 1) / 2 } else { self.m * self.n };
        2.0 * (self.batch * elements * self.k) as f64
    }

    /// Bytes of all operands, each moved once, where moving them takes longer than multiplying on any machine
    /// of today: at up to this many operations a byte.
    pub fn bytes_that_bind(&self) -> Option<f64> {
        const OPERATIONS: f64 = 4.0;
        let b = if self.gram { 0 } else { self.k * self.n };
        let elements = self.batch * (self.m * self.k + b + self.m * self.n);
        let bytes = (elements * if self.dtype == Dtype::F32 { 4 } else { 8 }) as f64;
        // What fits in a cache that one core has for itself is not moved at all.
        (bytes > (8 << 20) as f64 && self.flops() / bytes <= OPERATIONS).then_some(bytes)
    }

    /// The side of a plain square product.
    pub fn square(&self) -> Option<usize> {
        let plain = self.batch == 1 && !self.gram && !self.prepacked && self.layout == Layout::Nn;
        (plain && self.m == self.n && self.n == self.k).then_some(self.m)
    }
}
