//! What the processes that measure hand to the one that reports: a line of JSON each.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    Peak(Peak),
    Peer(Peer),
    Result(Measured),
    Failure(Failure),
}

/// Medians and maxima over a run, in GFLOP/s and in GB/s.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Peak {
    pub threads: usize,
    pub isa: String,
    pub f32: Figure,
    pub f64: Figure,
    /// A buffer of 64 MiB read.
    pub read_64: Figure,
    /// A buffer of 256 MiB read.
    pub read_256: Figure,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Figure {
    pub median: f64,
    pub max: f64,
}

/// A library as it ran in one process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub process: String,
    pub threads: usize,
    pub peer: String,
    pub about: String,
    /// CPU time over wall time in a large product: how many threads were really at work.
    pub busy: f64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub process: String,
    pub threads: usize,
    pub workload: String,
    pub peer: String,
    /// Seconds.
    pub median: f64,
    /// Seconds.
    pub best: f64,
    /// Of the median.
    #[serde(default)]
    pub gflops: f64,
    /// Of the FMA peak of the same run, its highest reading, in percent.
    #[serde(default)]
    pub of_peak: f64,
}

/// A peer whose result was wrong, and so is not timed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Failure {
    pub process: String,
    pub threads: usize,
    pub workload: String,
    pub peer: String,
    pub why: String,
}
