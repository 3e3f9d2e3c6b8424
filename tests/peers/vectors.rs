//! Cases of `data/pytorch.safetensors.gz`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;

use safetensors::SafeTensors;
use tilewise::{Tensor, TensorView};

/// Options and arrays by their names.
pub struct Case {
    pub name: String,
    pub operation: String,
    options: HashMap<String, String>,
    arrays: HashMap<String, (Vec<usize>, Vec<f64>)>,
    read: RefCell<BTreeSet<String>>,
}

/// All cases, in the order of their names.
fn cases() -> Vec<Case> {
    let mut bytes = Vec::new();
    let packed = include_bytes!("../data/pytorch.safetensors.gz");
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut bytes).expect("the file is whole");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a header");
    let mut cases = BTreeMap::new();
    for (name, line) in header.metadata().as_ref().expect("options") {
        let mut words = line.split(' ');
        let operation = words.next().expect("an operation").to_owned();
        let options = words.filter_map(|word| word.split_once('='));
        let options = options.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
        let (arrays, read) = (HashMap::new(), RefCell::default());
        cases.insert(name.clone(), Case { name: name.clone(), operation, options, arrays, read });
    }
    for (name, tensor) in SafeTensors::deserialize(&bytes).expect("tensors").tensors() {
        let (case, array) = name.rsplit_once('/').expect("case/array");
        let numbers = tensor.data().chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().expect("8")));
        let array = (array.to_owned(), (tensor.shape().to_vec(), numbers.collect()));
        cases.get_mut(case).expect("a case").arrays.extend([array]);
    }
    cases.into_values().collect()
}

/// Runs every case of these operations, of which there are as many as given.
pub fn each(expected: &[(&str, usize)], run: impl Fn(&Case)) {
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    for case in cases().iter().filter(|case| expected.iter().any(|(name, _)| *name == case.operation)) {
        run(case);
        let unread: Vec<_> = case.arrays.keys().filter(|name| !case.read.borrow().contains(*name)).collect();
        assert!(unread.is_empty(), "{}: {unread:?} were not looked at", case.name);
        *found.entry(case.operation.clone()).or_default() += 1;
    }
    let expected: BTreeMap<_, _> = expected.iter().map(|&(name, count)| (name.to_owned(), count)).collect();
    assert_eq!(found, expected, "cases of each operation");
}

/// How many cases there are of all operations.
#[test]
fn all_cases_are_there() {
    assert_eq!(cases().len(), 207);
}

impl Case {
    pub fn text(&self, option: &str) -> Option<&str> {
        self.options.get(option).map(String::as_str)
    }

    pub fn number(&self, option: &str) -> Option<f64> {
        self.text(option).map(|text| text.parse().expect("a number"))
    }

    pub fn size(&self, option: &str) -> usize {
        self.text(option).map_or(0, |text| text.parse().expect("a size"))
    }

    pub fn list(&self, option: &str) -> Option<Vec<usize>> {
        self.text(option).map(|text| text.split(',').map(|size| size.parse().expect("a size")).collect())
    }

    pub fn sizes<const N: usize>(&self, option: &str) -> [usize; N] {
        self.list(option).expect("sizes").try_into().expect("as many as axes")
    }

    pub fn has(&self, array: &str) -> bool {
        self.arrays.contains_key(array)
    }

    /// An array's numbers and shape.
    pub fn array(&self, name: &str) -> (&[usize], &[f64]) {
        let (shape, numbers) = self.arrays.get(name).unwrap_or_else(|| panic!("{}: no {name}", self.name));
        self.read.borrow_mut().insert(name.to_owned());
        (shape, numbers)
    }

    pub fn rank(&self, array: &str) -> usize {
        self.array(array).0.len()
    }

    /// The numbers under a shape of as many.
    pub fn reshaped<const N: usize>(&self, array: &str, shape: [usize; N]) -> TensorView<'_, f64, N> {
        TensorView::from_slice(self.array(array).1, shape).expect("as many")
    }

    pub fn view<const N: usize>(&self, array: &str) -> TensorView<'_, f64, N> {
        self.reshaped(array, self.array(array).0.try_into().expect("the rank"))
    }

    pub fn maybe<const N: usize>(&self, array: &str) -> Option<TensorView<'_, f64, N>> {
        self.has(array).then(|| self.view(array))
    }

    pub fn tensor<const N: usize>(&self, array: &str) -> Tensor<f64, N> {
        self.view(array).to_tensor().expect("memory")
    }

    /// Fails unless these are the array's numbers.
    pub fn check(&self, array: &str, found: &[f64]) {
        let (_, expected) = self.array(array);
        assert_eq!(found.len(), expected.len(), "{}: {array}", self.name);
        for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let close = (found - expected).abs() <= 1e-12 * (1.0 + expected.abs());
            assert!(close, "{}: {array} has {found} at {at}, not {expected}", self.name);
        }
    }
}
