//! Convolution and pooling.

use tilewise::conv::{Convolution, ConvolutionTranspose, Im2col};
use tilewise::pool::{AveragePool, LpPool, MaxPool};
use tilewise::{Element, ImageRank, Spatial};

use super::{Array, Call, Result, fail, skip};

#[rustfmt::skip]
pub const OPERATORS: &[&str] = &[
    "AveragePool", "Col2Im", "Conv", "ConvTranspose", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "MaxPool",
];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let x = call.need(0)?;
    if call.node.operator == "Col2Im" {
        return match call.need(1)?.data.len() {
            1 => col2im::<T, 1, 3>(call),
            2 => col2im::<T, 2, 4>(call),
            3 => col2im::<T, 3, 5>(call),
            axes => skip(format!("{axes} spatial axes")),
        };
    }
    match x.rank() {
        3 => spatial::<T, 1, 3>(call),
        4 => spatial::<T, 2, 4>(call),
        5 => spatial::<T, 3, 5>(call),
        rank => skip(format!("images of rank {rank}")),
    }
}

/// Sizes of a window along each axis.
struct Window<const S: usize> {
    kernel: [usize; S],
    stride: [usize; S],
    dilation: [usize; S],
    padding: Padding<S>,
}

#[derive(Clone, Copy)]
enum Padding<const S: usize> {
    Sides([[usize; 2]; S]),
    Same,
    SameLower,
}

/// Sets the padding of a descriptor.
macro_rules! padded {
    ($descriptor:expr, $padding:expr) => {
        match $padding {
            Padding::Sides(sides) => $descriptor.padding_sides(sides),
            Padding::Same => $descriptor.same(),
            Padding::SameLower => $descriptor.same_lower(),
        }
    };
}

fn sizes<const S: usize>(call: &Call, name: &str) -> Result<Option<[usize; S]>> {
    match call.ints(name).map(<[usize; S]>::try_from) {
        Some(Err(sizes)) => fail(format!("{name} is {sizes:?}")),
        Some(Ok(sizes)) => Ok(Some(sizes)),
        None => Ok(None),
    }
}

impl<const S: usize> Window<S> {
    /// From the attributes.
    fn new(call: &Call, kernel: [usize; S]) -> Result<Self> {
        let given = call.ints("pads").unwrap_or_else(|| vec![0; 2 * S]);
        let padding = match call.text("auto_pad").as_deref() {
            Some("SAME_UPPER") => Padding::Same,
            Some("SAME_LOWER") => Padding::SameLower,
            _ => Padding::Sides(std::array::from_fn(|axis| [given[axis], given[S + axis]])),
        };
        let stride = sizes(call, "strides")?.unwrap_or([1; S]);
        Ok(Self { kernel, stride, dilation: sizes(call, "dilations")?.unwrap_or([1; S]), padding })
    }
}

/// Both sides of a padding; where it is odd, more of it behind, or before.
fn halves(all: usize, behind: bool) -> [usize; 2] {
    let (less, more) = (all / 2, all.div_ceil(2));
    if behind { [less, more] } else { [more, less] }
}

fn spatial<T: Element, const S: usize, const N: usize>(call: &Call) -> Result<Vec<Array>>
where
    Spatial<S>: ImageRank<N>,
{
    let x = call.need(0)?;
    let image = &x.shape[2..];
    let view = x.tensor::<T, N>()?;
    let kernel = || match sizes::<S>(call, "kernel_shape")? {
        Some(kernel) => Ok(kernel),
        None => fail("there is no kernel_shape"),
    };
    let ceil = call.flag("ceil_mode");
    let y = match call.node.operator.as_str() {
        "Conv" => {
            let w = call.need(1)?.tensor::<T, N>()?;
            let kernel = std::array::from_fn(|axis| w.shape()[2 + axis]);
            let Window { stride, dilation, padding, .. } = Window::<S>::new(call, kernel)?;
            let bias = call.input(2).map(Array::flat).transpose()?;
            let conv = Convolution::<S>::new().stride(stride).dilation(dilation);
            padded!(conv, padding).groups(call.int("group", 1) as usize).forward(
                view.view(),
                w.view(),
                bias.as_ref().map(|bias| bias.view()),
            )?
        }
        "ConvTranspose" => return transposed::<T, S, N>(call),
        "GlobalAveragePool" => AveragePool::<S>::global().forward(view.view())?,
        "GlobalMaxPool" => MaxPool::<S>::global().forward(view.view())?,
        "AveragePool" => {
            let Window { kernel, stride, dilation, padding } = Window::<S>::new(call, kernel()?)?;
            let pool = AveragePool::<S>::new(kernel).stride(stride).dilation(dilation);
            padded!(pool, padding)
                .ceil(ceil)
                .count_include_pad(call.flag("count_include_pad"))
                .forward(view.view())?
        }
        "LpPool" => {
            let Window { kernel, stride, dilation, padding } = Window::<S>::new(call, kernel()?)?;
            let p = call.int("p", 2) as f64;
            let pool = LpPool::<S>::new(kernel, p).stride(stride).dilation(dilation);
            padded!(pool, padding).ceil(ceil).forward(view.view())?
        }
        _ => {
            let Window { kernel, stride, dilation, padding } = Window::<S>::new(call, kernel()?)?;
            let pool = MaxPool::<S>::new(kernel).stride(stride).dilation(dilation);
            let pool = padded!(pool, padding).ceil(ceil);
            if !call.wants(1) {
                pool.forward(view.view())?
            } else {
                let (y, places) = pool.forward_with_indices(view.view())?;
                return Ok(vec![y.into(), indices(call, &places.shape(), places.as_slice(), image)]);
            }
        }
    };
    Ok(vec![y.into()])
}

/// Places in the whole input, from those in each plane; by columns where `storage_order` says so.
fn indices(call: &Call, shape: &[usize], places: &[u32], image: &[usize]) -> Array {
    let plane: usize = image.iter().product();
    let windows: usize = shape[2..].iter().product();
    let by_columns = |mut place: usize| {
        let mut index = 0;
        let mut stride = plane;
        for size in image.iter().rev() {
            stride /= size;
            index += place % size * stride;
            place /= size;
        }
        index
    };
    let whole = places.iter().enumerate().map(|(at, &place)| {
        let place = place as usize;
        let place = if call.flag("storage_order") { by_columns(place) } else { place };
        (at / windows * plane + place) as f64
    });
    Array::integers(whole.collect(), shape)
}

fn transposed<T: Element, const S: usize, const N: usize>(call: &Call) -> Result<Vec<Array>>
where
    Spatial<S>: ImageRank<N>,
{
    let (x, w) = (call.need(0)?.tensor::<T, N>()?, call.need(1)?.tensor::<T, N>()?);
    let kernel: [usize; S] = std::array::from_fn(|axis| w.shape()[2 + axis]);
    let image = &call.need(0)?.shape[2..];
    let window = Window::<S>::new(call, kernel)?;
    let auto = call.text("auto_pad").unwrap_or_default();
    let mut padding = if let Padding::Sides(sides) = window.padding { sides } else { [[0; 2]; S] };
    let mut more = sizes(call, "output_padding")?.unwrap_or([0; S]);
    let wanted = match sizes::<S>(call, "output_shape")? {
        None if auto.starts_with("SAME") => {
            Some(std::array::from_fn(|axis| image[axis] * window.stride[axis]))
        }
        wanted => wanted,
    };
    if let Some(wanted) = wanted {
        for axis in 0..S {
            // What there is without padding is cut off, or filled up, to what is wanted.
            let full =
                (image[axis] - 1) * window.stride[axis] + (kernel[axis] - 1) * window.dilation[axis] + 1;
            let all = full + more[axis];
            padding[axis] = halves(all.saturating_sub(wanted[axis]), auto == "SAME_UPPER");
            more[axis] += wanted[axis].saturating_sub(all);
        }
    }
    let bias = call.input(2).map(Array::flat).transpose()?;
    let y = ConvolutionTranspose::<S>::new()
        .stride(window.stride)
        .dilation(window.dilation)
        .padding_sides(padding)
        .output_padding(more)
        .groups(call.int("group", 1) as usize)
        .forward(x.view(), w.view(), bias.as_ref().map(|bias| bias.view()))?;
    Ok(vec![y.into()])
}

/// X `[batch, channels · taps, windows]`.
fn col2im<T: Element, const S: usize, const N: usize>(call: &Call) -> Result<Vec<Array>>
where
    Spatial<S>: ImageRank<N>,
{
    let x = call.need(0)?.tensor::<T, 3>()?;
    let (image, kernel) = (call.need(1)?.sizes(), call.need(2)?.sizes());
    let [batch, columns, windows] = x.shape();
    let channels = columns / kernel.iter().product::<usize>();
    let shape = std::array::from_fn(|axis| match axis {
        0 => batch,
        1 => channels,
        _ => image[axis - 2],
    });
    let window = Window::<S>::new(call, std::array::from_fn(|axis| kernel[axis]))?;
    let Padding::Sides(padding) = window.padding else { return skip("auto_pad of Col2Im") };
    let matrix = x.view().permute([0, 2, 1])?.to_tensor()?.reshape([batch * windows, columns])?;
    let patches = Im2col::<S>::new(window.kernel).stride(window.stride).dilation(window.dilation);
    Ok(vec![patches.padding_sides(padding).col2im(matrix.view(), shape)?.into()])
}
