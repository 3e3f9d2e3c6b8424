//! Weights of trained models in the safetensors format, as `examples/fetch-models` puts them into a folder.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::Dtype;
use tilewise::Tensor;

/// The folder that `examples/fetch-models` fills unless told otherwise.
pub fn default_folder() -> PathBuf {
    // The folder of the sources may be gone by the time that the program runs.
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/models");
    if built_from.is_dir() { built_from } else { PathBuf::from("target/models") }
}

/// The contents of a file of that folder.
pub fn read(folder: &Path, name: &str) -> Result<Vec<u8>, Box<dyn Error>> {
    let path = folder.join(name);
    fs::read(&path)
        .map_err(|error| format!("{}: {error}; examples/fetch-models gets it", path.display()).into())
}

/// The tensors of a file, by their names.
pub struct Weights<'a>(SafeTensors<'a>);

impl<'a> Weights<'a> {
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Box<dyn Error>> {
        Ok(Self(SafeTensors::deserialize(bytes)?))
    }

    /// A tensor of `f32` that must have this shape.
    pub fn get<const N: usize>(
        &self,
        name: &str,
        shape: [usize; N],
    ) -> Result<Tensor<f32, N>, Box<dyn Error>> {
        let tensor = self.0.tensor(name)?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            let (dtype, found) = (tensor.dtype(), tensor.shape());
            return Err(format!("{name} is {dtype} {found:?}, where F32 {shape:?} is needed").into());
        }
        let mut numbers =
            tensor.data().chunks_exact(4).map(|b| b.try_into().map_or(f32::NAN, f32::from_le_bytes));
        Ok(Tensor::from_fn(shape, |_| numbers.next().unwrap_or(f32::NAN))?)
    }
}
