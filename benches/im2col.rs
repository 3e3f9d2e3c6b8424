//! im2col and col2im on layers of ResNet-50, in bytes read and written: the image once, the matrix once.

mod support;

use support::{Bound, bench, pools, random};
use tilewise::Tensor;
use tilewise::conv::{Im2col, PatchOrder};

/// Channels, size of the image, kernel, stride, padding.
const LAYERS: &[(usize, usize, usize, usize, usize)] =
    &[(64, 56, 3, 1, 1), (512, 7, 3, 1, 1), (128, 56, 3, 2, 1), (3, 224, 7, 2, 3), (256, 56, 1, 1, 0)];

fn main() {
    let mut criterion = support::criterion();
    support::measure_peaks();
    let mut group = criterion.benchmark_group("im2col");
    for &(channels, size, kernel, stride, padding) in LAYERS {
        let patches = Im2col::<2>::new([kernel; 2]).stride([stride; 2]).padding([padding; 2]);
        for (layout, order) in [("NCHW", PatchOrder::ChannelsFirst), ("NHWC", PatchOrder::ChannelsLast)] {
            let patches = patches.order(order);
            let x = match order {
                PatchOrder::ChannelsFirst => random::<f32, 4>([1, channels, size, size]),
                PatchOrder::ChannelsLast => random::<f32, 4>([1, size, size, channels]),
            };
            let x = match order {
                PatchOrder::ChannelsFirst => x.view(),
                PatchOrder::ChannelsLast => x.view().permute([0, 3, 1, 2]).expect("four axes"),
            };
            let shape = patches.shape(x.shape()).expect("fits");
            let mut matrix = Tensor::zeros(shape).expect("memory");
            let mut back = Tensor::<f32, 4>::zeros(x.shape()).expect("memory");
            let work = (Bound::Bytes, 4 * (matrix.len() + x.len()) as u64);
            let name = format!("{kernel}x{kernel}s{stride} {channels} at {size} {layout}");
            for pool in pools() {
                bench(&mut group, &pool, &format!("im2col {name}"), work, || {
                    patches.im2col_into(x, matrix.view_mut()).expect("fits");
                });
                bench(&mut group, &pool, &format!("col2im {name}"), work, || {
                    patches.col2im_into(matrix.view(), back.view_mut()).expect("fits");
                });
            }
        }
    }
    group.finish();
    criterion.final_summary();
    support::table();
}
