//! Reads what `examples/data/models/expected.py` wrote.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use crate::weights;

/// A line: a name and numbers.
pub struct Array {
    pub name: String,
    pub numbers: Vec<f64>,
}

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/data/models")
}

/// The lines of a file.
pub fn lines(name: &str) -> Vec<String> {
    let text = fs::read_to_string(folder().join(name)).expect("it is in the repository");
    text.lines().map(str::to_owned).collect()
}

pub fn array(line: &str) -> Array {
    let mut words = line.split(' ');
    let name = words.next().expect("a name").to_owned();
    Array { name, numbers: words.skip(1).map(|word| word.parse().expect("a number")).collect() }
}

/// A file of the models; none, and a line that is shown, where the models were not fetched.
pub fn model(name: &str) -> Option<Vec<u8>> {
    let read = weights::read(&weights::default_folder(), name);
    if let Err(error) = &read {
        assert!(std::env::var_os("TILEWISE_MODELS").is_none(), "TILEWISE_MODELS is set, and {error}");
        // Past the harness, which shows what a test printed only where the test fails.
        let _ = writeln!(io::stderr().lock(), "\n*** NOT TESTED ON THE REAL MODEL *** {error}\n");
    }
    read.ok()
}
