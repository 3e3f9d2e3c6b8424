//! Models in files of the safetensors format, with sizes and losses as its metadata.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::NamedTempFile;
use tilewise::layer::Parameters;

use crate::model::{Epoch, Model};
use crate::text::Alphabet;

/// What a parameter is called, its shape and its numbers.
type Entry = (String, Vec<usize>, Vec<u8>);

pub fn save(model: &Model, path: &Path) -> Result<(), Box<dyn Error>> {
    let list =
        |of: fn(&Epoch) -> f64| model.epochs.iter().map(|epoch| of(epoch).to_string()).collect::<Vec<_>>();
    let info = HashMap::from([
        ("alphabet".to_owned(), model.alphabet.as_string()),
        ("hidden".to_owned(), model.hidden.to_string()),
        ("layers".to_owned(), model.layers.to_string()),
        ("dropout".to_owned(), model.dropout.to_string()),
        ("train_loss".to_owned(), list(|epoch| epoch.train).join(" ")),
        ("test_loss".to_owned(), list(|epoch| epoch.test).join(" ")),
    ]);
    let entries = entries(model)?;
    let views = entries
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    write(path, &safetensors::serialize(views, Some(info))?)
}

fn entries(model: &Model) -> tilewise::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    let mut push = |name: String, shape: &[usize], values: &mut dyn Iterator<Item = f32>| {
        entries.push((name, shape.to_vec(), values.flat_map(f32::to_le_bytes).collect()));
    };
    let embedding = model.embedding.weight();
    push("embedding.weight".to_owned(), embedding.shape(), &mut embedding.value().iter().copied());
    for layer in 0..model.layers {
        let weights = model.lstm.weights(layer)?;
        for (name, view) in [("input", weights.input), ("recurrent", weights.recurrent)] {
            push(format!("lstm.{layer}.{name}"), &view.shape(), &mut view.iter().copied());
        }
        for (name, view) in [("bias", weights.bias), ("recurrent_bias", weights.recurrent_bias)] {
            if let Some(view) = view {
                push(format!("lstm.{layer}.{name}"), &view.shape(), &mut view.iter().copied());
            }
        }
    }
    for (name, parameter) in [("weight", Some(model.head.weight())), ("bias", model.head.bias())] {
        if let Some(parameter) = parameter {
            push(format!("head.{name}"), parameter.shape(), &mut parameter.value().iter().copied());
        }
    }
    Ok(entries)
}

pub fn load(path: &Path) -> Result<Model, Box<dyn Error>> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&bytes).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn parse(bytes: &[u8]) -> Result<Model, Box<dyn Error>> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let info = metadata.metadata().clone().unwrap_or_default();
    let get = |key: &str| info.get(key).ok_or_else(|| format!("it says nothing of {key}"));
    let alphabet = Alphabet::from_sorted(get("alphabet")?).ok_or("its alphabet is not in order")?;
    let losses = |key: &str| -> Result<Vec<f64>, Box<dyn Error>> {
        Ok(get(key)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let tensors = SafeTensors::deserialize(bytes)?;
    let (hidden, layers) = (get("hidden")?.parse::<usize>()?, get("layers")?.parse::<usize>()?);
    // The file has as many numbers as the model, so a size out of all proportion asks for no memory.
    let (head, recurrent) = (tensors.tensor("head.weight")?, tensors.tensor("lstm.0.recurrent")?);
    let fits = head.shape() == [hidden, alphabet.len()] && recurrent.shape().get(2) == Some(&hidden);
    if !fits || layers > tensors.len() {
        return Err("its sizes are not those of its tensors".into());
    }
    let mut model = Model::new(alphabet, hidden, layers, get("dropout")?.parse()?, 0)?;
    model.epochs = losses("train_loss")?
        .into_iter()
        .zip(losses("test_loss")?)
        .map(|(train, test)| Epoch { train, test })
        .collect();
    let mut wrong: Option<String> = None;
    model.visit(&mut |name, parameter| {
        let tensor = tensors.tensor(name);
        match tensor {
            Ok(tensor) if tensor.dtype() == Dtype::F32 && tensor.shape() == parameter.shape() => {
                let numbers = tensor
                    .data()
                    .chunks_exact(4)
                    .map(|bytes| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes));
                parameter.value_mut().iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
            }
            _ => wrong = Some(format!("its tensor {name} is missing or of another shape")),
        }
    });
    wrong.map_or(Ok(model), |wrong| Err(wrong.into()))
}

/// An error where a file could not be written.
pub fn check_writable(path: &Path) -> Result<(), Box<dyn Error>> {
    temporary(path)
        .map(drop)
        .map_err(|error| format!("{}: cannot be written: {error}", path.display()).into())
}

/// Replaces a file at once: whoever reads it sees the old one or the new one, whole.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let save = || {
        let mut file = temporary(path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        Ok::<_, io::Error>(())
    };
    save().map_err(|error| format!("{}: cannot be written: {error}", path.display()).into())
}

/// A file in the same folder, to take its place.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    if path.exists() && !path.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut builder = tempfile::Builder::new();
    builder.prefix(".chars").suffix(".tmp");
    // Temporary files are private; a model is as readable as any file, less the umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_the_same_after_saving_and_loading() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a/model.safetensors");
        let alphabet = Alphabet::from_sorted("abc").unwrap();
        let mut model = Model::new(alphabet, 5, 2, 0.25, 7).unwrap();
        model.epochs.push(Epoch { train: 1.5, test: 2.25 });
        save(&model, &path).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!(entries(&loaded).unwrap(), entries(&model).unwrap());
        assert_eq!((loaded.alphabet, loaded.hidden, loaded.layers), (model.alphabet, 5, 2));
        assert_eq!((loaded.epochs, loaded.dropout), (model.epochs, 0.25));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn files_that_are_no_model_are_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("file");
        for bytes in [
            &b""[..],
            b"not a model",
            &safetensors::serialize([("a", TensorView::new(Dtype::F32, vec![0], &[]).unwrap())], None)
                .unwrap(),
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(load(&path).is_err_and(|error| error.to_string().contains("file: ")));
        }
        assert!(load(dir.path()).is_err() && check_writable(dir.path()).is_err());
    }
}
