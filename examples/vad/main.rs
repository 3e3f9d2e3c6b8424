//! Finds speech in a WAV file by a trained network, Silero VAD, that hears it chunk by chunk.
//!
//! `examples/fetch-models`, once, then `cargo run --release --example vad -- sound.wav`

#[path = "../support/awake.rs"]
mod awake;
mod chart;
#[cfg(test)]
mod conformance;
#[cfg(test)]
#[path = "../support/expected.rs"]
mod expected;
#[path = "../support/measure.rs"]
mod measure;
mod model;
mod segments;
mod wav;
#[path = "../support/weights.rs"]
mod weights;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use model::{CHUNK, RATE, Silero};
use segments::{Segment, Segments};
use wav::Wav;

const WEIGHTS: &str = "silero-vad-16k.safetensors";
/// Where the sound lies that comes with the repository.
const SOUND: &str = "examples/data/models/speech.wav";

/// Finds speech in a WAV file of 16,000 samples a second, 16 bits each, by Silero VAD, a network of convolutions and an
/// LSTM. It hears 32 ms at a time; a segment is printed as soon as it has ended.
///
/// The weights come from examples/fetch-models.
#[derive(Debug, Parser)]
#[command(name = "vad", version, verbatim_doc_comment)]
struct Args {
    /// WAV file, - for standard input [default: examples/data/models/speech.wav]
    sound: Option<PathBuf>,

    /// Folder of the weights [default: target/models]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,

    /// SVG to write
    #[arg(long, value_name = "FILE", default_value = "target/vad.svg")]
    chart: PathBuf,

    /// Threads to compute with [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print the time of a call for each line `STREAMS CHUNKS SECONDS` of standard input
    #[arg(long)]
    measure: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "vad: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What a network heard.
#[derive(Default)]
struct Heard {
    probabilities: Vec<f32>,
    segments: Vec<Segment>,
    samples: u64,
}

/// Hears a sound to its end; `found` is told of each segment.
fn hear(
    model: &Silero,
    sound: impl Read,
    mut found: impl FnMut(&Segment) -> io::Result<()>,
) -> Result<Heard, Box<dyn Error>> {
    let mut wav = Wav::open(sound, RATE)?;
    let (mut streams, mut segments, mut heard) = (model.streams(1)?, Segments::default(), Heard::default());
    let mut chunk = [0.0; CHUNK];
    loop {
        let count = wav.read(&mut chunk)?;
        if count == 0 {
            break;
        }
        chunk[count..].fill(0.0);
        let probability = model.step(&chunk, &mut streams)?[0];
        heard.probabilities.push(probability);
        heard.samples += count as u64;
        if let Some(segment) = segments.push(probability) {
            found(&segment)?;
            heard.segments.push(segment);
        }
    }
    if let Some(segment) = segments.finish(heard.samples) {
        found(&segment)?;
        heard.segments.push(segment);
    }
    Ok(heard)
}

/// All of it runs on a thread of the pool: from outside, each product would hand its work over and sleep meanwhile.
fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0).into()).build()?;
    Ok(pool.install(|| vad(args).map_err(|error| error.to_string()))?)
}

fn vad(args: &Args) -> Result<(), Box<dyn Error>> {
    let folder = args.models.clone().unwrap_or_else(weights::default_folder);
    let model = Silero::parse(&weights::read(&folder, WEIGHTS)?)?;
    if args.measure {
        return measure::serve(|batch, chunks| {
            let sound: Vec<f32> = (0..batch * CHUNK).map(|i| ((i * i) as f32).sin() * 0.1).collect();
            let (model, mut streams) = (&model, model.streams(batch)?);
            Ok(Box::new(move || {
                for _ in 0..chunks {
                    // The products of one stream are not worth a second thread.
                    if batch > 1 {
                        awake::awake(|| model.step(&sound, &mut streams).map(|_| ()))?;
                    } else {
                        model.step(&sound, &mut streams)?;
                    }
                }
                Ok(())
            }))
        });
    }
    let path = args.sound.clone().unwrap_or_else(|| {
        // The folder of the sources may be gone by the time that the program runs.
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join(SOUND);
        if built_from.is_file() { built_from } else { PathBuf::from(SOUND) }
    });
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut out = io::stdout().lock();
    let seconds = |sample: u64| sample as f64 / f64::from(RATE);
    let print = |segment: &Segment| {
        writeln!(out, "speech from {:8.3} s to {:8.3} s", seconds(segment.start), seconds(segment.end))?;
        out.flush()
    };
    let heard = if path.as_os_str() == "-" {
        hear(&model, io::stdin().lock(), print)
    } else {
        let file = File::open(&path).map_err(|error| named(&error))?;
        hear(&model, BufReader::new(file), print)
    };
    let heard = heard.map_err(|error| named(&error))?;
    fs::write(&args.chart, chart::probability(&heard.probabilities, &heard.segments)?)
        .map_err(|error| format!("{}: {error}", args.chart.display()))?;
    writeln!(
        io::stdout(),
        "{} of {:.3} s; the curve: {}",
        match heard.segments.len() {
            1 => "1 segment".to_owned(),
            count => format!("{count} segments"),
        },
        seconds(heard.samples),
        args.chart.display()
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        super::Args::command().debug_assert();
    }
}
