//! Pooling, over planes and over channels that lie last.

use tilewise::pool::{AveragePool, LpPool, MaxPool};
use tilewise::{Element, Tensor, TensorView, TensorViewMut};

use super::{Measure, matrix};

/// A view of images stored in another order, without what lies behind each row.
fn inner<T: Element>(t: &Tensor<T, 4>, order: [usize; 4], gap: usize) -> TensorView<'_, T, 4> {
    t.view().slice(3, ..t.shape()[3] - gap, 1).unwrap().permute(order).unwrap()
}

fn inner_mut<T: Element>(t: &mut Tensor<T, 4>, order: [usize; 4], gap: usize) -> TensorViewMut<'_, T, 4> {
    let row = t.shape()[3] - gap;
    t.view_mut().slice(3, ..row, 1).unwrap().permute(order).unwrap()
}

pub fn calls<T: Element>(call: &mut Measure) {
    let sliding = |kernel, stride| {
        let (max, average) = (MaxPool::<2>::new(kernel), AveragePool::<2>::new(kernel));
        let norm = LpPool::<2>::new(kernel, 2.0).stride(stride).padding([1, 1]);
        (max.stride(stride).padding([1, 1]), average.stride(stride).padding([1, 1]), norm)
    };
    let global = (MaxPool::global(), AveragePool::global(), LpPool::global(2.0));
    for (max, average, norm) in
        [sliding([3, 3], [2, 2]), sliding([2, 2], [1, 1]), sliding([5, 3], [3, 4]), global]
    {
        // Planes, pixels, and rows that do not touch.
        for (order, gap) in [([0, 1, 2, 3], 0), ([0, 3, 1, 2], 0), ([0, 1, 2, 3], 3)] {
            let shape = [2, 24, 12, 11];
            let outputs = max.output_shape(shape).unwrap();
            let stored = |[n, c, h, w]: [usize; 4]| {
                let [n, a, b, c] = if order[1] == 3 { [n, h, w, c] } else { [n, c, h, w] };
                matrix::<T>([n * a, b * (c + gap)]).reshape([n, a, b, c + gap]).unwrap()
            };
            let (x, mut dx, mut y, dy) = (stored(shape), stored(shape), stored(outputs), stored(outputs));
            let mut indices = Tensor::<u32, 4>::zeros(outputs).unwrap();
            let (x, dy) = (inner(&x, order, gap), inner(&dy, order, gap));
            let name = format!("{max:?}, axes {order:?}, {gap} apart");
            let mut run = |what: &str, f: &mut dyn FnMut()| call(&format!("{what} of {name}"), f);
            run("maximum", &mut || max.forward_into(x, inner_mut(&mut y, order, gap)).unwrap());
            run("maximum with indices", &mut || {
                max.forward_with_indices_into(x, inner_mut(&mut y, order, gap), indices.view_mut()).unwrap();
            });
            run("maximum, backward", &mut || {
                max.backward_into(dy, indices.view(), inner_mut(&mut dx, order, gap)).unwrap();
            });
            run("average", &mut || average.forward_into(x, inner_mut(&mut y, order, gap)).unwrap());
            run("average, backward", &mut || {
                average.backward_into(dy, inner_mut(&mut dx, order, gap)).unwrap();
            });
            run("norm", &mut || norm.forward_into(x, inner_mut(&mut y, order, gap)).unwrap());
            run("norm, backward", &mut || {
                let dx = inner_mut(&mut dx, order, gap);
                norm.backward_into(x, inner(&y, order, gap), dy, dx).unwrap();
            });
        }
    }
}
