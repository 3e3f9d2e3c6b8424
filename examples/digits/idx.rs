//! MNIST's own IDX files, plain or gzipped: a big-endian header and one byte per pixel or label.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::model::CLASSES;

const IMAGES_MAGIC: u32 = 0x803;
const LABELS_MAGIC: u32 = 0x801;

/// More than any set of digits needs (the largest, EMNIST, has under 0.7 GB), and little enough that a
/// gzip file of a few megabytes cannot fill the memory.
const MAX_BYTES: u64 = 1 << 30;

/// Images of one size and the digit that each shows.
#[derive(Debug, PartialEq, Eq)]
pub struct Dataset {
    /// `labels.len() * rows * cols` grey values, row by row, 0 is paper and 255 is ink.
    pub images: Vec<u8>,
    /// Each 0 to 9.
    pub labels: Vec<u8>,
    pub rows: usize,
    pub cols: usize,
}

/// A set to train on and a set to test on, their images of one size.
#[derive(Debug, PartialEq, Eq)]
pub struct Digits {
    pub train: Dataset,
    pub test: Dataset,
}

impl Digits {
    /// Reads the four files of MNIST from a folder, each gzipped (`.gz`) or plain.
    pub fn load(dir: &Path) -> Result<Self, DataError> {
        let (train, train_path) = Dataset::load(dir, "train")?;
        let (test, test_path) = Dataset::load(dir, "t10k")?;
        if (train.rows, train.cols) != (test.rows, test.cols) {
            return Err(DataError::format(
                &test_path,
                format!(
                    "its images are {}×{}, those of {} are {}×{}",
                    test.rows,
                    test.cols,
                    train_path.display(),
                    train.rows,
                    train.cols
                ),
            ));
        }
        Ok(Self { train, test })
    }
}

impl Dataset {
    /// The set and the file that its images came from.
    fn load(dir: &Path, set: &str) -> Result<(Self, PathBuf), DataError> {
        let images = Idx::read(dir, &format!("{set}-images-idx3-ubyte"), IMAGES_MAGIC)?;
        let labels = Idx::read(dir, &format!("{set}-labels-idx1-ubyte"), LABELS_MAGIC)?;
        let &[count, rows, cols] = images.dims.as_slice() else { unreachable!("0x803 has three sizes") };
        if labels.bytes.len() != count {
            let problem =
                format!("{} labels for the {count} images of {}", labels.bytes.len(), images.path.display());
            return Err(DataError::format(&labels.path, problem));
        }
        if let Some(at) = labels.bytes.iter().position(|&label| usize::from(label) >= CLASSES) {
            let problem = format!("label {at} is {}, expected 0 to {}", labels.bytes[at], CLASSES - 1);
            return Err(DataError::format(&labels.path, problem));
        }
        Ok((Self { images: images.bytes, labels: labels.bytes, rows, cols }, images.path))
    }
}

/// One file: the sizes of its header, none of them 0, and as many bytes as they ask for.
struct Idx {
    path: PathBuf,
    dims: Vec<usize>,
    bytes: Vec<u8>,
}

impl Idx {
    fn read(dir: &Path, name: &str, magic: u32) -> Result<Self, DataError> {
        let gzipped = dir.join(format!("{name}.gz"));
        let plain = dir.join(name);
        match File::open(&gzipped) {
            Ok(file) => {
                let stream = MultiGzDecoder::new(BufReader::new(file));
                return Self::parse(gzipped, stream, magic, gzip_problem);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(DataError::format(&gzipped, format!("cannot open: {error}"))),
        }
        match File::open(&plain) {
            Ok(file) => {
                Self::parse(plain, BufReader::new(file), magic, |error| format!("cannot read: {error}"))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(DataError::Missing { gzipped, plain })
            }
            Err(error) => Err(DataError::format(&plain, format!("cannot open: {error}"))),
        }
    }

    fn parse(
        path: PathBuf,
        mut stream: impl Read,
        magic: u32,
        problem: fn(&io::Error) -> String,
    ) -> Result<Self, DataError> {
        let fail = |problem: String| Err(DataError::format(&path, problem));

        // Read as far as it goes, not read_exact: the end of a gzip stream and the end of the data in
        // it are different faults.
        let rank = (magic & 0xff) as usize;
        let header_len = 4 + 4 * rank;
        let mut header = Vec::new();
        if let Err(error) = stream.by_ref().take(header_len as u64).read_to_end(&mut header) {
            return fail(problem(&error));
        }
        let words: Vec<u32> = header
            .chunks_exact(4)
            .map(|word| u32::from_be_bytes([word[0], word[1], word[2], word[3]]))
            .collect();
        if let Some(&found) = words.first()
            && found != magic
        {
            let kind = if magic == IMAGES_MAGIC { "images" } else { "labels" };
            return fail(format!("magic number {found:#010x}, expected {magic:#010x} ({kind})"));
        }
        if header.len() < header_len {
            return fail(format!("truncated: {} bytes, the header alone has {header_len}", header.len()));
        }

        let sizes = &words[1..];
        if sizes.contains(&0) {
            return fail(format!("sizes {sizes:?} in the header, none may be 0"));
        }
        let total = sizes.iter().try_fold(1u64, |product, &size| product.checked_mul(u64::from(size)));
        let Some(total) = total.filter(|&total| total <= MAX_BYTES) else {
            return fail(format!("sizes {sizes:?} in the header ask for more than {MAX_BYTES} bytes"));
        };

        // The vector grows with what arrives, never by what the header claims. One byte more than
        // expected shows trailing bytes; reaching the end is also what makes gzip check its CRC.
        let mut bytes = Vec::new();
        if let Err(error) = stream.take(total + 1).read_to_end(&mut bytes) {
            return fail(problem(&error));
        }
        match (bytes.len() as u64).cmp(&total) {
            std::cmp::Ordering::Less => {
                fail(format!("truncated: {} bytes after the header, {sizes:?} needs {total}", bytes.len()))
            }
            std::cmp::Ordering::Greater => {
                fail(format!("trailing bytes: more than the {total} that {sizes:?} needs follow the header"))
            }
            std::cmp::Ordering::Equal => {
                // At most MAX_BYTES each, so they fit.
                let dims = sizes.iter().map(|&size| size as usize).collect();
                Ok(Self { path, dims, bytes })
            }
        }
    }
}

fn gzip_problem(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => "truncated gzip: the file ends inside the stream".to_owned(),
        io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => format!("cannot decompress: {error}"),
        _ => format!("cannot read: {error}"),
    }
}

/// Why the data could not be read. Always names the file.
#[derive(Debug)]
pub enum DataError {
    /// Neither form of the file is there.
    Missing { gzipped: PathBuf, plain: PathBuf },
    /// The file is there and is no good.
    Format { path: PathBuf, problem: String },
}

impl DataError {
    fn format(path: &Path, problem: String) -> Self {
        Self::Format { path: path.to_owned(), problem }
    }
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { gzipped, plain } => {
                write!(f, "no such file: neither {} nor {}", gzipped.display(), plain.display())
            }
            Self::Format { path, problem } => write!(f, "{}: {problem}", path.display()),
        }
    }
}

impl std::error::Error for DataError {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tempfile::TempDir;

    use super::*;

    fn idx(magic: u32, sizes: &[u32], bytes: &[u8]) -> Vec<u8> {
        let mut file = magic.to_be_bytes().to_vec();
        sizes.iter().for_each(|size| file.extend(size.to_be_bytes()));
        file.extend(bytes);
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    /// A folder with a good set (3 images of 2×2 to train on, 1 to test on) in which one file is
    /// replaced by `(name, bytes)`.
    fn folder(replace: &[(&str, Vec<u8>)]) -> TempDir {
        let dir = TempDir::new().unwrap();
        let good = [
            ("train-images-idx3-ubyte", idx(0x803, &[3, 2, 2], &[7; 12])),
            ("train-labels-idx1-ubyte", idx(0x801, &[3], &[0, 9, 4])),
            ("t10k-images-idx3-ubyte", idx(0x803, &[1, 2, 2], &[1, 2, 3, 255])),
            ("t10k-labels-idx1-ubyte", idx(0x801, &[1], &[5])),
        ];
        for (name, bytes) in good {
            match replace.iter().find(|(other, _)| other.trim_end_matches(".gz") == name) {
                Some((other, bytes)) => fs::write(dir.path().join(other), bytes).unwrap(),
                None => fs::write(dir.path().join(name), bytes).unwrap(),
            }
        }
        dir
    }

    /// The error of a folder with that one file replaced, which must start with the file's path.
    fn problem(name: &str, bytes: Vec<u8>) -> String {
        let dir = folder(&[(name, bytes)]);
        let error = Digits::load(dir.path()).unwrap_err().to_string();
        let path = format!("{}: ", dir.path().join(name).display());
        error.strip_prefix(&path).unwrap_or_else(|| panic!("{error:?} does not name {path:?}")).to_owned()
    }

    const IMAGES: &str = "train-images-idx3-ubyte";
    const IMAGES_GZ: &str = "train-images-idx3-ubyte.gz";
    const LABELS: &str = "train-labels-idx1-ubyte";

    #[test]
    fn plain_and_gzipped_files_read_the_same() {
        let plain = Digits::load(folder(&[]).path()).unwrap();
        assert_eq!(plain.train.labels, [0, 9, 4]);
        assert_eq!((plain.train.rows, plain.train.cols, plain.train.images.len()), (2, 2, 12));
        assert_eq!(plain.test.images, [1, 2, 3, 255]);
        let dir = folder(&[(IMAGES_GZ, gzip(&idx(0x803, &[3, 2, 2], &[7; 12])))]);
        assert_eq!(Digits::load(dir.path()).unwrap(), plain);
    }

    #[test]
    fn gzip_of_several_members_is_read_to_the_end() {
        let file = idx(0x803, &[3, 2, 2], &[7; 12]);
        let (front, back) = file.split_at(19);
        let dir = folder(&[(IMAGES_GZ, [gzip(front), gzip(back)].concat())]);
        assert_eq!(Digits::load(dir.path()).unwrap(), Digits::load(folder(&[]).path()).unwrap());
    }

    #[test]
    fn a_missing_file_is_named_in_both_forms() {
        let dir = folder(&[]);
        fs::remove_file(dir.path().join(LABELS)).unwrap();
        let plain = dir.path().join(LABELS).display().to_string();
        let error = Digits::load(dir.path()).unwrap_err().to_string();
        assert_eq!(error, format!("no such file: neither {plain}.gz nor {plain}"));
    }

    #[test]
    fn magic_numbers_are_checked() {
        let error = problem(IMAGES, idx(0x801, &[3], &[0, 9, 4]));
        assert_eq!(error, "magic number 0x00000801, expected 0x00000803 (images)");
        let error = problem(LABELS, idx(0x803, &[3, 2, 2], &[7; 12]));
        assert_eq!(error, "magic number 0x00000803, expected 0x00000801 (labels)");
        assert_eq!(problem(IMAGES, gzip(&[])), "magic number 0x1f8b0800, expected 0x00000803 (images)");
    }

    #[test]
    fn lengths_are_checked_both_ways() {
        assert_eq!(problem(IMAGES, vec![]), "truncated: 0 bytes, the header alone has 16");
        assert_eq!(problem(IMAGES, vec![0, 0, 8]), "truncated: 3 bytes, the header alone has 16");
        assert_eq!(problem(LABELS, vec![0, 0, 8, 1, 0, 0]), "truncated: 6 bytes, the header alone has 8");
        for wrap in [(|bytes: Vec<u8>| bytes) as fn(Vec<u8>) -> Vec<u8>, |bytes| gzip(&bytes)] {
            let name = if wrap(vec![]).is_empty() { IMAGES } else { IMAGES_GZ };
            let error = problem(name, wrap(idx(0x803, &[3, 2, 2], &[7; 11])));
            assert_eq!(error, "truncated: 11 bytes after the header, [3, 2, 2] needs 12");
            let error = problem(name, wrap(idx(0x803, &[3, 2, 2], &[7; 13])));
            assert_eq!(error, "trailing bytes: more than the 12 that [3, 2, 2] needs follow the header");
        }
    }

    #[test]
    fn sizes_are_checked() {
        for sizes in [[0, 2, 2], [3, 0, 2], [3, 2, 0]] {
            let error = problem(IMAGES, idx(0x803, &sizes, &[]));
            assert_eq!(error, format!("sizes {sizes:?} in the header, none may be 0"));
        }
        // The second overflows 64 bits.
        for sizes in [[1 << 30, 1, 2], [u32::MAX; 3]] {
            let error = problem(IMAGES, idx(0x803, &sizes, &[7; 12]));
            assert_eq!(error, format!("sizes {sizes:?} in the header ask for more than 1073741824 bytes"));
        }
        // A gigabyte claimed, 12 bytes there.
        let error = problem(IMAGES, idx(0x803, &[1 << 20, 32, 32], &[7; 12]));
        assert_eq!(error, "truncated: 12 bytes after the header, [1048576, 32, 32] needs 1073741824");
    }

    #[test]
    fn corrupt_gzip_is_told_from_truncated() {
        let good = gzip(&idx(0x803, &[3, 2, 2], &[7; 12]));
        for cut in [0, 5, 14, good.len() - 1] {
            let error = problem(IMAGES_GZ, good[..cut].to_vec());
            assert_eq!(error, "truncated gzip: the file ends inside the stream", "{cut} bytes");
        }
        let mut crc = good.clone();
        crc[good.len() - 8] ^= 1;
        let error = problem(IMAGES_GZ, crc);
        assert_eq!(error, "cannot decompress: corrupt gzip stream does not have a matching checksum");
        let error = problem(IMAGES_GZ, idx(0x803, &[3, 2, 2], &[7; 12]));
        assert_eq!(error, "cannot decompress: invalid gzip header");
        let error = problem(IMAGES_GZ, [good, b"more bytes after".to_vec()].concat());
        assert_eq!(error, "cannot decompress: invalid gzip header");
    }

    #[test]
    fn images_and_labels_must_agree() {
        let dir = folder(&[(LABELS, idx(0x801, &[2], &[0, 9]))]);
        let error = Digits::load(dir.path()).unwrap_err().to_string();
        let (labels, images) = (dir.path().join(LABELS), dir.path().join(IMAGES));
        assert_eq!(error, format!("{}: 2 labels for the 3 images of {}", labels.display(), images.display()));
        assert_eq!(problem(LABELS, idx(0x801, &[3], &[0, 10, 4])), "label 1 is 10, expected 0 to 9");
    }

    #[test]
    fn train_and_test_must_agree() {
        let error = problem("t10k-images-idx3-ubyte", idx(0x803, &[1, 1, 4], &[0; 4]));
        assert!(error.starts_with("its images are 1×4, those of "), "{error}");
        assert!(error.ends_with("train-images-idx3-ubyte are 2×2"), "{error}");
    }

    #[test]
    fn a_folder_in_place_of_a_file_is_named() {
        let dir = folder(&[]);
        fs::create_dir(dir.path().join(IMAGES_GZ)).unwrap();
        let error = Digits::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(IMAGES_GZ) && error.contains("cannot "), "{error}");
    }
}
