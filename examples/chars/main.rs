//! Trains an LSTM or a transformer to write, character by character, in the manner of a text, and lets it write.
//!
//! `cargo run --release --example chars -- --help`

mod args;
mod chart;
mod decoder;
mod model;
mod sample;
mod save;
mod text;
mod train;

use std::error::Error;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use tilewise::layer::optimizer::AdamW;

use args::Args;
use model::Model;
use text::Text;

fn main() -> ExitCode {
    match chars(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "chars: {error}");
            ExitCode::FAILURE
        }
    }
}

fn chars(args: &Args) -> Result<(), Box<dyn Error>> {
    if let Some(threads) = args.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads as usize);
        pool.build_global().map_err(|error| format!("cannot start {threads} threads: {error}"))?;
    }
    let text = Text::load(&args.text())?;
    let (mut model, mut optimizer) = match args.resume {
        true => save::load(&args.model, args.seed)?,
        // The learning rate is that of each step.
        false => (Model::new(text.alphabet(), args.options(), args.seed)?, AdamW::new(0.0)),
    };
    // Before the training, which takes minutes.
    save::check_writable(&args.model)?;
    save::check_writable(&args.chart)?;
    let text = text.encode(&model.alphabet)?;
    writeln!(
        io::stdout(),
        "{} characters of {} kinds; {} parameters, {} passes made before; seed {}, {} threads",
        text.len(),
        model.alphabet.len(),
        model.parameters(),
        model.epochs.len(),
        args.seed,
        rayon::current_num_threads()
    )?;
    train::train(&mut model, &mut optimizer, &text, args)?;
    if !model.epochs.is_empty() {
        save::write(&args.chart, chart::loss(&model.epochs)?.as_bytes())?;
    }
    save::save(&model, &optimizer, &args.model)?;
    let written = sample::write(&model, args)?;
    writeln!(io::stdout(), "\n{written}\n")?;
    writeln!(io::stdout(), "model: {}\nloss: {}", args.model.display(), args.chart.display())?;
    Ok(())
}
