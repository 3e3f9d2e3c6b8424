//! `TILEWISE_ISA` and `TILEWISE_VERBOSE`: a forced run really runs what it was told to.
//!
//! The variables are read once in a process, so the tests start this binary again with them.

use std::process::{Command, Output};

use tilewise::activation::{self, Activation};
use tilewise::attention::Attention;
use tilewise::conv::{Chain, Convolution, ConvolutionTranspose, Im2col, Link};
use tilewise::loss::{CrossEntropy, MeanSquared};
use tilewise::machine::{self, Isa};
use tilewise::norm::LayerNormalization;
use tilewise::pool::{AveragePool, MaxPool};
use tilewise::rnn::{Gru, Recurrent, Tape, Weights};
use tilewise::softmax::Softmax;
use tilewise::{Result, Tensor, gemm, vecmath};

/// What a product ran with: packed operands remember it.
fn ran_with() -> Result<Isa> {
    let w = Tensor::<f32, 2>::full([8, 3], 2.0)?;
    let packed = gemm::Packed::rhs(w.view())?;
    let x = Tensor::<f32, 2>::full([4, 8], 0.5)?;
    let mut y = Tensor::<f32, 2>::zeros([4, 3])?;
    gemm::gemm(1.0, x.view(), &packed, 0.0, y.view_mut())?;
    assert_eq!(y.as_slice(), [8.0; 12]);
    Ok(packed.isa())
}

/// Fails in a forced run of the tests that does not run what it should.
#[test]
fn this_run_has_the_instruction_set_it_was_told_to_have() {
    let expected = match std::env::var("TILEWISE_ISA") {
        Ok(name) if !name.is_empty() => name.parse().expect("a known name"),
        _ => *machine::supported().last().expect("there is a baseline"),
    };
    assert_eq!(machine::isa(), Ok(expected));
    assert_eq!(ran_with(), Ok(expected));
    assert_eq!(machine::report().isa, Ok(expected));
}

/// No test by itself: what [`again`] runs.
#[test]
#[ignore = "started by the other tests"]
fn child() {
    match (machine::isa(), ran_with()) {
        (Ok(isa), Ok(ran)) => println!("isa {isa} ran {ran}"),
        (Err(isa), Err(ran)) => println!("error {isa} ran {ran}"),
        (isa, ran) => println!("they differ: {isa:?} {ran:?}"),
    }
}

/// No test by itself: what [`again`] runs. One of each operation.
#[test]
#[ignore = "started by the other tests"]
fn tour() {
    calls().unwrap();
}

fn calls() -> Result<()> {
    let (x, w) = (Tensor::<f32, 4>::full([2, 4, 8, 8], 0.5)?, Tensor::<f32, 4>::full([4, 4, 3, 3], 0.5)?);
    let (images, weights) = (x.view(), w.view());
    let conv = Convolution::<2>::new().padding([1, 1]);
    let packed = conv.pack(weights)?;
    conv.forward(images, weights, None)?;
    conv.backward_input(images, weights, [8, 8])?;
    conv.backward_weight(images, images, [3, 3])?;
    conv.backward_bias(images)?;
    Chain::new([Link::new(conv, &packed, None), Link::new(conv, &packed, None)]).forward(images)?;
    ConvolutionTranspose::<2>::new().forward(images, weights, None)?;
    ConvolutionTranspose::<2>::new().padding([1, 1]).backward_input(images, weights, [8, 8])?;
    let patches = Im2col::<2>::new([3, 3]);
    patches.col2im(patches.im2col(images)?.view(), [2, 4, 8, 8])?;
    let (max, average) = (MaxPool::<2>::new([2, 2]), AveragePool::<2>::new([2, 2]));
    max.forward(images)?;
    let (y, indices) = max.forward_with_indices(images)?;
    max.backward(y.view(), indices.view(), [8, 8])?;
    average.forward(images)?;
    average.backward(y.view(), [8, 8])?;
    Attention::new().forward(images, images, images)?;
    let rows = images.reshape([64, 8])?;
    Softmax::new(1).forward(rows)?;
    LayerNormalization::new().forward(rows, None, None)?;
    let mut out = Tensor::zeros([64, 8])?;
    activation::forward(Activation::Gelu, rows, out.view_mut())?;
    vecmath::exp(rows, out.view_mut())?;
    gemm::gram(1.0, rows, 0.0, Tensor::zeros([64, 64])?.view_mut())?;
    MeanSquared::new().forward(rows, rows)?;
    CrossEntropy::new().forward(rows, rows)?;
    let steps = images.reshape([8, 8, 8])?;
    let (u, v) = (Tensor::<f32, 3>::full([1, 24, 8], 0.1)?, Tensor::<f32, 3>::full([1, 24, 8], 0.1)?);
    let (cell, weights, mut tape) = (Gru::new(), Weights::new(u.view(), v.view()), Tape::new());
    let y = cell.forward_taped(steps, weights, &mut tape)?.y;
    cell.backward(steps, weights, &tape, y.view())?;
    Ok(())
}

/// A test of this binary, with the variables set; `None` where an emulator cannot start processes.
fn again(test: &str, variables: &[(&str, &str)]) -> Option<Output> {
    const EXEC_FORMAT: Option<i32> = Some(8);
    let mut command = Command::new(std::env::current_exe().expect("this file"));
    command.args([test, "--exact", "--ignored", "--nocapture"]);
    command.env_remove("TILEWISE_ISA").env_remove("TILEWISE_VERBOSE").envs(variables.iter().copied());
    match command.output() {
        Ok(output) => {
            assert!(output.status.success(), "{output:?}");
            Some(output)
        }
        Err(error) if error.raw_os_error() == EXEC_FORMAT => {
            eprintln!("not tested: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn said(variables: &[(&str, &str)], expected: &str) {
    if let Some(output) = again("child", variables) {
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{variables:?}: {said} where {expected} should be");
    }
}

#[test]
fn every_supported_name_is_obeyed_and_every_other_is_an_error() {
    for isa in [Isa::Baseline, Isa::Avx2, Isa::Avx512] {
        let expected = if machine::supported().contains(&isa) {
            format!("isa {isa} ran {isa}\n")
        } else {
            let error = format!("instruction set {isa}: this processor lacks it");
            format!("error {error} ran {error}\n")
        };
        said(&[("TILEWISE_ISA", isa.name())], &expected);
    }
    for name in ["sse2", "AVX2", "avx2 ", "avx-512"] {
        let error = format!("instruction set {name}: unknown; the names are baseline, avx2 and avx512");
        said(&[("TILEWISE_ISA", name)], &format!("error {error} ran {error}\n"));
    }
}

#[test]
fn nothing_asked_for_is_the_best() {
    let best = machine::supported().last().expect("there is a baseline");
    said(&[], &format!("isa {best} ran {best}\n"));
    said(&[("TILEWISE_ISA", "")], &format!("isa {best} ran {best}\n"));
}

#[test]
fn verbose_prints_a_line_for_each_call() {
    let lines = |variables: &[(&str, &str)]| {
        again("child", variables).map(|output| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            said.lines().filter(|line| line.contains("gemm")).count()
        })
    };
    assert_ne!(lines(&[("TILEWISE_VERBOSE", "1")]), Some(0));
    assert!(matches!(lines(&[("TILEWISE_VERBOSE", "0")]), Some(0) | None));
    assert!(matches!(lines(&[]), Some(0) | None));
    let Some(output) = again("tour", &[("TILEWISE_VERBOSE", "1")]) else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    let found: Vec<_> = said.lines().filter_map(|line| line.split(' ').next()).collect();
    let expected = [
        "Convolution::forward",
        "Convolution::backward_input",
        "Convolution::backward_weight",
        "convolution's",
        "Chain::forward",
        "ConvolutionTranspose::forward",
        "ConvolutionTranspose::backward_input",
        "Im2col::im2col",
        "Im2col::col2im",
        "MaxPool::forward",
        "MaxPool::forward_with_indices",
        "MaxPool::backward",
        "AveragePool::forward",
        "AveragePool::backward",
        "Attention::forward",
        "softmax::forward",
        "LayerNormalization::forward",
        "activation::forward",
        "exp",
        "gemm",
        "MeanSquared::forward",
        "CrossEntropy::forward",
        "rnn::forward_taped",
        "rnn::backward",
    ];
    // The last is followed by the products that it calls.
    assert_eq!(found.get(..expected.len()), Some(&expected[..]), "{said}");
}
