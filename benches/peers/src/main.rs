//! Holds Tilewise's matrix products against those of other libraries: see the README beside this crate.

mod child;
mod measure;
mod parent;
#[path = "../../support/peak.rs"]
mod peak;
mod peer;
mod plot;
mod problem;
mod record;
mod report;
mod table;
mod workload;

use std::error::Error;
use std::path::PathBuf;
use std::process::Command;

use clap::Parser;
use regex::Regex;

use measure::Plan;
use parent::Task;
use workload::Workload;

/// Times Tilewise's matrix products and those of other libraries on the same inputs, interleaved.
#[derive(Parser)]
struct Arguments {
    /// Only workloads whose name this regular expression matches.
    #[arg(long, default_value = "")]
    filter: Regex,
    /// Samples of each peer on each workload.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Numbers of threads.
    #[arg(long, value_delimiter = ',', default_value = "1,2")]
    threads: Vec<usize>,
    /// Only these peers; Tilewise always runs.
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// As on a machine without AVX-512: Tilewise and those peers that can be told so.
    #[arg(long, conflicts_with = "peers")]
    avx2: bool,
    /// What OpenBLAS takes the machine for, such as SkylakeX: one older than the processor takes it for the oldest there is.
    #[arg(long, conflicts_with = "avx2")]
    openblas_core: Option<String>,
    /// Three short rounds, and no workload above 3 GFLOP: to see that it runs, not to quote.
    #[arg(long)]
    quick: bool,
    /// Where the report goes.
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/target/report"))]
    out: PathBuf,
    /// A Python interpreter that has NumPy, PyTorch or ONNX Runtime.
    #[arg(long)]
    python: Option<PathBuf>,
    /// Measures: reads a task, and prints records.
    #[arg(long, hide = true)]
    child: bool,
}

impl Arguments {
    fn task(&self, threads: usize) -> Task {
        let mut workloads = Workload::all();
        workloads.retain(|workload| {
            self.filter.is_match(&workload.name) && !(self.quick && workload.flops() > 3e9)
        });
        Task {
            threads,
            plan: Plan {
                rounds: if self.quick { 3 } else { self.rounds.max(1) },
                sample: if self.quick { 1e-3 } else { 6e-3 },
                pause: if threads > 1 { 10e-3 } else { 0.0 },
                warm_up: if threads > 1 { 30e-3 } else { 0.0 },
            },
            peers: if self.avx2 { parent::TOLD.map(String::from).to_vec() } else { self.peers.clone() },
            avx2: self.avx2,
            workloads,
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse();
    if arguments.child {
        let task: Task = serde_json::from_reader(std::io::stdin())?;
        rayon::ThreadPoolBuilder::new().num_threads(task.threads).build_global()?;
        // On a thread of the pool, so that no peer that works there pays for being called from outside.
        rayon::scope(|_| child::run(&task));
        return Ok(());
    }
    let mut records = Vec::new();
    for &threads in &arguments.threads {
        let task = arguments.task(threads);
        let (program, core) = (std::env::current_exe()?, arguments.openblas_core.as_deref());
        records.extend(parent::gather(Command::new(program).arg("--child"), &task, core)?);
        match &arguments.python {
            // NumPy brings an OpenBLAS of its own, which is newer.
            Some(python) => records.extend(parent::gather(&mut parent::python(python)?, &task, None)?),
            None => eprintln!("no --python: its peers are left out"),
        }
    }
    report::write(records, &Workload::all(), &arguments.out)
}
