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
    let before = faults();
    let first = call();
    // Some pages of the program, and of its stack. What a call allocates would be many.
    let pages = (faults() - before).min(32) * fault();
    let later = (0..100).map(|_| call()).min().unwrap();
    let [first, later, asked, pages] = [first, later, asked(), pages].map(|time| time.as_nanos());
    println!("first {first} later {later} asked {asked} pages {pages} ns");
}

/// How many pages were missing until now, where the system tells.
fn faults() -> u32 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    after_name.split_whitespace().nth(7).and_then(|count| count.parse().ok()).unwrap_or(0)
}

/// How long it takes until a page of the program's file that was not yet looked at is there.
fn fault() -> Duration {
    static PAGES: [u8; 1 << 20] = [1; 1 << 20];
    // Systems bring some neighbours along.
    let mut times: Vec<_> = PAGES
        .chunks(1 << 16)
        .map(|pages| {
            let start = Instant::now();
            black_box(unread(pages));
            start.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// Read when the program runs, not when it is built.
#[inline(never)]
fn unread(pages: &[u8]) -> u8 {
    black_box(pages)[pages.len() / 2]
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

/// The times of the first call of a fresh process, of a later one, of a question to the processor, and of bringing the pages
/// that the first call was the first to look at; `None` where an emulator cannot start one.
fn times() -> Option<[Duration; 4]> {
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
    Some([after("first "), after("later "), after("asked "), after("pages ")])
}

#[test]
fn the_first_call_does_no_lazy_work_to_speak_of() {
    let mut all = Vec::new();
    for _ in 0..20 {
        let Some([first, later, asked, pages]) = times() else { return };
        // The standard library asks nine questions or so for the features, this one six for the caches.
        // Sanitizers and emulators have clocks like any other, but take many times as long.
        // What is left is the library's.
        if first < (Duration::from_micros(50) + 15 * asked + pages).max(50 * later) {
            return;
        }
        all.push([first, later, asked, pages]);
    }
    panic!("the first call, a later one, a question to the processor, and the pages: {all:?}");
}
