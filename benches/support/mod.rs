//! What the benches share: deterministic data, thread pools, and a closing table that holds every
//! result against what the machine could do in the same run.
#![allow(dead_code)] // each bench uses its part

pub mod peak;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, Throughput, measurement::WallTime};
use rayon::{ThreadPool, ThreadPoolBuilder};
use tilewise::{Element, Tensor};

/// A tensor of values in [−1, 1) that are neither constant nor periodic in a small power of two. No two tensors of a program are the
/// same: ONNX Runtime keeps one copy of equal weights.
pub fn random<T: Element, const N: usize>(shape: [usize; N]) -> Tensor<T, N> {
    static TENSORS: AtomicU64 = AtomicU64::new(1);
    let mut state = TENSORS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Tensor::from_fn(shape, |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        T::from_f64((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
    })
    .expect("memory")
}

/// One pool of a single thread and, where there are more cores, one of all.
pub fn pools() -> Vec<ThreadPool> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = if all > 1 { vec![1, all] } else { vec![1] };
    counts.into_iter().map(|n| ThreadPoolBuilder::new().num_threads(n).build().expect("threads")).collect()
}

/// What limits a workload.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Multiply-adds in `f32`, counted as two operations.
    FlopsF32,
    /// Multiply-adds in `f64`.
    FlopsF64,
    /// Bytes read.
    Read,
    /// Bytes read and written.
    Bytes,
}

struct Row {
    name: String,
    threads: usize,
    bound: Bound,
    work: u64,
    samples: Vec<f64>,
}

static ROWS: Mutex<Vec<Row>> = Mutex::new(Vec::new());
/// The highest peaks seen so far, by threads: the machine's speed drifts.
static PEAKS: Mutex<Vec<(usize, peak::Peak)>> = Mutex::new(Vec::new());

/// Short rounds: the closing table takes medians over criterion's samples.
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(20)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_secs(1))
        .configure_from_args()
}

/// The FMA and memory peaks of the instruction set in use; called before each group.
pub fn measure_peaks() {
    let isa = tilewise::machine::isa().expect("a valid TILEWISE_ISA").to_string();
    let mut memory = peak::Memory::new();
    for pool in pools() {
        let threads = pool.current_num_threads();
        let now = peak::Peak::measure(&isa, threads, &mut memory);
        let mut peaks = PEAKS.lock().expect("no panic");
        match peaks.iter_mut().find(|(n, _)| *n == threads) {
            None => peaks.push((threads, now)),
            Some((_, best)) => {
                best.flops_f32 = best.flops_f32.max(now.flops_f32);
                best.flops_f64 = best.flops_f64.max(now.flops_f64);
                best.read = best.read.max(now.read);
                best.copy = best.copy.max(now.copy);
            }
        }
    }
}

/// Times `f` in `pool` under `name`, and keeps the samples for the closing table.
pub fn bench(
    group: &mut BenchmarkGroup<'_, WallTime>,
    pool: &ThreadPool,
    name: &str,
    (bound, work): (Bound, u64),
    mut f: impl FnMut() + Send,
) {
    let threads = pool.current_num_threads();
    group.throughput(if matches!(bound, Bound::Read | Bound::Bytes) {
        Throughput::Bytes(work)
    } else {
        Throughput::Elements(work)
    });
    let mut samples = Vec::new();
    group.bench_function(format!("{name}/{threads}t"), |bencher| {
        bencher.iter_custom(|iterations| {
            let elapsed = pool.install(|| {
                let start = Instant::now();
                (0..iterations).for_each(|_| f());
                start.elapsed()
            });
            samples.push(elapsed.as_secs_f64() / iterations as f64);
            elapsed
        });
    });
    if !samples.is_empty() {
        ROWS.lock().expect("no panic").push(Row { name: name.into(), threads, bound, work, samples });
    }
}

/// Prints all rows: the rate of the median sample and its share of the peak of this run.
pub fn table() {
    let (mut rows, peaks) = (ROWS.lock().expect("no panic"), PEAKS.lock().expect("no panic"));
    if rows.is_empty() {
        return;
    }
    println!("\nPeaks of this run");
    for (threads, peak) in peaks.iter() {
        println!(
            "  {threads} thread(s): {:.1} GFLOP/s f32, {:.1} f64, {:.1} GB/s read, {:.1} copy",
            peak.flops_f32, peak.flops_f64, peak.read, peak.copy
        );
    }
    println!("\n{:44} {:>7} {:>12} {:>9} {:>9}", "workload", "threads", "rate", "of peak", "best");
    for row in rows.iter_mut() {
        row.samples.sort_by(f64::total_cmp);
        let rate = |seconds: f64| row.work as f64 / seconds / 1e9;
        let median = rate(row.samples[row.samples.len() / 2]);
        let Some((_, peak)) = peaks.iter().find(|(threads, _)| *threads == row.threads) else { continue };
        let (peak, unit) = match row.bound {
            Bound::FlopsF32 => (peak.flops_f32, "GFLOP/s"),
            Bound::FlopsF64 => (peak.flops_f64, "GFLOP/s"),
            Bound::Read => (peak.read, "GB/s"),
            Bound::Bytes => (peak.copy, "GB/s"),
        };
        println!(
            "{:44} {:>7} {:>12} {:>8.1}% {:>8.1}%",
            row.name,
            row.threads,
            format!("{median:.1} {unit}"),
            100.0 * median / peak,
            100.0 * rate(row.samples[0]) / peak,
        );
    }
}
