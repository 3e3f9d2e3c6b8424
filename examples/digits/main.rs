//! Trains models on handwritten digits, prints how well each reads them, and writes a report.
//!
//! `cargo run --release --example digits -- --help`

mod args;
mod charts;
mod idx;
mod model;
mod models;
mod png;
mod progress;
mod report;
mod run;
mod table;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;

use args::Args;
use idx::Digits;
use progress::Progress;
use report::Report;
use run::Data;
use table::grouped;

fn main() -> ExitCode {
    match digits(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "digits: {error}");
            ExitCode::FAILURE
        }
    }
}

fn digits(args: &Args) -> Result<(), Box<dyn Error>> {
    if let Some(threads) = args.threads() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build_global().map_err(|error| format!("cannot start {threads} threads: {error}"))?;
    }
    // Before the training, which takes minutes.
    report::check_writable(&args.report)?;
    let digits = Digits::load(&args.data())?;
    let data = Data::from(&digits);
    let progress = Progress::new(args.quiet);

    let mut outcomes = Vec::new();
    for entry in args.models() {
        outcomes.push(run::run(entry, &data, args.epochs(), args.seed, progress)?);
    }

    let about = format!(
        "{} digits of {}×{} to train on, {} to test on; seed {}, {} threads",
        grouped(data.train.len()),
        data.train.rows,
        data.train.cols,
        grouped(data.test.len()),
        args.seed,
        rayon::current_num_threads()
    );
    Report { about: &about, test: &digits.test, outcomes: &outcomes }.write(&args.report)?;
    let table = table::text(&outcomes);
    writeln!(io::stdout(), "{about}\n\n{table}\nreport: {}", args.report.display())?;
    Ok(())
}
