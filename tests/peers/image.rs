//! Convolution and pooling.

use tilewise::conv::{Convolution, ConvolutionTranspose};
use tilewise::pool::{AveragePool, LpPool, MaxPool};
use tilewise::{ImageRank, Spatial, Tensor};

use super::vectors::{Case, each};

/// Calls a function of the number of spatial axes and the rank.
macro_rules! by_rank {
    ($case:expr, $function:ident) => {
        match $case.rank("x") {
            3 => $function::<1, 3>($case),
            4 => $function::<2, 4>($case),
            _ => $function::<3, 5>($case),
        }
    };
}

fn sides<const S: usize>(case: &Case) -> [[usize; 2]; S] {
    let all = case.list("padding").expect("padding");
    std::array::from_fn(|axis| [all[2 * axis], all[2 * axis + 1]])
}

#[test]
fn convolutions() {
    fn run<const S: usize, const N: usize>(case: &Case)
    where
        Spatial<S>: ImageRank<N>,
    {
        let conv = Convolution::<S>::new()
            .stride(case.sizes("stride"))
            .dilation(case.sizes("dilation"))
            .padding_sides(sides(case))
            .groups(case.size("groups"));
        let (x, w, dy) = (case.view::<N>("x"), case.view("w"), case.view("d_y"));
        case.check("y", conv.forward(x, w, case.maybe("b")).unwrap().as_slice());
        let gradients = conv.backward(x, w, dy).unwrap();
        case.check("d_x", gradients.input.as_slice());
        case.check("d_w", gradients.weight.as_slice());
        if case.has("b") {
            case.check("d_b", gradients.bias.as_slice());
        }
    }
    each(&[("conv", 19)], |case| by_rank!(case, run));
}

#[test]
fn transposed_convolutions() {
    fn run<const S: usize, const N: usize>(case: &Case)
    where
        Spatial<S>: ImageRank<N>,
    {
        let conv = ConvolutionTranspose::<S>::new()
            .stride(case.sizes("stride"))
            .dilation(case.sizes("dilation"))
            .padding_sides(sides(case))
            .output_padding(case.sizes("more"))
            .groups(case.size("groups"));
        let (x, w, dy) = (case.view::<N>("x"), case.view("w"), case.view("d_y"));
        case.check("y", conv.forward(x, w, case.maybe("b")).unwrap().as_slice());
        let gradients = conv.backward(x, w, dy).unwrap();
        case.check("d_x", gradients.input.as_slice());
        case.check("d_w", gradients.weight.as_slice());
        if case.has("b") {
            case.check("d_b", gradients.bias.as_slice());
        }
    }
    each(&[("transposed", 9)], |case| by_rank!(case, run));
}

#[test]
fn pooling() {
    fn run<const S: usize, const N: usize>(case: &Case)
    where
        Spatial<S>: ImageRank<N>,
    {
        let (x, dy) = (case.view::<N>("x"), case.view("d_y"));
        let image = std::array::from_fn(|axis| x.shape()[2 + axis]);
        let adaptive = case.list("outputs").is_some();
        macro_rules! sliding {
            ($pool:expr) => {{
                let pool = $pool.stride(case.sizes("stride")).padding(case.sizes("padding"));
                pool.dilation(case.sizes("dilation")).ceil(case.size("ceil") == 1)
            }};
        }
        let (y, dx): (Tensor<f64, N>, Tensor<f64, N>) = match case.operation.as_str() {
            "max" => {
                let pool = match adaptive {
                    true => MaxPool::<S>::adaptive(case.sizes("outputs")),
                    false => sliding!(MaxPool::<S>::new(case.sizes("kernel"))),
                };
                let (y, indices) = pool.forward_with_indices(x).unwrap();
                let places: Vec<f64> = indices.iter().map(|&index| f64::from(index)).collect();
                case.check("indices", &places);
                let dx = pool.backward(dy, indices.view(), image).unwrap();
                assert!(pool.forward(x).unwrap() == y);
                (y, dx)
            }
            "average" => {
                let pool = match adaptive {
                    true => AveragePool::<S>::adaptive(case.sizes("outputs")),
                    false => sliding!(AveragePool::<S>::new(case.sizes("kernel")))
                        .count_include_pad(case.size("include") == 1),
                };
                (pool.forward(x).unwrap(), pool.backward(dy, image).unwrap())
            }
            _ => {
                let pool = sliding!(LpPool::<S>::new(case.sizes("kernel"), case.size("p") as f64));
                let y = pool.forward(x).unwrap();
                let dx = pool.backward(x, y.view(), dy).unwrap();
                (y, dx)
            }
        };
        case.check("y", y.as_slice());
        case.check("d_x", dx.as_slice());
    }
    each(&[("max", 10), ("average", 12), ("lp", 3)], |case| by_rank!(case, run));
}
