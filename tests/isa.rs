//! `TILEWISE_ISA` and `TILEWISE_VERBOSE`: a forced run really runs what it was told to.
//!
//! The variables are read once in a process, so the tests start this binary again with them.

use std::process::{Command, Output};

use tilewise::machine::{self, Isa};
use tilewise::{Result, Tensor, gemm};

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

/// This binary's `child`, with the variables set; `None` where an emulator cannot start processes.
fn again(variables: &[(&str, &str)]) -> Option<Output> {
    const EXEC_FORMAT: Option<i32> = Some(8);
    let mut command = Command::new(std::env::current_exe().expect("this file"));
    command.args(["child", "--exact", "--ignored", "--nocapture"]);
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
    if let Some(output) = again(variables) {
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
        again(variables).map(|output| {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            said.lines().filter(|line| line.contains("gemm")).count()
        })
    };
    assert_ne!(lines(&[("TILEWISE_VERBOSE", "1")]), Some(0));
    assert!(matches!(lines(&[("TILEWISE_VERBOSE", "0")]), Some(0) | None));
    assert!(matches!(lines(&[]), Some(0) | None));
}
