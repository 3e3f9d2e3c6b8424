//! Models in files of the safetensors format, with sizes and losses as its metadata.

use std::collections::HashMap;
use std::error::Error;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use clap::ValueEnum;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::NamedTempFile;
use tilewise::layer::Parameters;
use tilewise::layer::optimizer::{AdamW, Optimizer, StateTensor};

use crate::model::{Epoch, Model, Net, Options};
use crate::text::Alphabet;

/// As the command line has it.
const MOST_CONTEXT: usize = 65_536;

/// What the names of the optimizer's tensors begin with.
const OPTIMIZER: &str = "optimizer.";

/// What a parameter is called, its shape and its numbers.
type Entry = (String, Vec<usize>, Vec<u8>);

pub fn save(model: &Model, optimizer: &AdamW<f32>, path: &Path) -> Result<(), Box<dyn Error>> {
    let list =
        |of: fn(&Epoch) -> f64| model.epochs.iter().map(|epoch| of(epoch).to_string()).collect::<Vec<_>>();
    let info = HashMap::from([
        ("alphabet".to_owned(), model.alphabet.as_string()),
        ("net".to_owned(), name(model.options.net)),
        ("hidden".to_owned(), model.options.hidden.to_string()),
        ("layers".to_owned(), model.options.layers.to_string()),
        ("heads".to_owned(), model.options.heads.to_string()),
        ("context".to_owned(), model.options.context.to_string()),
        ("dropout".to_owned(), model.options.dropout.to_string()),
        ("steps".to_owned(), optimizer.steps().to_string()),
        ("train_loss".to_owned(), list(|epoch| epoch.train).join(" ")),
        ("test_loss".to_owned(), list(|epoch| epoch.test).join(" ")),
    ]);
    let mut entries = entries(model);
    entries.extend(moments(optimizer));
    let views = entries
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F32, shape.clone(), bytes)?)))
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()?;
    write(path, &safetensors::serialize(views, Some(info))?)
}

/// As on the command line.
fn name(net: Net) -> String {
    net.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}

fn entries(model: &Model) -> Vec<Entry> {
    let mut entries = Vec::new();
    model.visit(&mut |name, parameter| {
        entries.push((name.to_owned(), parameter.shape().to_vec(), bytes(parameter.value())));
    });
    entries
}

/// What the optimizer keeps, under the numbers of the parameters.
fn moments(optimizer: &AdamW<f32>) -> Vec<Entry> {
    let mut entries = Vec::new();
    optimizer.visit_state(&mut |StateTensor { parameter, name, shape, values }| {
        entries.push((format!("{OPTIMIZER}{parameter}.{name}"), shape.to_vec(), bytes(values)));
    });
    entries
}

fn bytes(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn numbers(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(4).map(|bytes| bytes.try_into().map_or(f32::NAN, f32::from_le_bytes))
}

/// The model, whose dropout begins with `seed`, and the optimizer as it was after the last step.
pub fn load(path: &Path, seed: u64) -> Result<(Model, AdamW<f32>), Box<dyn Error>> {
    let bytes = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    parse(&bytes, seed).map_err(|error| format!("{}: {error}", path.display()).into())
}

fn parse(bytes: &[u8], seed: u64) -> Result<(Model, AdamW<f32>), Box<dyn Error>> {
    let (_, metadata) = SafeTensors::read_metadata(bytes)?;
    let info = metadata.metadata().clone().unwrap_or_default();
    let get = |key: &str| info.get(key).ok_or_else(|| format!("it says nothing of {key}"));
    let alphabet = Alphabet::from_sorted(get("alphabet")?).ok_or("its alphabet is not in order")?;
    let losses = |key: &str| -> Result<Vec<f64>, Box<dyn Error>> {
        Ok(get(key)?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?)
    };
    let tensors = SafeTensors::deserialize(bytes)?;
    let size = |key: &str| -> Result<usize, Box<dyn Error>> { Ok(get(key)?.parse()?) };
    // Older files know one net.
    let net = info.get("net").map_or(Ok(Net::Lstm), |net| Net::from_str(net, false))?;
    let decoder = |key: &str| if net == Net::Lstm { Ok(1) } else { size(key) };
    let options = Options {
        net,
        hidden: size("hidden")?,
        layers: size("layers")?,
        heads: decoder("heads")?,
        context: decoder("context")?,
        dropout: get("dropout")?.parse()?,
    };
    // The file has as many numbers as the model, so a size out of all proportion asks for no memory.
    let (first, columns) = match net {
        Net::Lstm => ("lstm.0.recurrent", 2),
        Net::Transformer => ("decoder.0.attention.out_proj.weight", 1),
    };
    let (head, first) = (tensors.tensor("head.weight")?, tensors.tensor(first)?);
    let fits = head.shape() == [options.hidden, alphabet.len()]
        && first.shape().get(columns) == Some(&options.hidden);
    if !fits || options.layers > tensors.len() || options.context > MOST_CONTEXT {
        return Err("its sizes are not those of its tensors".into());
    }
    let mut model = Model::new(alphabet, options, seed)?;
    model.epochs = losses("train_loss")?
        .into_iter()
        .zip(losses("test_loss")?)
        .map(|(train, test)| Epoch { train, test })
        .collect();
    let mut wrong: Option<String> = None;
    model.visit_mut(&mut |name, parameter| {
        let tensor = tensors.tensor(name);
        match tensor {
            Ok(tensor) if tensor.dtype() == Dtype::F32 && tensor.shape() == parameter.shape() => {
                parameter
                    .value_mut()
                    .iter_mut()
                    .zip(numbers(tensor.data()))
                    .for_each(|(to, number)| *to = number);
            }
            _ => wrong = Some(format!("its tensor {name} is missing or of another shape")),
        }
    });
    if let Some(wrong) = wrong {
        return Err(wrong.into());
    }
    // Older files know no optimizer.
    let steps = info.get("steps").map_or(Ok(0), |steps| steps.parse())?;
    let optimizer = optimizer(&model, steps, &tensors)?;
    Ok((model, optimizer))
}

fn optimizer(model: &Model, steps: u64, tensors: &SafeTensors<'_>) -> Result<AdamW<f32>, Box<dyn Error>> {
    let mut kept = Vec::new();
    for (name, tensor) in tensors.iter() {
        let Some((parameter, part)) = name.strip_prefix(OPTIMIZER).and_then(|name| name.split_once('.'))
        else {
            continue;
        };
        if tensor.dtype() != Dtype::F32 {
            return Err(format!("its tensor {name} is not of F32").into());
        }
        let values = numbers(tensor.data()).collect::<Vec<_>>();
        kept.push((parameter.parse()?, part, tensor.shape().to_vec(), values));
    }
    let state: Vec<_> = kept
        .iter()
        .map(|(parameter, name, shape, values)| StateTensor { parameter: *parameter, name, shape, values })
        .collect();
    // The learning rate is that of each step.
    let mut optimizer = AdamW::new(0.0);
    optimizer.restore(model, steps, &state)?;
    Ok(optimizer)
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
    use crate::model::Window;

    #[test]
    fn a_model_is_the_same_after_saving_and_loading() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a/model.safetensors");
        for net in [Net::Lstm, Net::Transformer] {
            let alphabet = Alphabet::from_sorted("abc").unwrap();
            let options = Options { net, hidden: 4, layers: 2, heads: 2, context: 9, dropout: 0.0 };
            let mut model = Model::new(alphabet, options, 7).unwrap();
            model.epochs.push(Epoch { train: 1.5, test: 2.25 });
            let mut optimizer = AdamW::new(0.01);
            let window = Window { characters: &[0, 1, 2, 1], next: &[1, 2, 1, 0], batch: 2 };
            let step = |model: &mut Model, optimizer: &mut AdamW<f32>| {
                optimizer.set_learning_rate(0.01);
                let mut state = model.start(2).unwrap();
                model.train(&window, &mut state, optimizer).unwrap();
            };
            (0..3).for_each(|_| step(&mut model, &mut optimizer));
            save(&model, &optimizer, &path).unwrap();
            let (mut loaded, mut resumed) = load(&path, 7).unwrap();
            assert_eq!(entries(&loaded), entries(&model));
            // Nothing is dropped: further steps have the same bits.
            (0..3).for_each(|_| step(&mut model, &mut optimizer));
            (0..3).for_each(|_| step(&mut loaded, &mut resumed));
            assert_eq!(moments(&resumed), moments(&optimizer));
            assert_eq!(entries(&loaded), entries(&model));
            assert_eq!(loaded.alphabet, model.alphabet);
            assert_eq!(loaded.epochs, model.epochs);
            let (heads, context) = if net == Net::Lstm { (1, 1) } else { (2, 9) };
            assert_eq!(loaded.options, Options { heads, context, ..options });
        }
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
            assert!(load(&path, 7).is_err_and(|error| error.to_string().contains("file: ")));
        }
        assert!(load(dir.path(), 7).is_err() && check_writable(dir.path()).is_err());
    }
}
