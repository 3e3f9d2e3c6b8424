//! The command line.

use std::path::{Path, PathBuf};

use clap::Parser;
use clap::builder::RangedU64ValueParser;

use crate::model::{Net, Options};

/// Where the text lies that comes with the repository.
const TEXT: &str = "examples/data/text/kjv-selection.txt";

fn from_one(most: u64) -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(1..=most)
}

/// Trains an LSTM or a transformer on a text, character by character, and lets it write.
///
/// Prints the loss of each pass, and at the end what the model writes; saves the model and a chart of the loss.
/// The same seed on the same machine gives the same bits.
#[derive(Debug, Parser)]
#[command(name = "chars", version, verbatim_doc_comment)]
pub struct Args {
    /// UTF-8 text to learn from [default: examples/data/text/kjv-selection.txt]
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,

    /// Passes over the text; 0 only writes
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub epochs: u32,

    /// What learns
    #[arg(long, value_name = "NET", value_enum, default_value_t = Net::Lstm)]
    pub net: Net,

    /// Units of each LSTM layer, or the width of the transformer [default: 256, or 128]
    #[arg(long, value_name = "N", value_parser = from_one(16_384))]
    hidden: Option<u32>,

    /// LSTM layers or blocks of the transformer [default: 1, or 4]
    #[arg(long, value_name = "N", value_parser = from_one(16))]
    layers: Option<u32>,

    /// Heads of the transformer, each of an even part of its width
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = from_one(1024))]
    heads: u32,

    /// Probability of dropout, between LSTM layers or in the transformer [default: 0.2, or 0.1]
    #[arg(long, value_name = "P")]
    dropout: Option<f64>,

    /// Places of the text that are read at the same time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = from_one(4096))]
    pub batch: u32,

    /// Characters through which gradients go back, and to which the transformer attends
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = from_one(65_536))]
    pub window: u32,

    /// Learning rate of AdamW at the start; it falls to a tenth along half a cosine [default: 0.004, or 0.002]
    #[arg(long, value_name = "R")]
    rate: Option<f64>,

    /// File of the model, in the safetensors format
    #[arg(long, value_name = "FILE", default_value = "target/chars.safetensors")]
    pub model: PathBuf,

    /// Go on with the model in that file, and with its AdamW; its sizes are the file's
    #[arg(long)]
    pub resume: bool,

    /// SVG to write
    #[arg(long, value_name = "FILE", default_value = "target/chars.svg")]
    pub chart: PathBuf,

    /// What the model goes on from
    #[arg(long, value_name = "TEXT", default_value = "And God said")]
    pub prompt: String,

    /// Characters to write
    #[arg(long, value_name = "N", default_value_t = 400)]
    pub length: u32,

    /// How bold the choices are: near 0 the likeliest, 1 as the model has them
    #[arg(long, value_name = "T", default_value_t = 0.7)]
    pub temperature: f64,

    /// Threads to compute with [default: one per processor]
    #[arg(long, value_name = "N", value_parser = from_one(1024))]
    pub threads: Option<u32>,

    /// Seed of the first weights, of dropout (when going on, another dropout begins) and of what is written
    #[arg(long, value_name = "S", default_value_t = 42)]
    pub seed: u64,

    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

impl Args {
    /// What a new model is made of.
    pub fn options(&self) -> Options {
        let net = self.net;
        let or = |value: Option<u32>, lstm, transformer| {
            value.map_or(if net == Net::Lstm { lstm } else { transformer }, |value| value as usize)
        };
        Options {
            net,
            hidden: or(self.hidden, 256, 128),
            layers: or(self.layers, 1, 4),
            heads: self.heads as usize,
            context: self.window as usize,
            dropout: self.dropout.unwrap_or(if net == Net::Lstm { 0.2 } else { 0.1 }),
        }
    }

    pub fn rate(&self, net: Net) -> f64 {
        self.rate.unwrap_or(if net == Net::Lstm { 4e-3 } else { 2e-3 })
    }

    pub fn text(&self) -> PathBuf {
        // The folder of the sources may be gone by the time that the program runs.
        self.text.clone().unwrap_or_else(|| {
            let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join(TEXT);
            if built_from.is_file() { built_from } else { PathBuf::from(TEXT) }
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn nothing_means_the_text_of_the_repository() {
        let args = Args::parse_from(["chars"]);
        assert!(args.text().ends_with(TEXT));
        assert!(!args.resume && args.seed == 42);
        let (lstm, transformer) =
            (args.options(), Args::parse_from(["chars", "--net=transformer"]).options());
        assert_eq!((lstm.net, lstm.hidden, lstm.layers), (Net::Lstm, 256, 1));
        assert_eq!((transformer.net, transformer.hidden, transformer.layers), (Net::Transformer, 128, 4));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for option in ["--hidden", "--layers", "--heads", "--batch", "--window", "--threads"] {
            for value in ["0", "-1", "x", "4294967296"] {
                assert!(Args::try_parse_from(["chars", &format!("{option}={value}")]).is_err());
            }
        }
    }
}
