//! Starts the processes that measure, one for each number of threads, and gathers their records.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use indicatif::{ProgressBar, ProgressStyle};
use serde::{Deserialize, Serialize};

use crate::measure::Plan;
use crate::record::Record;
use crate::workload::Workload;

/// Variables that say how many threads a library may start.
const THREADS: &[&str] = &[
    "RAYON_NUM_THREADS",
    "CANDLE_NUM_THREADS",
    "MATMUL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
];

/// Variables that let a library's waiting threads sleep soon after its last call, in the pause before another's
/// turn: a millisecond for OpenMP as MKL has it, 2²² cycles for OpenBLAS. In a loop of calls they go on waiting busily.
const WAITING: &[(&str, &str)] = &[("KMP_BLOCKTIME", "1"), ("OPENBLAS_THREAD_TIMEOUT", "22")];

/// Variables, beside those of [`AVX2`], that would make a library run other kernels than it chooses for this machine.
const FORCED: &[&str] = &["OPENBLAS_L2_SIZE", "MKL_DEBUG_CPU_TYPE"];

/// Peers that can be told to do without AVX-512, and the variables that tell them and Tilewise.
pub const TOLD: [&str; 4] = ["openblas", "mkl", "numpy", "pytorch"];
const AVX2: &[(&str, &str)] = &[
    ("TILEWISE_ISA", "avx2"),
    ("OPENBLAS_CORETYPE", "Haswell"),
    ("MKL_ENABLE_INSTRUCTIONS", "AVX2"),
    ("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ("ATEN_CPU_CAPABILITY", "avx2"),
];

/// What a measuring process reads on its standard input.
#[derive(Serialize, Deserialize)]
pub struct Task {
    pub threads: usize,
    pub plan: Plan,
    /// Empty for all.
    pub peers: Vec<String>,
    /// Nobody uses AVX-512.
    pub avx2: bool,
    pub workloads: Vec<Workload>,
}

/// Runs a command that reads a task and prints records; `openblas_core` is what OpenBLAS takes the machine for there, if not what it finds.
pub fn gather(
    command: &mut Command,
    task: &Task,
    openblas_core: Option<&str>,
) -> Result<Vec<Record>, Box<dyn Error>> {
    command.envs(THREADS.iter().map(|name| (name, task.threads.to_string()))).envs(WAITING.iter().copied());
    for name in FORCED {
        command.env_remove(name);
    }
    for (name, value) in AVX2 {
        if task.avx2 {
            command.env(name, value)
        } else {
            command.env_remove(name)
        };
    }
    if let Some(core) = openblas_core {
        command.env("OPENBLAS_CORETYPE", core);
    }
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    // Dropped at the end of the statement, which tells the process that there is no more.
    serde_json::to_writer(child.stdin.take().ok_or("no standard input")?, task)?;
    let output = child.stdout.take().ok_or("no standard output")?;
    let progress = Progress::new(task);
    let records = BufReader::new(output)
        .lines()
        .map(|line| {
            let line = line?;
            let record = serde_json::from_str(&line).map_err(|error| format!("{error}: {line}"))?;
            progress.follow(&record);
            Ok(record)
        })
        .collect::<Result<Vec<Record>, Box<dyn Error>>>()?;
    progress.bar.finish_and_clear();
    let status = child.wait()?;
    if status.success() {
        Ok(records)
    } else {
        Err(format!("a measuring process ended with {status}").into())
    }
}

/// The script that measures libraries with a Python interface, and Tilewise beside them, by its C interface.
pub fn python(interpreter: &Path) -> Result<Command, Box<dyn Error>> {
    let mut command = Command::new(interpreter);
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("python/peers.py"));
    command.arg(std::env::current_exe()?.with_file_name(format!("{DLL_PREFIX}tilewise_c{DLL_SUFFIX}")));
    Ok(command)
}

/// Shows which workload is being measured: the one after the last of which there is a result.
struct Progress<'t> {
    bar: ProgressBar,
    workloads: &'t [Workload],
}

impl<'t> Progress<'t> {
    fn new(task: &'t Task) -> Self {
        let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {elapsed} {msg}");
        let bar = ProgressBar::new(task.workloads.len() as u64).with_style(style.expect("a valid template"));
        bar.set_prefix(format!("{} thread(s)", task.threads));
        Progress { bar, workloads: &task.workloads }
    }

    fn follow(&self, record: &Record) {
        let Record::Result(result) = record else { return };
        let Some(index) = self.workloads.iter().position(|workload| workload.name == result.workload) else {
            return;
        };
        self.bar.set_position(index as u64 + 1);
        self.bar.set_message(self.workloads.get(index + 1).map_or("", |workload| &workload.name).to_owned());
    }
}
