//! Layers of other Rust libraries, beside which the scripts of `benches/peers/python` run those of Tilewise.
//!
//! `crates LIBRARY FOLDER WORK KIND SIZE…` computes once from the numbers in FOLDER/in and writes what comes out to FOLDER/out,
//! all `f32`, one tensor after the other: whether they are right is for the script to say. Then it answers each line
//! `0 0 SECONDS` with the time of a call.

#[path = "../../../../examples/support/measure.rs"]
mod measure;

mod burn;
mod candle;
mod digits;
mod onnx;

use std::cell::{Cell, RefCell};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is timed. Results are read by what it gives, which is not.
type Call = Box<dyn FnMut() -> Result<Read>>;
type Read = Box<dyn FnOnce() -> Result<Vec<f32>>>;

/// What is to be computed, and from what.
struct Problem {
    folder: PathBuf,
    work: String,
    kind: String,
    sizes: Vec<usize>,
    numbers: Vec<f32>,
    at: Cell<usize>,
}

impl Problem {
    fn new([folder, work, kind]: [&String; 3], sizes: &[String]) -> Result<Self> {
        let folder = PathBuf::from(folder);
        let bytes = fs::read(folder.join("in"))?;
        let numbers = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        let sizes = sizes.iter().map(|size| size.parse()).collect::<std::result::Result<_, _>>()?;
        let (work, kind) = (work.clone(), kind.clone());
        Ok(Self { folder, work, kind, sizes, numbers, at: Cell::new(0) })
    }

    fn sizes<const N: usize>(&self) -> Result<[usize; N]> {
        self.sizes[..].try_into().map_err(|_| format!("{} has {N} sizes", self.work).into())
    }

    /// The tensor of that shape that comes next.
    fn take(&self, shape: &[usize]) -> Result<Vec<f32>> {
        let from = self.at.get();
        let to = from + shape.iter().product::<usize>();
        self.at.set(to);
        Ok(self.numbers.get(from..to).ok_or("too few numbers")?.into())
    }

    fn refuse<T>(&self) -> Result<T> {
        Err(format!("no {} {} here", self.work, self.kind).into())
    }
}

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [library, folder, work, kind, sizes @ ..] = &arguments[..] else {
        return Err("usage: crates LIBRARY FOLDER WORK KIND SIZE…".into());
    };
    let problem = Problem::new([folder, work, kind], sizes)?;
    let mut call = match library.as_str() {
        "burn" => burn::prepare(&problem),
        "candle" => candle::prepare(&problem),
        "rten" => onnx::rten(&problem),
        "tract" => onnx::tract(&problem),
        _ => Err("there are burn, candle, rten and tract".into()),
    }?;
    let bytes: Vec<u8> = call()?()?.into_iter().flat_map(f32::to_le_bytes).collect();
    fs::write(problem.folder.join("out"), bytes)?;
    let call = RefCell::new(call);
    measure::serve(|_, _| Ok(Box::new(|| call.borrow_mut()().map(drop))))
}
