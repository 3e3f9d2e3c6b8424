//! The format of the suite: folders of a model and of its inputs and outputs, in protocol buffers.
//!
//! Messages hold the fields that are read, with the numbers that `onnx.proto` gives them.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use prost::Message;

#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub operator_sets: Vec<OperatorSet>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub nodes: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    pub initializers: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub inputs: Vec<Name>,
    #[prost(message, repeated, tag = "12")]
    pub outputs: Vec<Name>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Name {
    #[prost(string, tag = "1")]
    pub name: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub outputs: Vec<String>,
    #[prost(string, tag = "4")]
    pub operator: String,
    #[prost(message, repeated, tag = "5")]
    pub attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub float: f32,
    #[prost(int64, tag = "3")]
    pub int: i64,
    #[prost(bytes = "vec", tag = "4")]
    pub string: Vec<u8>,
    #[prost(message, optional, tag = "5")]
    pub tensor: Option<Tensor>,
    #[prost(float, repeated, tag = "7")]
    pub floats: Vec<f32>,
    #[prost(int64, repeated, tag = "8")]
    pub ints: Vec<i64>,
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub strings: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int64, repeated, tag = "1")]
    pub shape: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub kind: i32,
    #[prost(float, repeated, tag = "4")]
    pub floats: Vec<f32>,
    #[prost(int32, repeated, tag = "5")]
    pub ints: Vec<i32>,
    #[prost(int64, repeated, tag = "7")]
    pub longs: Vec<i64>,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw: Vec<u8>,
    #[prost(double, repeated, tag = "10")]
    pub doubles: Vec<f64>,
}

/// One test of the suite.
pub struct Case {
    pub name: String,
    pub operator_set: i64,
    pub graph: Graph,
    /// Inputs and outputs of each run.
    pub runs: Vec<[Vec<Vec<u8>>; 2]>,
}

/// Files by their paths.
pub type Files = BTreeMap<String, Vec<u8>>;

/// The files of a tar archive, compressed: what `fetch.py` writes, links to earlier files among it.
pub fn unpack(archive: &[u8]) -> Files {
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(archive).read_to_end(&mut tar).expect("the archive is whole");
    let text = |field: &[u8]| {
        let end = field.iter().position(|&byte| byte == 0).unwrap_or(field.len());
        String::from_utf8(field[..end].to_vec()).expect("a name")
    };
    let (mut files, mut at) = (Files::new(), 0);
    while tar[at] != 0 {
        let header = &tar[at..at + 512];
        let size = usize::from_str_radix(text(&header[124..136]).trim(), 8).expect("a size");
        let (prefix, name) = (text(&header[345..500]), text(&header[..100]));
        let path = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let data = match header[156] {
            b'1' => files[&text(&header[157..257])].clone(),
            _ => tar[at + 512..at + 512 + size].to_vec(),
        };
        files.insert(path, data);
        at += 512 + size.next_multiple_of(512);
    }
    files
}

/// The files below a folder.
pub fn read(folder: &Path) -> Files {
    let mut files = Files::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        let entries = std::fs::read_dir(&next).unwrap_or_else(|error| panic!("{}: {error}", next.display()));
        for entry in entries {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "onnx" || end == "pb") {
                let name = path.strip_prefix(folder).expect("below").to_string_lossy().into_owned();
                files.insert(name, std::fs::read(&path).expect("a file"));
            }
        }
    }
    files
}

/// The tests among files: folders with a model.
pub fn cases(files: &Files) -> Vec<Case> {
    let mut cases = Vec::new();
    for (path, model) in files {
        let Some(folder) = path.strip_suffix("model.onnx") else { continue };
        let model = Model::decode(model.as_slice()).unwrap_or_else(|error| panic!("{path}: {error}"));
        let name = folder.trim_end_matches('/').to_owned();
        let default = model.operator_sets.iter().find(|set| set.domain.is_empty() || set.domain == "ai.onnx");
        let numbered = |set: usize, what: &str| {
            (0..)
                .map_while(|i| files.get(&format!("{folder}test_data_set_{set}/{what}_{i}.pb")).cloned())
                .collect::<Vec<_>>()
        };
        let runs = (0..)
            .map(|set| ["input", "output"].map(|what| numbered(set, what)))
            .take_while(|[_, outputs]| !outputs.is_empty())
            .collect();
        let operator_set = default.map_or(0, |set| set.version);
        cases.push(Case { name, operator_set, graph: model.graph.unwrap_or_default(), runs });
    }
    cases
}
