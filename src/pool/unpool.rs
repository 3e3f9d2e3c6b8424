//! The gradient of a maximum: each window's goes to the element that was taken.
#![forbid(unsafe_code)]

use super::forward::{channels_last, cut};
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{TensorView, TensorViewMut};
use crate::{machine, parallel};

/// Fewest elements that are worth a task.
const GRAIN: usize = 1 << 14;

/// dx = 0, and dx\[indices\] += dy. Shapes are checked, and indices are inside the image or
/// [`NO_ELEMENT`](super::NO_ELEMENT).
pub(super) fn run<T: Element>(
    op: &'static str,
    dy: TensorView<'_, T, 5>,
    indices: TensorView<'_, u32, 5>,
    dx: TensorViewMut<'_, T, 5>,
) -> Result<()> {
    if dx.is_empty() {
        return Ok(());
    }
    let tasks = parallel::tasks(dx.len().max(dy.len()), GRAIN);
    machine::trace(|| format!("{op} {:?} to {:?} {} {tasks} tasks", dy.shape(), dx.shape(), T::NAME));
    split(dy, indices, dx, tasks)
}

fn split<T: Element>(
    dy: TensorView<'_, T, 5>,
    indices: TensorView<'_, u32, 5>,
    dx: TensorViewMut<'_, T, 5>,
    tasks: usize,
) -> Result<()> {
    let Some(axis) = cut(dx.shape(), &[0, 1]).filter(|_| tasks > 1) else {
        return piece(dy, indices, dx);
    };
    let (at, half) = (dx.shape()[axis] / 2, tasks / 2);
    let ((low, high), (low_dy, high_dy)) = (dx.split_at(axis, at)?, dy.split_at(axis, at)?);
    let (low_indices, high_indices) = indices.split_at(axis, at)?;
    let (first, second) = parallel::join(
        || split(low_dy, low_indices, low, half),
        || split(high_dy, high_indices, high, tasks - half),
    );
    first.and(second)
}

fn piece<T: Element>(
    dy: TensorView<'_, T, 5>,
    indices: TensorView<'_, u32, 5>,
    mut dx: TensorViewMut<'_, T, 5>,
) -> Result<()> {
    dx.fill(T::ZERO);
    let [images, channels, depth, height, width] = dx.shape();
    let last = channels_last(dx.shape(), dx.strides());
    let planes = if last { 1 } else { channels };
    let pixels = depth * height * width;
    for plane in 0..images * planes {
        let (image, channel) = (plane / planes, plane % planes);
        let (dy, indices) = (dy.select::<4>(0, image)?, indices.select::<4>(0, image)?);
        let dx = dx.view_mut().select::<4>(0, image)?;
        // [depth, height, width, lanes]
        let order = [1, 2, 3, 0];
        let (dy, indices, mut dx) = if last {
            (dy.permute(order)?, indices.permute(order)?, dx.permute(order)?)
        } else {
            let dx = dx.select::<3>(0, channel)?.insert_axis(3)?;
            let dy = dy.select::<3>(0, channel)?.insert_axis(3)?;
            (dy, indices.select::<3>(0, channel)?.insert_axis(3)?, dx)
        };
        let lanes = dx.shape()[3];
        let Some(mut flat) = dx.view_mut().viewed_as([pixels, lanes]) else {
            one_by_one(dy, indices, dx);
            continue;
        };
        let [depth, height, ..] = dy.shape();
        for row in 0..depth * height {
            let at = [row / height, row % height];
            if let (Some(dy), Some(indices)) = (dy.line(at), indices.line(at)) {
                if lanes == 1
                    && let Some(plane) = flat.as_mut_slice()
                {
                    for (&dy, &index) in dy.iter().zip(indices) {
                        // What stands for no element lies outside every plane.
                        if let Some(dx) = plane.get_mut(index as usize) {
                            *dx += dy;
                        }
                    }
                    continue;
                }
                for (dy, indices) in dy.chunks_exact(lanes).zip(indices.chunks_exact(lanes)) {
                    for (lane, (&dy, &index)) in dy.iter().zip(indices).enumerate() {
                        if let Some(dx) = flat.row_mut(index as usize) {
                            dx[lane] += dy;
                        } else if let Some(dx) = flat.get_mut([index as usize, lane]) {
                            *dx += dy;
                        }
                    }
                }
                continue;
            }
            let (dy, indices) = (dy.matrix_at(at), indices.matrix_at(at));
            for (i, (&dy, &index)) in dy.iter().zip(indices).enumerate() {
                if let Some(dx) = flat.get_mut([index as usize, i % lanes]) {
                    *dx += dy;
                }
            }
        }
    }
    Ok(())
}

/// Where an image's pixels do not lie evenly.
fn one_by_one<T: Element>(
    dy: TensorView<'_, T, 4>,
    indices: TensorView<'_, u32, 4>,
    mut dx: TensorViewMut<'_, T, 4>,
) {
    let [_, height, width, lanes] = dx.shape();
    for (i, (&dy, &index)) in dy.iter().zip(indices).enumerate() {
        let index = index as usize;
        let at = [index / width / height, index / width % height, index % width, i % lanes];
        if let Some(dx) = dx.get_mut(at) {
            *dx += dy;
        }
    }
}
