//! Completes the records and writes the report.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::record::{Peak, Record};
use crate::workload::{Dtype, Workload};
use crate::{plot, table};

pub fn write(mut records: Vec<Record>, workloads: &[Workload], out: &Path) -> Result<(), Box<dyn Error>> {
    complete(&mut records, workloads);
    fs::create_dir_all(out)?;
    let mut lines = String::new();
    for record in &records {
        writeln!(lines, "{}", serde_json::to_string(record)?)?;
    }
    fs::write(out.join("results.jsonl"), lines)?;
    let table = table::render(&records, workloads);
    fs::write(out.join("table.md"), &table)?;
    plot::write(&records, workloads, out)?;
    println!("{table}");
    eprintln!("written to {}", out.display());
    Ok(())
}

pub fn peak(records: &[Record], threads: usize) -> Option<&Peak> {
    records.iter().find_map(|record| match record {
        Record::Peak(peak) if peak.threads == threads => Some(peak),
        _ => None,
    })
}

/// Rates follow from times once the peaks are known, which is at the end of a run.
fn complete(records: &mut [Record], workloads: &[Workload]) {
    let peaks = records.to_vec();
    for record in records {
        let Record::Result(result) = record else { continue };
        let Some(workload) = workloads.iter().find(|workload| workload.name == result.workload) else {
            continue;
        };
        result.gflops = workload.flops() / result.median / 1e9;
        let Some(peak) = peak(&peaks, result.threads) else { continue };
        let most = if workload.dtype == Dtype::F32 { peak.f32.max } else { peak.f64.max };
        result.of_peak = 100.0 * result.gflops / most;
    }
}
