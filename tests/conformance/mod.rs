//! A runner for the node tests of the ONNX standard: graphs of a few nodes, each of which becomes calls of Tilewise.

mod activation;
mod attention;
pub mod format;
mod image;
mod loss;
mod norm;
mod product;
mod recurrent;

use std::collections::HashMap;

use prost::Message;
use tilewise::{Element, Tensor, TensorView};

use self::format::{Attribute, Case, Node};

/// Why a test did not pass.
#[derive(Debug)]
pub enum Stop {
    /// It needs what is none of Tilewise's business.
    Skip(String),
    /// The result is wrong.
    Fail(String),
}

impl From<tilewise::Error> for Stop {
    fn from(error: tilewise::Error) -> Self {
        Stop::Fail(error.to_string())
    }
}

pub type Result<T, E = Stop> = std::result::Result<T, E>;

pub fn skip<T>(reason: impl Into<String>) -> Result<T> {
    Err(Stop::Skip(reason.into()))
}

pub fn fail<T>(reason: impl Into<String>) -> Result<T> {
    Err(Stop::Fail(reason.into()))
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Single,
    Double,
    Integer,
    Boolean,
}

/// An array of any rank. `f64` holds the numbers of every kind that the suite has.
#[derive(Clone, Debug)]
pub struct Array {
    pub kind: Kind,
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Array {
    fn decode(tensor: &format::Tensor) -> Result<Self> {
        fn parts<const N: usize>(raw: &[u8], number: fn([u8; N]) -> f64) -> Vec<f64> {
            raw.chunks_exact(N).map(|bytes| number(bytes.try_into().expect("whole"))).collect()
        }
        let raw = &tensor.raw;
        let ints = || tensor.ints.iter().map(|&x| f64::from(x)).collect();
        let (kind, data) = match (tensor.kind, raw.is_empty()) {
            (1, true) => (Kind::Single, tensor.floats.iter().map(|&x| f64::from(x)).collect()),
            (1, false) => (Kind::Single, parts(raw, |bytes| f64::from(f32::from_le_bytes(bytes)))),
            (6, true) => (Kind::Integer, ints()),
            (6, false) => (Kind::Integer, parts(raw, |bytes| f64::from(i32::from_le_bytes(bytes)))),
            (7, true) => (Kind::Integer, tensor.longs.iter().map(|&x| x as f64).collect()),
            (7, false) => (Kind::Integer, parts(raw, |bytes| i64::from_le_bytes(bytes) as f64)),
            (9, true) => (Kind::Boolean, ints()),
            (9, false) => (Kind::Boolean, parts(raw, |[byte]| f64::from(byte))),
            (11, true) => (Kind::Double, tensor.doubles.clone()),
            (11, false) => (Kind::Double, parts(raw, f64::from_le_bytes)),
            (2, _) => return skip("uint8"),
            (3, _) => return skip("int8"),
            (10, _) => return skip("float16"),
            (16, _) => return skip("bfloat16"),
            (other, _) => return skip(format!("tensors of type {other}")),
        };
        let shape: Vec<usize> = tensor.shape.iter().map(|&size| size as usize).collect();
        assert_eq!(data.len(), shape.iter().product::<usize>(), "a tensor is not whole");
        Ok(Self { kind, shape, data })
    }

    pub fn new<T: Element>(data: &[T], shape: &[usize]) -> Self {
        assert_eq!(data.len(), shape.iter().product::<usize>());
        let kind = if T::NAME == "f64" { Kind::Double } else { Kind::Single };
        Self { kind, shape: shape.to_vec(), data: data.iter().map(|x| x.to_f64()).collect() }
    }

    pub fn integers(data: Vec<f64>, shape: &[usize]) -> Self {
        Self { kind: Kind::Integer, shape: shape.to_vec(), data }
    }

    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The numbers as they lie, under a shape of as many.
    pub fn to<T: Element, const N: usize>(&self, shape: [usize; N]) -> Result<Tensor<T, N>> {
        Ok(Tensor::from_slice(&self.data.iter().map(|&x| T::from_f64(x)).collect::<Vec<_>>(), shape)?)
    }

    /// With its own shape, whose rank must be that.
    pub fn tensor<T: Element, const N: usize>(&self) -> Result<Tensor<T, N>> {
        match self.shape.as_slice().try_into() {
            Ok(shape) => self.to(shape),
            Err(_) => fail(format!("rank {} where {N} is expected", self.rank())),
        }
    }

    /// All in one row.
    pub fn flat<T: Element>(&self) -> Result<Tensor<T, 1>> {
        self.to([self.data.len()])
    }

    pub fn sizes(&self) -> Vec<usize> {
        self.data.iter().map(|&x| x as usize).collect()
    }

    /// Axes in another order.
    pub fn permute(&self, axes: &[usize]) -> Self {
        let shape: Vec<usize> = axes.iter().map(|&axis| self.shape[axis]).collect();
        let strides: Vec<usize> = axes.iter().map(|&axis| self.shape[axis + 1..].iter().product()).collect();
        self.gather(shape, &strides)
    }

    /// Sizes of 1, and missing leading ones, repeated to this shape.
    pub fn broadcast(&self, shape: &[usize]) -> Result<Self> {
        let Some(missing) = shape.len().checked_sub(self.rank()) else {
            return fail(format!("{:?} does not broadcast to {shape:?}", self.shape));
        };
        let mut strides = vec![0; shape.len()];
        for axis in 0..self.rank() {
            match self.shape[axis] {
                1 => {}
                size if size == shape[missing + axis] => {
                    strides[missing + axis] = self.shape[axis + 1..].iter().product();
                }
                _ => return fail(format!("{:?} does not broadcast to {shape:?}", self.shape)),
            }
        }
        Ok(self.gather(shape.to_vec(), &strides))
    }

    fn gather(&self, shape: Vec<usize>, strides: &[usize]) -> Self {
        let data = (0..shape.iter().product())
            .map(|mut place: usize| {
                let mut at = 0;
                for (size, stride) in shape.iter().zip(strides).rev() {
                    at += place % size * stride;
                    place /= size;
                }
                self.data[at]
            })
            .collect();
        Self { kind: self.kind, shape, data }
    }

    /// An error unless it is what is expected: by the tolerance of the suite, 10⁻³ of each number and 10⁻⁷, and by ours,
    /// `tolerance` of the largest. The largest error, of the largest number.
    fn compare(&self, expected: &Self, tolerance: f64) -> Result<f64> {
        if self.shape != expected.shape {
            return fail(format!("the shape is {:?}, not {:?}", self.shape, expected.shape));
        }
        if self.kind != expected.kind {
            return fail(format!("the type is {:?}, not {:?}", self.kind, expected.kind));
        }
        let exact = !matches!(expected.kind, Kind::Single | Kind::Double);
        let finite = expected.data.iter().filter(|x| x.is_finite());
        let scale = finite.fold(0.0, |max: f64, x| max.max(x.abs()));
        let mut worst = 0.0;
        for (place, (&found, &expected)) in self.data.iter().zip(&expected.data).enumerate() {
            let off = (found - expected).abs();
            let right = found == expected
                || found.is_nan() && expected.is_nan()
                || !exact && off <= 1e-3 * expected.abs() + 1e-7 && off <= tolerance * scale;
            if !right {
                return fail(format!("at {place}: {found:e}, not {expected:e}"));
            }
            if found != expected && !found.is_nan() && tolerance == TOLERANCE {
                worst = f64::max(worst, off / scale);
            }
        }
        Ok(worst)
    }
}

/// Of the largest number of an output, in which a sum may be off.
const TOLERANCE: f64 = 2e-6;

/// Tests whose outputs were written with four digits.
const ROUNDED: [&str; 1] = ["test_averagepool_2d_ceil_last_window_starts_on_pad"];

/// A tensor that has been computed.
impl<T: Element, const N: usize> From<Tensor<T, N>> for Array {
    fn from(tensor: Tensor<T, N>) -> Self {
        Self::new(tensor.as_slice(), &tensor.shape())
    }
}

impl<T: Element, const N: usize> From<TensorView<'_, T, N>> for Array {
    fn from(view: TensorView<'_, T, N>) -> Self {
        Self::new(&view.iter().copied().collect::<Vec<T>>(), &view.shape())
    }
}

/// A node with its inputs.
pub struct Call<'a> {
    node: &'a Node,
    inputs: Vec<Option<&'a Array>>,
    operator_set: i64,
}

impl<'a> Call<'a> {
    fn attribute(&self, name: &str) -> Option<&'a Attribute> {
        self.node.attributes.iter().find(|attribute| attribute.name == name)
    }

    pub fn float(&self, name: &str, default: f64) -> f64 {
        // Attributes are single, and what they mean is mostly the double: 0.1.
        self.attribute(name).map_or(default, |attribute| f64::from(attribute.float))
    }

    pub fn floats(&self, name: &str) -> Vec<f64> {
        let numbers = self.attribute(name).map_or(&[][..], |attribute| &attribute.floats);
        numbers.iter().map(|&x| f64::from(x)).collect()
    }

    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.int)
    }

    pub fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    pub fn text(&self, name: &str) -> Option<String> {
        self.attribute(name).map(|attribute| String::from_utf8_lossy(&attribute.string).into_owned())
    }

    pub fn texts(&self, name: &str) -> Vec<String> {
        let text = |text: &Vec<u8>| String::from_utf8_lossy(text).into_owned();
        self.attribute(name).map_or_else(Vec::new, |attribute| attribute.strings.iter().map(text).collect())
    }

    pub fn ints(&self, name: &str) -> Option<Vec<usize>> {
        self.attribute(name).map(|attribute| attribute.ints.iter().map(|&x| x as usize).collect())
    }

    /// An axis, from behind where it is negative.
    pub fn axis(&self, default: i64, rank: usize) -> usize {
        let axis = self.int("axis", default);
        (if axis < 0 { axis + rank as i64 } else { axis }) as usize
    }

    pub fn input(&self, at: usize) -> Option<&'a Array> {
        self.inputs.get(at).copied().flatten()
    }

    pub fn need(&self, at: usize) -> Result<&'a Array> {
        self.input(at).map_or_else(|| fail(format!("input {at} is missing")), Ok)
    }

    pub fn wants(&self, output: usize) -> bool {
        self.node.outputs.get(output).is_some_and(|name| !name.is_empty())
    }
}

/// Operators by family: what the tables say is covered.
pub const FAMILIES: [(&str, &[&str]); 8] = [
    ("activation", activation::OPERATORS),
    ("attention", attention::OPERATORS),
    ("image", image::OPERATORS),
    ("loss", loss::OPERATORS),
    ("normalisation", norm::OPERATORS),
    ("product", product::OPERATORS),
    ("recurrent", recurrent::OPERATORS),
    ("softmax", &["LogSoftmax", "Softmax"]),
];

/// The operator that a test is about: the first that is covered.
pub fn subject(case: &Case) -> Option<&str> {
    let covered = |name: &str| FAMILIES.iter().any(|(_, operators)| operators.contains(&name));
    case.graph.nodes.iter().map(|node| node.operator.as_str()).find(|name| covered(name))
}

/// Runs a test; the largest error relative to the largest number of an output.
pub fn run(case: &Case) -> Result<f64> {
    let tolerance = if ROUNDED.iter().any(|name| case.name.ends_with(name)) { 1e-3 } else { TOLERANCE };
    let mut worst = 0.0;
    if case.runs.is_empty() {
        return fail("there are no numbers to compare with");
    }
    for [inputs, outputs] in &case.runs {
        let decode = |bytes: &Vec<u8>| match format::Tensor::decode(bytes.as_slice()) {
            Ok(tensor) => Array::decode(&tensor),
            Err(error) => fail(error.to_string()),
        };
        let mut values = HashMap::new();
        for tensor in &case.graph.initializers {
            values.insert(tensor.name.as_str(), Array::decode(tensor)?);
        }
        let names: Vec<_> = case.graph.inputs.iter().map(|input| input.name.as_str()).collect();
        let free: Vec<_> = names.into_iter().filter(|name| !values.contains_key(name)).collect();
        for (name, bytes) in free.into_iter().zip(inputs) {
            values.insert(name, decode(bytes)?);
        }
        // Before anything is computed: a test of a type that there is not is skipped, whatever else it has.
        let outputs = outputs.iter().map(decode).collect::<Result<Vec<_>>>()?;
        for node in &case.graph.nodes {
            let inputs = node.inputs.iter().map(|name| values.get(name.as_str())).collect();
            let found = evaluate(&Call { node, inputs, operator_set: case.operator_set })?;
            values.extend(node.outputs.iter().map(String::as_str).zip(found));
        }
        if outputs.len() != case.graph.outputs.len() {
            return fail("the outputs are not those of the graph");
        }
        for (output, expected) in case.graph.outputs.iter().zip(&outputs) {
            let Some(found) = values.get(output.name.as_str()) else {
                return fail(format!("there is no output {}", output.name));
            };
            worst = f64::max(worst, found.compare(expected, tolerance)?);
        }
    }
    Ok(worst)
}

fn evaluate(call: &Call) -> Result<Vec<Array>> {
    let structure = match call.node.operator.as_str() {
        "Constant" => match call.attribute("value").and_then(|value| value.tensor.as_ref()) {
            Some(tensor) => Array::decode(tensor)?,
            None => return skip("a constant that is no tensor"),
        },
        "Identity" => call.need(0)?.clone(),
        "Transpose" => {
            let x = call.need(0)?;
            x.permute(&call.ints("perm").unwrap_or_else(|| (0..x.rank()).rev().collect()))
        }
        "Reshape" => Array { shape: call.need(1)?.sizes(), ..call.need(0)?.clone() },
        // Axes are an attribute in old versions and an input in new ones.
        "Squeeze" | "Unsqueeze" => {
            let (x, axes) = (call.need(0)?, call.ints("axes").or(call.input(1).map(Array::sizes)));
            let (Some(axes), mut shape) = (axes, x.shape.clone()) else { return skip("no axes") };
            if call.node.operator == "Squeeze" {
                let kept = |(axis, _): &(usize, usize)| !axes.contains(axis);
                shape = shape.into_iter().enumerate().filter(kept).map(|(_, size)| size).collect();
            } else {
                axes.iter().for_each(|&axis| shape.insert(axis, 1));
            }
            Array { shape, ..x.clone() }
        }
        // All its real numbers are of one type.
        _ if call.inputs.iter().flatten().any(|x| x.kind == Kind::Double) => return operator::<f64>(call),
        _ => return operator::<f32>(call),
    };
    Ok(vec![structure])
}

fn operator<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let name = call.node.operator.as_str();
    let family = FAMILIES.iter().find(|(_, operators)| operators.contains(&name));
    match family.map(|(family, _)| *family) {
        Some("activation") => activation::run::<T>(call),
        Some("attention") => attention::run::<T>(call),
        Some("image") => image::run::<T>(call),
        Some("loss") => loss::run::<T>(call),
        Some("normalisation") => norm::run::<T>(call),
        Some("product") => product::run::<T>(call),
        Some("recurrent") => recurrent::run::<T>(call),
        Some("softmax") => softmax::<T>(call),
        _ => skip(format!("{name} is no operator of Tilewise")),
    }
}

fn softmax<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let x = call.need(0)?;
    let old = call.operator_set < 13;
    let axis = call.axis(if old { 1 } else { -1 }, x.rank());
    // Before version 13 all axes from the given one on were one.
    let size = if old { x.shape[axis..].iter().product() } else { x.shape[axis] };
    let outer = x.shape[..axis].iter().product::<usize>();
    let inner = x.data.len().checked_div(outer * size).unwrap_or(0);
    let mut softmax = tilewise::softmax::Softmax::new(1);
    if call.node.operator == "LogSoftmax" {
        softmax = softmax.logarithm();
    }
    let y = softmax.forward(x.to::<T, 3>([outer, size, inner])?.view())?;
    Ok(vec![Array::new(y.as_slice(), &x.shape)])
}
