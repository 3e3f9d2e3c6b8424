//! Views from hostile numbers, against lists of buffer positions.
//!
//! Every element of a buffer is its own position, so a view shows where it leads. What the library takes
//! must be what the model says, what it refuses the model must refuse, and nothing may panic.
#![no_main]

mod model;
mod numbers;
mod program;

use std::fmt::Debug;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tilewise::{Layout, Result, TensorView, TensorViewMut};

use model::{Model, Outcome, indices};
use numbers::{Size, Stride};
use program::{Exclusive, Op, RANKS, Shared, each, ranked};

/// No more elements than this are looked at one by one.
const FEW: usize = 4096;

#[derive(Arbitrary, Debug)]
struct Input {
    start: Start,
    program: Vec<Op>,
    elements: Elements,
}

#[derive(Arbitrary, Debug)]
enum Elements {
    Shared,
    Exclusive,
    /// Of no size, so that a slice may be as long as a number.
    Nothing,
}

#[derive(Arbitrary, Debug)]
enum Start {
    /// A slice of this length.
    Strided {
        len: Size,
        offset: Size,
        axes: Vec<(Size, Stride)>,
    },
    /// A slice that fits exactly, where the numbers are small.
    Fitting {
        axes: Vec<(Size, Stride)>,
    },
    FromSlice {
        len: Option<Size>,
        shape: Vec<Size>,
    },
}

impl Start {
    /// Length of the slice, offset, shape and, unless they are row-major, strides.
    fn resolve(&self) -> (usize, usize, Vec<usize>, Option<Vec<Stride>>) {
        let unzip = |axes: &[(Size, Stride)]| -> (Vec<usize>, Vec<Stride>) {
            axes.iter().map(|&(Size(n), stride)| (n, stride)).unzip()
        };
        match self {
            Start::Strided { len, offset, axes } => {
                let (shape, strides) = unzip(axes);
                (len.0, offset.0, shape, Some(strides))
            }
            Start::Fitting { axes } => {
                let (shape, strides) = unzip(axes);
                let (mut before, mut after) = (0usize, 1usize);
                for (&n, stride) in shape.iter().zip(&strides) {
                    let reach = n.saturating_sub(1).saturating_mul(stride.0.unsigned_abs());
                    let side = if stride.0 < 0 { &mut before } else { &mut after };
                    *side = side.saturating_add(reach);
                }
                (before.saturating_add(after), before, shape, Some(strides))
            }
            Start::FromSlice { len, shape } => {
                let shape: Vec<usize> = shape.iter().map(|n| n.0).collect();
                let product = shape.iter().fold(1usize, |product, &n| product.saturating_mul(n));
                (len.map_or(product, |len| len.0), 0, shape, None)
            }
        }
    }
}

/// An element that may know its position.
trait Cell: Copy + Debug + PartialEq {
    fn position(self) -> Option<usize>;
}

impl Cell for u16 {
    fn position(self) -> Option<usize> {
        Some(self.into())
    }
}

impl Cell for () {
    fn position(self) -> Option<usize> {
        None
    }
}

fuzz_target!(|input: Input| {
    let (len, offset, shape, strides) = input.start.resolve();
    if !RANKS.contains(&shape.len()) {
        return;
    }
    let expected = match &strides {
        Some(strides) => Model::strided(len, offset, &shape, strides),
        None => Model::contiguous(len, &shape),
    };
    if let Elements::Nothing = input.elements {
        // SAFETY: elements without a size are everywhere.
        let data = unsafe { std::slice::from_raw_parts(std::ptr::NonNull::<()>::dangling().as_ptr(), len) };
        let view = build(data, offset, &shape, strides.as_deref());
        if let Some(view) = accept(view, expected.map(|model| Model { positions: None, ..model })) {
            run(view.0, view.1, &input.program);
        }
        return;
    }
    // A slice of the length that the fuzzer asked for would have to be there.
    if len > 1 << 15 {
        return;
    }
    let mut data: Vec<u16> = (0..len as u16).collect();
    let view = build(&data, offset, &shape, strides.as_deref());
    let Some((view, model)) = accept(view, expected) else {
        if let Elements::Exclusive = input.elements {
            assert!(build_mut(&mut data, offset, &shape, strides.as_deref()).is_err());
        }
        return;
    };
    match input.elements {
        Elements::Exclusive => {
            exclusive(&mut data, offset, &shape, strides.as_deref(), model, &input.program)
        }
        _ => run(view, model, &input.program),
    }
});

fn build<'a, T>(
    data: &'a [T],
    offset: usize,
    shape: &[usize],
    strides: Option<&[Stride]>,
) -> Result<Shared<'a, T>> {
    ranked!(shape.len(), N => {
        let shape: [usize; N] = shape.try_into().expect("of this rank");
        match strides {
            None => TensorView::from_slice(data, shape).map(Shared::from),
            Some(strides) => {
                let strides: [isize; N] = std::array::from_fn(|axis| strides[axis].0);
                let view = TensorView::as_strided_at(data, offset, shape, strides);
                if offset == 0 {
                    assert_eq!(TensorView::as_strided(data, shape, strides).is_ok(), view.is_ok());
                }
                view.map(Shared::from)
            }
        }
    })
}

fn build_mut<'a, T>(
    data: &'a mut [T],
    offset: usize,
    shape: &[usize],
    strides: Option<&[Stride]>,
) -> Result<Exclusive<'a, T>> {
    ranked!(shape.len(), N => {
        let shape: [usize; N] = shape.try_into().expect("of this rank");
        match strides {
            None => TensorViewMut::from_slice(data, shape).map(Exclusive::from),
            Some(strides) => {
                let strides: [isize; N] = std::array::from_fn(|axis| strides[axis].0);
                TensorViewMut::as_strided_at(data, offset, shape, strides).map(Exclusive::from)
            }
        }
    })
}

/// The view and its model where both say yes, nothing where both say no.
fn accept<V>(view: Result<V>, expected: Option<Model>) -> Option<(V, Model)> {
    match (view, expected) {
        (Ok(view), Some(model)) => Some((view, model)),
        (Err(error), None) => {
            assert!(!error.to_string().is_empty());
            None
        }
        (Ok(_), None) => panic!("accepted what should be refused"),
        (Err(error), Some(model)) => panic!("refused {:?}: {error}", model.shape),
    }
}

/// The operation with its numbers filled in from the view's shape.
fn concrete(op: &Op, model: &Model) -> Op {
    let split = |sizes: Option<Vec<usize>>| {
        Op::Reshape(sizes.expect("the model did not skip it").into_iter().map(Size).collect())
    };
    match op {
        Op::SplitAxis(axis, by) => split(model.split_axis(axis.0, by.0)),
        Op::MergeAxes(axis) => split(model.merge_axes(axis.0)),
        op => op.clone(),
    }
}

/// One step: what the operation gives, checked against the model; `None` where it was refused or skipped.
fn step<'a, T: Cell>(view: Shared<'a, T>, model: &Model, op: &Op) -> Option<(Shared<'a, T>, Model, Op)> {
    let outcome = model.apply(op, &RANKS);
    if let Outcome::Skipped = outcome {
        return None;
    }
    let expected = match outcome {
        Outcome::View(model) => Some(model),
        _ => None,
    };
    let op = match op {
        Op::SplitAxis(..) | Op::MergeAxes(_) => concrete(op, model),
        op => op.clone(),
    };
    let reshapes_the_unlisted = matches!(op, Op::Reshape(_)) && model.positions.is_none();
    let result = view.apply(&op);
    if reshapes_the_unlisted && result.is_err() {
        return None;
    }
    let (view, mut model) = accept(result, expected)?;
    if model.positions.is_none() && model.count() <= FEW {
        // Listed from here on, as the library says they are.
        model.positions = each!(Shared: view, v => v.iter().map(|cell| cell.position()).collect());
    }
    check(view, &model);
    Some((view, model, op))
}

fn run<T: Cell>(mut view: Shared<'_, T>, mut model: Model, program: &[Op]) {
    check(view, &model);
    for op in program {
        if let Some((next, of_next, _)) = step(view, &model, op) {
            (view, model) = (next, of_next);
        }
    }
}

fn exclusive(
    data: &mut [u16],
    offset: usize,
    shape: &[usize],
    strides: Option<&[Stride]>,
    mut model: Model,
    program: &[Op],
) {
    let Ok(mut view) = build_mut(data, offset, shape, strides) else {
        assert!(strides.is_some(), "a row-major view was refused");
        let strides = strides.unwrap_or_default();
        ranked!(shape.len(), N => {
            let strides: [isize; N] = std::array::from_fn(|axis| strides[axis].0);
            let layout = Layout::<N>::new(shape.try_into().expect("of this rank"), strides);
            assert!(layout.is_ok_and(|layout| layout.may_overlap()));
        });
        return;
    };
    check(view.view(), &model);
    for op in program {
        if matches!(op, Op::Broadcast(_) | Op::Windows(_)) {
            continue;
        }
        let Some((_, of_next, op)) = step(view.view(), &model, op) else {
            if let Op::SplitAt { axis, at, .. } = op {
                each!(Exclusive: &mut view, v => assert!(v.view_mut().split_at(axis.0, at.0).is_err()));
            }
            continue;
        };
        view = view.apply(&op).expect("a shared view could");
        model = of_next;
        check(view.view(), &model);
    }
    let Some(positions) = model.positions else { return };
    let mut reached = vec![false; 1 << 15];
    for &at in &positions {
        assert!(!std::mem::replace(&mut reached[at], true), "two indices lead to one element");
    }
    each!(Exclusive: &mut view, v => {
        let fresh: Vec<u16> = (0..positions.len() as u16).map(|i| i ^ 0xA5A5).collect();
        let fresh = TensorView::from_slice(&fresh, v.shape()).expect("as many");
        v.assign(fresh).expect("of this shape");
        assert!(v.view() == fresh);
        assert_eq!(v.as_mut_slice().map(|slice| slice.len()), v.view().as_slice().map(<[u16]>::len));
        v.fill(u16::MAX);
        for index in indices_of(&model.shape) {
            let index = index.as_slice().try_into().expect("of this rank");
            *v.get_mut(index).expect("inside") -= 1;
        }
    });
    for (at, &element) in data.iter().enumerate() {
        assert_eq!(element, if reached[at] { u16::MAX - 1 } else { at as u16 });
    }
}

/// All indices of a shape of few elements.
fn indices_of(shape: &[usize]) -> Vec<Vec<usize>> {
    if shape.contains(&0) { vec![] } else { indices(shape) }
}

/// Everything that a view tells about itself.
fn check<T: Cell>(view: Shared<'_, T>, model: &Model) {
    each!(Shared: view, v => check_view(v, model));
}

fn check_view<T: Cell, const N: usize>(view: TensorView<'_, T, N>, model: &Model) {
    assert_eq!(view.shape(), model.shape[..]);
    assert_eq!(view.len(), model.count());
    assert_eq!(view.is_empty(), model.count() == 0);
    let (low, high) = view.layout().span();
    assert!(low <= 0 && high >= 0 && high.checked_sub(low).is_some());
    let overlaps = view.layout().may_overlap();
    let contiguous = view.layout().is_contiguous();
    assert_eq!(view.as_slice().is_some(), contiguous);
    assert_eq!(view.iter().len(), view.len());
    if let Some(outside) = (0..N).find(|&axis| view.shape()[axis] < usize::MAX) {
        let mut index = [0; N];
        index[outside] = view.shape()[outside];
        assert!(view.get(index).is_none());
    }
    if !view.is_empty() {
        // The far corner, then one element somewhere.
        let far = view.shape().map(|n| n - 1);
        assert!(view.get(far).is_some());
        assert_eq!(view.get(far.map(|i| i / 3)).copied(), view.get(far.map(|i| i / 3)).copied());
    }
    let Some(positions) = &model.positions else {
        if N <= 3 {
            assert!(format!("{view:?}").len() < 1 << 16);
        }
        return;
    };
    let found: Vec<usize> = view.iter().filter_map(|cell| cell.position()).collect();
    assert_eq!(&found, positions);
    let found = indices_of(&model.shape).into_iter().map(|index| {
        view.get(index.as_slice().try_into().expect("of this rank")).expect("inside").position()
    });
    assert!(found.eq(positions.iter().map(|&at| Some(at))));
    if !overlaps {
        let mut sorted = positions.clone();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] < pair[1]), "may_overlap says they cannot");
    }
    assert_eq!(Some(contiguous), model.is_contiguous());
    if let Some(slice) = view.as_slice() {
        assert!(slice.iter().filter_map(|cell| cell.position()).eq(positions.iter().copied()));
    }
    let copy = view.to_tensor().expect("a few bytes");
    assert!(copy.view() == view);
    if let Some(text) = model.print() {
        assert_eq!(format!("{view:?}"), text);
    }
}
