//! Embeds sentences by a trained transformer, MiniLM, and prints how alike they are.
//!
//! `examples/fetch-models`, once, then `cargo run --release --example embed -- "first sentence" "second sentence"`

#[path = "../support/awake.rs"]
mod awake;
#[cfg(test)]
mod conformance;
#[cfg(test)]
#[path = "../support/expected.rs"]
mod expected;
#[path = "../support/measure.rs"]
mod measure;
mod model;
mod tokens;
#[path = "../support/weights.rs"]
mod weights;

use std::error::Error;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use tilewise::Tensor;

use model::{LONGEST, Memory, MiniLm, WIDTH, similarity};
use tokens::WordPiece;

const WEIGHTS: &str = "minilm-l6.safetensors";
const VOCABULARY: &str = "minilm-l6-vocab.txt";

/// Embeds sentences by MiniLM, a transformer of six layers, and prints how alike each two of them are: the cosine of the
/// angle between their embeddings.
///
/// The weights come from examples/fetch-models.
#[derive(Debug, Parser)]
#[command(name = "embed", version, verbatim_doc_comment)]
struct Args {
    /// Sentences; of a longer text the first 254 tokens are read
    #[arg(required_unless_present = "measure")]
    sentences: Vec<String>,

    /// Folder of the weights [default: target/models]
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,

    /// Print the embeddings too
    #[arg(long)]
    vectors: bool,

    /// Threads to compute with [default: one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Print the time of a call for each line `BATCH TOKENS SECONDS` of standard input
    #[arg(long)]
    measure: bool,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "embed: {error}");
            ExitCode::FAILURE
        }
    }
}

/// All of it runs on a thread of the pool: from outside, each product would hand its work over and sleep meanwhile.
fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads.unwrap_or(0).into()).build()?;
    Ok(pool.install(|| embed(args).map_err(|error| error.to_string()))?)
}

fn embed(args: &Args) -> Result<(), Box<dyn Error>> {
    let folder = args.models.clone().unwrap_or_else(weights::default_folder);
    let model = MiniLm::parse(&weights::read(&folder, WEIGHTS)?)?;
    let mut memory = Memory::default();
    if args.measure {
        return measure::serve(|batch, length| {
            let sentences = vec![vec![1996; length.clamp(1, LONGEST)]; batch];
            let (model, mut memory, mut y) =
                (&model, Memory::default(), Tensor::<f32, 2>::zeros([batch, WIDTH])?);
            Ok(Box::new(move || Ok(awake::awake(|| model.embed(&sentences, &mut memory, y.view_mut()))?)))
        });
    }
    let tokens = WordPiece::parse(&String::from_utf8(weights::read(&folder, VOCABULARY)?)?)?;
    let sentences: Vec<_> = args.sentences.iter().map(|text| tokens.encode(text, LONGEST)).collect();
    let mut y = Tensor::<f32, 2>::zeros([sentences.len(), WIDTH])?;
    awake::awake(|| model.embed(&sentences, &mut memory, y.view_mut()))?;

    let rows: Vec<&[f32]> = y.as_slice().chunks_exact(WIDTH).collect();
    let mut out = io::stdout().lock();
    for (i, text) in args.sentences.iter().enumerate() {
        writeln!(out, "{:>3}  {text}", i + 1)?;
        if args.vectors {
            writeln!(out, "     {:?}", rows[i])?;
        }
    }
    for i in 0..rows.len() {
        write!(out, "{}{:>3}", if i == 0 { "\n" } else { "" }, i + 1)?;
        for j in 0..=i {
            write!(out, "  {:6.3}", similarity(rows[i], rows[j]))?;
        }
        writeln!(out)?;
    }
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
