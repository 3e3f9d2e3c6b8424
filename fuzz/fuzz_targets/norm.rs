//! Normalisation of images of any shape and strides, on every instruction set, against the scalar twin.
//!
//! Buffers end exactly where the views do, so that AddressSanitizer sees one element too many; gaps between the
//! elements of outputs hold canaries.
#![no_main]

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use tilewise::norm::{
    BatchNormalization, GroupNormalization, InstanceNormalization, LayerNormalization, NormGradientsMut,
    RmsGradientsMut, RmsNormalization,
};
use tilewise::reference::norm::{self as twin, Norm};
use tilewise::{Element, Tensor, TensorView, TensorViewMut, machine};

const CANARY: f64 = -7.25e11;

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    Layer,
    Rms,
    Batch,
    Instance,
    Group(u8),
}

/// How an operand lies in memory.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Lie {
    RowMajor,
    ChannelsLast,
    /// Read from anywhere.
    Strided([i8; 4]),
}

/// How an output lies in memory: an order of the axes, directions and gaps.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Nested {
    swaps: [u8; 3],
    flips: [bool; 4],
    gaps: [u8; 4],
}

#[derive(Arbitrary, Debug)]
struct Case {
    wide: bool,
    kind: Kind,
    isa: u8,
    shape: [u8; 4],
    lies: [Lie; 2],
    output: Nested,
    scale: Option<u8>,
    shift: Option<u8>,
    beta: u8,
    epsilon: f32,
    offset: i16,
    seed: u32,
}

struct Numbers(u32);

impl Numbers {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(self.0 >> 8) / f64::from(1 << 22) - 2.0
    }
}

/// A buffer, where its view begins, and strides.
fn operand<T: Element>(
    lie: Lie,
    shape: [usize; 4],
    numbers: &mut Numbers,
    offset: f64,
) -> (Vec<T>, usize, [isize; 4]) {
    let [_, c, h, w] = shape.map(|size| size as isize);
    let strides = match lie {
        Lie::RowMajor => [c * h * w, h * w, w, 1],
        Lie::ChannelsLast => [h * w * c, 1, w * c, c],
        Lie::Strided(strides) => strides.map(|stride| isize::from(stride) % 5),
    };
    let reach = |sign: isize| -> isize {
        (0..4).map(|axis| (strides[axis] * sign).max(0) * (shape[axis] as isize - 1).max(0)).sum()
    };
    let len = if shape.contains(&0) { 0 } else { reach(1) + reach(-1) + 1 };
    let first = if len == 0 { 0 } else { reach(-1) as usize };
    ((0..len).map(|_| T::from_f64(numbers.next() + offset)).collect(), first, strides)
}

fn nested<T: Element>(lie: Nested, shape: [usize; 4]) -> (Vec<T>, usize, [isize; 4]) {
    let mut order = [0, 1, 2, 3];
    for (at, swap) in lie.swaps.into_iter().enumerate() {
        order.swap(at, at + usize::from(swap) % (4 - at));
    }
    let (mut strides, mut next, mut first) = ([0; 4], 1, 0);
    for axis in order {
        strides[axis] = next as isize;
        if lie.flips[axis] {
            first += (shape[axis].max(1) - 1) * next;
            strides[axis] = -strides[axis];
        }
        next = next * shape[axis].max(1) + usize::from(lie.gaps[axis] % 3);
    }
    let reach: usize = (0..4).map(|axis| (shape[axis].max(1) - 1) * strides[axis].unsigned_abs()).sum();
    let len = if shape.contains(&0) { 0 } else { reach + 1 };
    (vec![T::from_f64(CANARY); len], if len == 0 { 0 } else { first }, strides)
}

fn near<T: Element, const N: usize>(
    what: &str,
    found: TensorView<'_, T, N>,
    expected: &Tensor<f64, N>,
    size: f64,
) {
    for (found, &expected) in found.iter().zip(expected) {
        let (found, bound) = (found.to_f64(), T::EPSILON.to_f64() * size);
        assert!((found - expected).abs() <= bound, "{what}: {found} {expected} ± {bound}");
    }
}

fn largest<T: Element, const N: usize>(view: TensorView<'_, T, N>) -> f64 {
    view.iter().fold(1.0, |most, x| most.max(x.to_f64().abs()))
}

fn run<T: Element>(case: &Case) {
    let shape = case.shape.map(|size| usize::from(if size < 240 { size % 7 } else { size % 40 }));
    let [batch, channels, ..] = shape;
    let rows = matches!(case.kind, Kind::Layer | Kind::Rms);
    let n = if rows { shape[3] } else { channels };
    let epsilon = f64::from(case.epsilon);
    let good_epsilon = epsilon.is_finite() && epsilon >= 0.0;
    // Where ε is tiny, rounding may be all that is left of a set; the tests look at that.
    let used = if good_epsilon { epsilon.clamp(1e-3, 1e3) } else { epsilon };
    let mut numbers = Numbers(case.seed);
    let offset = f64::from(case.offset % 100);
    let (x, x_at, x_strides) = operand::<T>(case.lies[0], shape, &mut numbers, offset);
    let (dy, dy_at, dy_strides) = operand::<T>(case.lies[1], shape, &mut numbers, 0.0);
    let x = TensorView::as_strided_at(&x, x_at, shape, x_strides).expect("inside");
    let dy = TensorView::as_strided_at(&dy, dy_at, shape, dy_strides).expect("inside");
    let (mut output, y_at, y_strides) = nested::<T>(case.output, shape);
    // One in eight vectors has a wrong length.
    let mut vector = |tag: Option<u8>| {
        let len = tag.map(|tag| if tag % 8 == 7 { n + 1 } else { n });
        len.map(|len| Tensor::from_fn([len], |_| T::from_f64(numbers.next())).expect("memory"))
    };
    let (scale, shift) = (vector(case.scale), vector(case.shift));
    let (scale, shift) = (scale.as_ref().map(Tensor::view), shift.as_ref().map(Tensor::view));
    let fits = |v: Option<TensorView<'_, T, 1>>| v.is_none_or(|v| v.len() == n);
    let shift = shift.filter(|_| !matches!(case.kind, Kind::Rms));
    let (norm, divides) = match case.kind {
        Kind::Layer => (Norm::Layer, true),
        Kind::Rms => (Norm::Rms, true),
        Kind::Batch => (Norm::Batch, true),
        Kind::Instance => (Norm::Instance, true),
        Kind::Group(groups) => {
            let groups = usize::from(groups % 8);
            (Norm::Group(groups), channels.is_multiple_of(groups))
        }
    };
    let (layer, rms) = (LayerNormalization::new().epsilon(used), RmsNormalization::new().epsilon(used));
    let (batch_norm, instance) =
        (BatchNormalization::new().epsilon(used), InstanceNormalization::new().epsilon(used));
    let group = |groups| GroupNormalization::new(groups).epsilon(used);

    let y = TensorViewMut::as_strided_at(&mut output, y_at, shape, y_strides).expect("disjoint");
    let mut statistics = [Tensor::zeros([n]).expect("memory"), Tensor::zeros([n]).expect("memory")];
    let [mean, variance] = &mut statistics;
    let result = match norm {
        Norm::Layer => layer.forward_into(x, scale, shift, y),
        Norm::Rms => rms.forward_into(x, scale, y),
        Norm::Batch => {
            batch_norm.forward_training_into(x, scale, shift, mean.view_mut(), variance.view_mut(), y)
        }
        Norm::Instance => instance.forward_into(x, scale, shift, y),
        Norm::Group(groups) => group(groups).forward_into(x, scale, shift, y),
    };
    let good = good_epsilon && divides && fits(scale) && fits(shift);
    assert_eq!(result.is_ok(), good, "{result:?}");
    if !good {
        assert!(output.iter().all(|&value| value == T::from_f64(CANARY)));
        return;
    }
    let largest_x = 4.0 + offset.abs();
    // The twin's own rounding counts in f64.
    let size = 100.0 * (8.0 + (x.len() as f64).sqrt()) * if T::NAME == "f64" { largest_x } else { 1.0 };
    let expected = twin::forward(norm, x, scale, shift, used, None).expect("good");
    {
        let y = TensorView::as_strided_at(&output, y_at, shape, y_strides).expect("inside");
        near("y", y, &expected, size);
    }

    let beta = T::from_f64([0.0, 1.0, -0.5][usize::from(case.beta % 3)]);
    let held = if beta == T::ZERO { T::NAN } else { T::from_f64(0.5) };
    let mut dx = TensorViewMut::as_strided_at(&mut output, y_at, shape, y_strides).expect("disjoint");
    dx.fill(held);
    let (mut dscale, mut dshift) =
        (Tensor::full([n], held).expect("memory"), Tensor::full([n], held).expect("memory"));
    let gradients =
        NormGradientsMut { input: Some(dx), scale: Some(dscale.view_mut()), shift: Some(dshift.view_mut()) };
    let known = Some(statistics[0].view()).filter(|_| !x.is_empty());
    match norm {
        Norm::Layer => layer.backward_into(x, scale, dy, beta, gradients),
        Norm::Rms => {
            let NormGradientsMut { input, scale: dscale, .. } = gradients;
            rms.backward_into(x, scale, dy, beta, RmsGradientsMut { input, scale: dscale })
        }
        Norm::Batch => batch_norm.backward_into(x, known, scale, dy, beta, gradients),
        Norm::Instance => instance.backward_into(x, scale, dy, beta, gradients),
        Norm::Group(groups) => group(groups).backward_into(x, scale, dy, beta, gradients),
    }
    .expect("shapes fit");
    let (dx, ds, dt) = twin::backward(norm, x, scale, dy, used, None).expect("good");
    let kept = if beta == T::ZERO { 0.0 } else { beta.to_f64() * 0.5 };
    let plus = |t: &Tensor<f64, 1>| Tensor::from_fn([n], |at| t.get(at).unwrap() + kept).expect("memory");
    let expected = Tensor::from_fn(shape, |at| dx.get(at).unwrap() + kept).expect("memory");
    let size_p = size * (4.0 + x.len() as f64);
    near("dscale", dscale.view(), &plus(&ds), size_p);
    if !matches!(norm, Norm::Rms) {
        near("dshift", dshift.view(), &plus(&dt), size_p);
    }
    let found = TensorView::as_strided_at(&output, y_at, shape, y_strides).expect("inside");
    near("dx", found, &expected, size * 40.0 * (1.0 + largest(dx.view())));
    let mut outside = output.clone();
    TensorViewMut::as_strided_at(&mut outside, y_at, shape, y_strides)
        .expect("disjoint")
        .fill(T::from_f64(CANARY));
    assert!(outside.iter().all(|&value| value == T::from_f64(CANARY)), "batch {batch}");
}

fuzz_target!(|case: Case| {
    let isas = machine::supported();
    let isa = isas[usize::from(case.isa) % isas.len()];
    let go = || if case.wide { run::<f64>(&case) } else { run::<f32>(&case) };
    machine::with_isa(isa, go).expect("supported");
});
