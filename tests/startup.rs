//! The first call of a process: what the library learns about the machine it learns then, so that must be quick.
//!
//! What is learned once in a process is learned again only by another, so the test starts this binary again.

use std::hint::black_box;
use std::process::Command;
use std::time::{Duration, Instant};

use tilewise::{TensorView, TensorViewMut, gemm};

const N: usize = 16;

/// No test by itself: what the test below runs.
#[test]
#[ignore = "started by the other test"]
fn child() {
    let (a, b, mut c) = ([0.5f32; N * N], [2.0; N * N], [0.0; N * N]);
    let mut call = || {
        let start = Instant::now();
        let (a, b) = (TensorView::from_slice(&a, [N, N]), TensorView::from_slice(&b, [N, N]));
        let c = TensorViewMut::from_slice(&mut c, [N, N]).unwrap();
        gemm::gemm(1.0, black_box(a.unwrap()), black_box(b.unwrap()), 0.0, c).unwrap();
        start.elapsed()
    };
    let first = call();
    let later = (0..100).map(|_| call()).min().unwrap();
    println!("first {} later {} asked {} ns", first.as_nanos(), later.as_nanos(), asked().as_nanos());
}

/// How long one question to the processor takes: 0.1 µs, but some microseconds under a hypervisor, and more under two.
fn asked() -> Duration {
    let once = || {
        let start = Instant::now();
        #[cfg(target_arch = "x86_64")]
        black_box(std::arch::x86_64::__cpuid(0));
        start.elapsed()
    };
    (0..5).map(|_| once()).min().unwrap()
}

/// The times of the first call of a fresh process, of a later one, and of a question to the processor; `None` where an
/// emulator cannot start one.
fn times() -> Option<[Duration; 3]> {
    const EXEC_FORMAT: Option<i32> = Some(8);
    let mut command = Command::new(std::env::current_exe().expect("this file"));
    command.args(["child", "--exact", "--ignored", "--nocapture"]).env_remove("TILEWISE_VERBOSE");
    let output = match command.output() {
        Err(error) if error.raw_os_error() == EXEC_FORMAT => {
            eprintln!("not tested: {error}");
            return None;
        }
        output => output.expect("a process"),
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let after = |word: &str| {
        let rest = said.split(word).nth(1).unwrap_or_else(|| panic!("{word} in {output:?}"));
        Duration::from_nanos(rest.split_whitespace().next().unwrap().parse().expect("a number"))
    };
    Some([after("first "), after("later "), after("asked ")])
}

#[test]
fn the_first_call_does_no_lazy_work_to_speak_of() {
    let mut all = Vec::new();
    for _ in 0..20 {
        let Some([first, later, asked]) = times() else { return };
        // The standard library asks nine questions or so for the features, this one six for the caches.
        // Sanitizers and emulators have clocks like any other, but take many times as long.
        if first < (Duration::from_micros(50) + 15 * asked).max(50 * later) {
            return;
        }
        all.push([first, later, asked]);
    }
    panic!("the first call, a later one, and a question to the processor: {all:?}");
}
