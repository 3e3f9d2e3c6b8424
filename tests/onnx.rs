//! The ONNX standard's own node tests, run by Tilewise: inputs and outputs that nobody here has made.
//!
//! `data/onnx/vectors.tar.gz` holds those of the operators that Tilewise covers; `data/onnx/fetch.py` says where they come
//! from. `ONNX_NODE_TESTS=DIR cargo test --test onnx` runs those below another folder instead, the whole suite for
//! example, and leaves out operators that are not covered.

mod conformance;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;

use conformance::{FAMILIES, Stop, format, run, subject};
use prost::Message;

#[derive(Default)]
struct Row {
    passed: usize,
    /// How often for which reason.
    skipped: BTreeMap<String, usize>,
    failed: Vec<String>,
    /// The largest error, of the largest number of an output.
    error: f64,
}

impl Row {
    fn total(&self) -> usize {
        self.passed + self.skipped.values().sum::<usize>() + self.failed.len()
    }
}

/// Where tests of another folder are.
fn folder() -> Option<PathBuf> {
    std::env::var_os("ONNX_NODE_TESTS").map(PathBuf::from)
}

/// All tests by operator, run once.
fn table() -> &'static BTreeMap<String, Row> {
    static TABLE: OnceLock<BTreeMap<String, Row>> = OnceLock::new();
    TABLE.get_or_init(|| {
        let files = match folder() {
            Some(folder) => format::read(&folder),
            None => format::unpack(include_bytes!("data/onnx/vectors.tar.gz")),
        };
        let mut table = BTreeMap::<String, Row>::new();
        for case in format::cases(&files) {
            let Some(operator) = subject(&case) else { continue };
            let row = table.entry(operator.to_owned()).or_default();
            match run(&case) {
                Ok(error) => (row.passed, row.error) = (row.passed + 1, row.error.max(error)),
                Err(Stop::Skip(reason)) => *row.skipped.entry(reason).or_default() += 1,
                Err(Stop::Fail(reason)) => row.failed.push(format!("{}: {reason}", case.name)),
            }
        }
        table
    })
}

/// The operators of a family: none fails, and of the stored tests exactly as many as given pass and are skipped.
fn family(name: &str, expected: &[(&str, usize, usize)]) {
    let (_, operators) = FAMILIES.iter().find(|(family, _)| *family == name).expect("a family");
    let mut found = Vec::new();
    for operator in *operators {
        let row = table().get(*operator);
        if let Some(row) = row {
            assert!(row.failed.is_empty(), "{operator}:\n{}", row.failed.join("\n"));
        }
        found.push((
            *operator,
            row.map_or(0, |row| row.passed),
            row.map_or(0, |row| row.skipped.values().sum()),
        ));
    }
    if folder().is_none() {
        assert_eq!(found, expected, "tests that pass and tests that are skipped");
    }
}

#[test]
fn activations() {
    family(
        "activation",
        &[
            ("Celu", 1, 0),
            ("Elu", 4, 0),
            ("Erf", 1, 0),
            ("Exp", 3, 0),
            ("Gelu", 4, 0),
            ("HardSigmoid", 3, 0),
            ("HardSwish", 1, 0),
            ("LeakyRelu", 5, 0),
            ("Log", 2, 0),
            ("Mish", 1, 0),
            ("PRelu", 8, 0),
            ("Relu", 3, 0),
            ("Selu", 5, 0),
            ("Sigmoid", 3, 0),
            ("Softplus", 3, 0),
            ("Softsign", 2, 0),
            ("Swish", 1, 0),
            ("Tanh", 3, 0),
            ("ThresholdedRelu", 3, 0),
        ],
    );
}

#[test]
fn attention() {
    family("attention", &[("Attention", 62, 2), ("RotaryEmbedding", 8, 0)]);
}

#[test]
fn images() {
    family(
        "image",
        &[
            ("AveragePool", 27, 0),
            ("Col2Im", 5, 0),
            ("Conv", 33, 0),
            ("ConvTranspose", 14, 0),
            ("GlobalAveragePool", 2, 0),
            ("GlobalMaxPool", 2, 0),
            ("LpPool", 8, 0),
            ("MaxPool", 27, 1),
        ],
    );
}

#[test]
fn losses() {
    family("loss", &[("NegativeLogLikelihoodLoss", 18, 0), ("SoftmaxCrossEntropyLoss", 34, 0)]);
}

#[test]
fn normalisations() {
    family(
        "normalisation",
        &[
            ("BatchNormalization", 9, 0),
            ("GroupNormalization", 2, 0),
            ("InstanceNormalization", 3, 0),
            ("LayerNormalization", 19, 0),
            ("RMSNormalization", 19, 0),
        ],
    );
}

#[test]
fn products() {
    family("product", &[("Gemm", 14, 0), ("MatMul", 8, 0)]);
}

#[test]
fn recurrent_layers() {
    family("recurrent", &[("GRU", 4, 0), ("LSTM", 4, 0), ("RNN", 4, 0)]);
}

#[test]
fn softmaxes() {
    family("softmax", &[("LogSoftmax", 10, 0), ("Softmax", 10, 0)]);
}

/// Written past the harness, which would keep it from who looks at the log.
#[test]
fn the_table() {
    let mut text = format!(
        "{:<26}{:>7}{:>9}{:>7}  {:<9}{}\n",
        "operator", "passed", "skipped", "total", "error", "why skipped"
    );
    for (operator, row) in table() {
        let skipped: usize = row.skipped.values().sum();
        let reasons: Vec<_> = row.skipped.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let (passed, total, error) = (row.passed, row.total(), format!("{:.0e}", row.error));
        text +=
            &format!("{operator:<26}{passed:>7}{skipped:>9}{total:>7}  {error:<9}{}\n", reasons.join(", "));
    }
    let sum = |of: fn(&Row) -> usize| table().values().map(of).sum::<usize>();
    let skipped = sum(|row| row.skipped.values().sum());
    text += &format!("{:<26}{:>7}{skipped:>9}{:>7}\n", "all", sum(|row| row.passed), sum(Row::total));
    std::io::stderr().write_all(text.as_bytes()).expect("written");
    assert!(!table().is_empty(), "there are no tests");
}

/// The suite has no `float64` for these operators: a folder as another suite might have it, a product and an activation.
#[test]
fn double_precision_stays_double() {
    let text = |text: &str| text.to_owned();
    let node = |operator: &str, inputs: &[&str], output: &str| format::Node {
        inputs: inputs.iter().map(|&name| text(name)).collect(),
        outputs: vec![text(output)],
        operator: text(operator),
        attributes: Vec::new(),
    };
    let name = |name: &str| format::Name { name: text(name) };
    let (a, b) = ([0.1, -0.7, 1.0 / 3.0, 0.9], [1.0 / 7.0, 0.3, -1.1, 0.6]);
    let [[p, q], [r, s]] =
        [[0, 1], [2, 3]].map(|[i, j]| [[0, 2], [1, 3]].map(|[k, l]| a[i] * b[k] + a[j] * b[l]));
    let relu = [p, q, r, s].map(|x: f64| x.max(0.0));
    assert!(relu.contains(&0.0) && relu.iter().any(|&x| x != f64::from(x as f32)));
    let raw = |numbers: [f64; 4]| format::Tensor {
        shape: vec![2, 2],
        kind: 11,
        raw: numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ..format::Tensor::default()
    };
    // Numbers are written in either way.
    let typed = format::Tensor { name: text("b"), doubles: b.to_vec(), raw: Vec::new(), ..raw(b) };
    let model = format::Model {
        graph: Some(format::Graph {
            nodes: vec![node("Gemm", &["a", "b"], "c"), node("Relu", &["c"], "y")],
            initializers: vec![typed],
            inputs: vec![name("a")],
            outputs: vec![name("y")],
        }),
        operator_sets: vec![format::OperatorSet { domain: String::new(), version: 14 }],
    };
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("node/test_double/test_data_set_0");
    std::fs::create_dir_all(&data).expect("folders");
    let files = [
        ("../model.onnx", model.encode_to_vec()),
        ("input_0.pb", raw(a).encode_to_vec()),
        ("output_0.pb", raw(relu).encode_to_vec()),
    ];
    for (name, bytes) in files {
        std::fs::write(data.join(name), bytes).expect("written");
    }
    let cases = format::cases(&format::read(folder.path()));
    assert_eq!(cases.iter().map(subject).collect::<Vec<_>>(), [Some("Gemm")]);
    let error = run(&cases[0]).expect("it passes");
    assert!(error < 1e-15, "{error:e}: single precision has 3e-8");
}
