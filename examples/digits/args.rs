//! The command line.

use std::path::{Path, PathBuf};

use clap::Parser;
use clap::builder::PossibleValue;

use crate::models::{Entry, MODELS};

/// Where the digits lie that come with the repository.
const DATA: &str = "examples/data/mnist-10k";

/// Trains models on handwritten digits and reports how well each reads them.
///
/// Prints a table of the models and writes a page with loss curves, confusion matrices and some of the
/// digits read wrongly. The same seed on the same machine gives the same bits.
#[derive(Debug, Parser)]
#[command(name = "digits", version, verbatim_doc_comment)]
pub struct Args {
    /// Folder with the four IDX files of MNIST, gzipped or plain [default: examples/data/mnist-10k]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,

    /// Models to train, separated by commas [default: all]
    #[arg(long, value_name = "MODEL", value_delimiter = ',', value_parser = models())]
    models: Vec<String>,

    /// Passes over the training set [default: each model's own]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    epochs: Option<u32>,

    /// Threads to compute with [default: one per processor]
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,

    /// Seed of the first weights and of the order of the images
    #[arg(long, value_name = "S", allow_negative_numbers = true, default_value_t = 42)]
    pub seed: u64,

    /// HTML page to write
    #[arg(long, value_name = "FILE", default_value = "target/digits.html")]
    pub report: PathBuf,

    /// Show no progress
    #[arg(long, short)]
    pub quiet: bool,
}

impl Args {
    pub fn data(&self) -> PathBuf {
        // The folder of the sources may be gone by the time that the program runs.
        self.data.clone().unwrap_or_else(|| {
            let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join(DATA);
            if built_from.is_dir() { built_from } else { PathBuf::from(DATA) }
        })
    }

    /// What to train, each model once.
    pub fn models(&self) -> Vec<&'static Entry> {
        let mut entries: Vec<&Entry> = Vec::new();
        for name in &self.models {
            let known = MODELS.iter().find(|entry| entry.name == name);
            entries.extend(known.filter(|entry| entries.iter().all(|other| other.name != entry.name)));
        }
        if entries.is_empty() { MODELS.iter().collect() } else { entries }
    }

    pub fn epochs(&self) -> Option<usize> {
        self.epochs.map(|epochs| epochs as usize)
    }

    pub fn threads(&self) -> Option<usize> {
        self.threads.map(|threads| threads as usize)
    }
}

fn models() -> Vec<PossibleValue> {
    MODELS.iter().map(|entry| PossibleValue::new(entry.name).help(entry.about)).collect()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Args, String> {
        Args::try_parse_from([&["digits"], args].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn nothing_means_all_models_and_the_data_of_the_repository() {
        let args = parse(&[]).unwrap();
        assert_eq!(args.models().len(), MODELS.len());
        assert!(args.data().ends_with(DATA));
        assert_eq!((args.epochs(), args.threads(), args.seed), (None, None, 42));
    }

    #[test]
    fn models_run_once_each_in_the_order_given() {
        let (first, last) = (MODELS[0].name, MODELS[MODELS.len() - 1].name);
        let args = parse(&["--models", &format!("{last},{first},{last}")]).unwrap();
        let names: Vec<_> = args.models().iter().map(|entry| entry.name).collect();
        assert_eq!(names, if first == last { vec![first] } else { vec![last, first] });
    }

    #[test]
    fn an_unknown_model_lists_those_that_exist() {
        for list in ["nonsense", "", &format!("{},", MODELS[0].name)] {
            let error = parse(&["--models", list]).unwrap_err();
            assert!(MODELS.iter().all(|entry| error.contains(entry.name)), "{error}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for option in ["--epochs", "--threads"] {
            for value in ["0", "-1", "1.5", "x", "4294967296"] {
                let error = parse(&[option, value]).unwrap_err();
                assert!(error.contains(option) && error.contains(value), "{error}");
            }
        }
        assert!(parse(&["--seed", "-1"]).unwrap_err().contains("--seed <S>"));
        assert_eq!(parse(&["--seed", "18446744073709551615"]).unwrap().seed, u64::MAX);
    }
}
