//! The table, in Markdown.

use std::fmt::Write as _;

use crate::peer::TILEWISE;
use crate::record::{Measured, Peer, Record};
use crate::report::peak;
use crate::workload::Workload;

pub fn render(records: &[Record], workloads: &[Workload]) -> String {
    let mut threads: Vec<usize> = peers(records).map(|peer| peer.threads).collect();
    threads.sort_unstable();
    threads.dedup();
    let mut text = String::from("# Tilewise and its peers\n");
    for threads in threads {
        section(&mut text, records, workloads, threads).expect("a string takes any text");
    }
    text
}

fn section(
    text: &mut String,
    records: &[Record],
    workloads: &[Workload],
    threads: usize,
) -> std::fmt::Result {
    writeln!(text, "\n## {threads} thread(s)\n")?;
    if let Some(peak) = peak(records, threads) {
        writeln!(
            text,
            "Peaks in this run, median (highest): {:.1} ({:.1}) GFLOP/s f32, {:.1} ({:.1}) f64 with {}; \
             {:.1} ({:.1}) GB/s read from 64 MiB, {:.1} ({:.1}) from 256 MiB.\n",
            peak.f32.median,
            peak.f32.max,
            peak.f64.median,
            peak.f64.max,
            peak.isa,
            peak.read_64.median,
            peak.read_64.max,
            peak.read_256.median,
            peak.read_256.max,
        )?;
    }
    writeln!(text, "| peer | in | version | CPU time / wall time |\n| --- | --- | --- | --- |")?;
    let mut columns: Vec<&str> = Vec::new();
    for peer in peers(records).filter(|peer| peer.threads == threads) {
        let off = (peer.busy - threads as f64).abs() > 0.3 * threads as f64;
        let mark = if off { " **(!)**" } else { "" };
        writeln!(text, "| {} | {} | {} | {:.2}{mark} |", peer.peer, peer.process, peer.about, peer.busy)?;
        if peer.peer != TILEWISE && !columns.contains(&peer.peer.as_str()) {
            columns.push(&peer.peer);
        }
    }
    let processes: Vec<&str> = own(records, threads).map(|own| own.process.as_str()).collect();
    write!(text, "\n| workload | of peak | best peer | ratio |")?;
    processes.iter().try_for_each(|process| write!(text, " tilewise in {process} |"))?;
    columns.iter().try_for_each(|peer| write!(text, " {peer} |"))?;
    let numbers = " ---: |".repeat(processes.len() + columns.len());
    writeln!(text, "\n| --- | --- | --- | ---: |{numbers}")?;
    let results: Vec<&Measured> = results(records).filter(|result| result.threads == threads).collect();
    let mut ratios: Vec<(f64, &str)> = Vec::new();
    for workload in workloads {
        let row: Vec<_> = results.iter().copied().filter(|r| r.workload == workload.name).collect();
        let Some(own) = row.iter().find(|result| result.peer == TILEWISE) else { continue };
        write!(text, "| {} | {:.1} %", workload.name, own.of_peak)?;
        if let (Some(bytes), Some(peak)) = (workload.bytes_that_bind(), peak(records, threads)) {
            let rate = bytes / own.median / 1e9;
            write!(text, ", {:.0} % of read", 100.0 * rate / peak.read_64.max)?;
        }
        write!(text, " |")?;
        match best_peer(&row) {
            Some((peer, ratio)) => {
                write!(text, " {peer} | {} |", if ratio < 1.0 { bold(ratio) } else { plain(ratio) })?;
                ratios.push((ratio, &workload.name));
            }
            None => write!(text, " | |")?,
        }
        for process in &processes {
            match row.iter().find(|own| own.peer == TILEWISE && own.process == *process) {
                Some(own) => write!(text, " {:.1} |", own.gflops)?,
                None => write!(text, " |")?,
            }
        }
        for peer in &columns {
            match row.iter().find(|result| result.peer == *peer) {
                Some(result) => write!(text, " {:.1} |", result.gflops)?,
                None if failed(records, threads, &workload.name, peer) => write!(text, " wrong |")?,
                None => write!(text, " |")?,
            }
        }
        writeln!(text)?;
    }
    if let Some(worst) = ratios.iter().min_by(|a, b| a.0.total_cmp(&b.0)) {
        let mean = (ratios.iter().map(|(ratio, _)| ratio.ln()).sum::<f64>() / ratios.len() as f64).exp();
        let ahead = ratios.iter().filter(|(ratio, _)| *ratio >= 1.0).count();
        writeln!(
            text,
            "\nBest peer's time / Tilewise's: geometric mean {mean:.3}, worst {:.3} ({}), at least 1 in {ahead} \
             of {}.",
            worst.0,
            worst.1,
            ratios.len()
        )?;
    }
    failures(text, records, threads)
}

fn failures(text: &mut String, records: &[Record], threads: usize) -> std::fmt::Result {
    for record in records {
        if let Record::Failure(failure) = record
            && failure.threads == threads
        {
            let (peer, workload) = (&failure.peer, &failure.workload);
            writeln!(text, "\nWrong, and not counted: {peer} on {workload}: {}.", failure.why)?;
        }
    }
    Ok(())
}

/// The peer with the least time in units of Tilewise's in the same process, and that ratio.
fn best_peer<'r>(row: &[&'r Measured]) -> Option<(&'r str, f64)> {
    let own = |process: &str| row.iter().find(|own| own.peer == TILEWISE && own.process == process);
    let ratio =
        |result: &&'r Measured| Some((result.peer.as_str(), result.median / own(&result.process)?.median));
    row.iter().filter(|result| result.peer != TILEWISE).filter_map(ratio).min_by(|a, b| a.1.total_cmp(&b.1))
}

fn plain(ratio: f64) -> String {
    format!("{ratio:.3}")
}

fn bold(ratio: f64) -> String {
    format!("**{ratio:.3}**")
}

fn failed(records: &[Record], threads: usize, workload: &str, peer: &str) -> bool {
    records.iter().any(|record| match record {
        Record::Failure(failure) => {
            failure.threads == threads && failure.workload == workload && failure.peer == peer
        }
        _ => false,
    })
}

/// Tilewise in each process.
fn own(records: &[Record], threads: usize) -> impl Iterator<Item = &Peer> {
    peers(records).filter(move |peer| peer.threads == threads && peer.peer == TILEWISE)
}

fn peers(records: &[Record]) -> impl Iterator<Item = &Peer> {
    records.iter().filter_map(|record| match record {
        Record::Peer(peer) => Some(peer),
        _ => None,
    })
}

fn results(records: &[Record]) -> impl Iterator<Item = &Measured> {
    records.iter().filter_map(|record| match record {
        Record::Result(result) => Some(result),
        _ => None,
    })
}
