//! What the machine can do at most, measured beside the kernels so that they can be held against it:
//! fused multiply-adds in registers, reading and copying main memory. By itself: nothing of the library
//! is used. Each figure is the best of several loops, as the best loop differs between processors.
#![allow(dead_code)] // each bench uses its part

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

/// The figures that kernels are held against.
#[derive(Clone, Copy, Debug)]
pub struct Peak {
    /// `f32` GFLOP/s, a multiply-add being two.
    pub flops_f32: f64,
    /// `f64` GFLOP/s.
    pub flops_f64: f64,
    /// Main memory read, GB/s (10⁹ bytes).
    pub read: f64,
    /// Main memory copied, GB/s, each byte counted as read and as written.
    pub copy: f64,
}

impl Peak {
    /// All figures for an instruction set ([`isas`]) and a number of threads, all running at once.
    pub fn measure(isa: &str, threads: usize, memory: &mut Memory) -> Self {
        Peak {
            flops_f32: fma_peak_f32(isa, threads),
            flops_f64: fma_peak_f64(isa, threads),
            read: memory.read(threads),
            copy: memory.copy(threads),
        }
    }
}

/// The instruction sets of this machine, in rising order.
pub fn isas() -> &'static [&'static str] {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("fma") {
            return &["baseline", "avx2", "avx512"];
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return &["baseline", "avx2"];
        }
    }
    &["baseline"]
}

/// The last of [`isas`].
pub fn best_isa() -> &'static str {
    isas()[isas().len() - 1]
}

/// The most `f32` multiply-adds in registers, in GFLOP/s over all threads.
pub fn fma_peak_f32(isa: &str, threads: usize) -> f64 {
    fma_peak(fma::loops_f32(known(isa)), threads)
}

/// The most `f64` multiply-adds in registers, in GFLOP/s over all threads.
pub fn fma_peak_f64(isa: &str, threads: usize) -> f64 {
    fma_peak(fma::loops_f64(known(isa)), threads)
}

fn known(isa: &str) -> &str {
    assert!(isas().contains(&isa), "this machine has {:?}, not {isa:?}", isas());
    isa
}

fn fma_peak(loops: &[(usize, fma::Loop)], threads: usize) -> f64 {
    let team = Team::new(threads);
    let rate = |&(flops, run): &(usize, fma::Loop), turns: u64| {
        // SAFETY: the loops are those of an instruction set that `known` found in this machine.
        let seconds = team.time(&|_| unsafe { run(turns) });
        (flops as u64 * turns * threads as u64) as f64 / seconds
    };
    // A first run wakes the units up and tells how many turns take a millisecond.
    let turns = |entry: &(usize, fma::Loop), seconds: f64| {
        let rate = (0..3).map(|_| rate(entry, 20_000)).fold(1.0, f64::max);
        (rate * seconds / (entry.0 * threads) as f64) as u64 + 1
    };
    let mut rates = loops.iter().map(|entry| {
        let turns = turns(entry, 1e-3);
        ((0..3).map(|_| rate(entry, turns)).fold(0.0, f64::max), entry)
    });
    let first = rates.next().expect("a loop");
    let (mut best, entry) = rates.fold(first, |best, next| if next.0 > best.0 { next } else { best });
    let turns = turns(entry, 3e-3);
    for _ in 0..10 {
        best = best.max(rate(entry, turns));
    }
    best / 1e9
}

/// Loops of independent chains of multiply-adds: as many as hide the latency, no more than there are
/// registers; how many is best differs.
mod fma {
    use super::black_box;
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::*;
    use wide::{f32x4, f64x2};

    /// Runs so many turns of a loop. Unsafe as it needs the instructions it was compiled with.
    pub type Loop = unsafe fn(u64);

    macro_rules! chains {
        ($(#[$feature:meta])? $name:ident, $T:ty, $splat:path, $mul_add:expr) => {
            $(#[$feature])?
            fn $name<const N: usize>(turns: u64) {
                let seeds: [$T; N] = black_box(std::array::from_fn(|i| i as $T));
                let (scale, shift) = (black_box(0.75), black_box(0.25));
                let (scale, shift) = ($splat(scale), $splat(shift));
                let mut chains = [$splat(0.0); N];
                for i in 0..N {
                    chains[i] = $splat(seeds[i]);
                }
                for _ in 0..turns {
                    for chain in &mut chains {
                        *chain = $mul_add(*chain, scale, shift);
                    }
                }
                black_box(chains);
            }
        };
    }

    chains!(baseline_f32, f32, f32x4::splat, f32x4::mul_add);
    chains!(baseline_f64, f64, f64x2::splat, f64x2::mul_add);
    #[cfg(target_arch = "x86_64")]
    chains!(
        #[target_feature(enable = "avx2,fma")]
        avx2_f32,
        f32,
        _mm256_set1_ps,
        _mm256_fmadd_ps
    );
    #[cfg(target_arch = "x86_64")]
    chains!(
        #[target_feature(enable = "avx2,fma")]
        avx2_f64,
        f64,
        _mm256_set1_pd,
        _mm256_fmadd_pd
    );
    #[cfg(target_arch = "x86_64")]
    chains!(
        #[target_feature(enable = "avx512f")]
        avx512_f32,
        f32,
        _mm512_set1_ps,
        _mm512_fmadd_ps
    );
    #[cfg(target_arch = "x86_64")]
    chains!(
        #[target_feature(enable = "avx512f")]
        avx512_f64,
        f64,
        _mm512_set1_pd,
        _mm512_fmadd_pd
    );

    /// Flops of a turn and the loop, by number of chains.
    macro_rules! by_chains {
        ($name:ident, $lanes:literal: $($n:literal)+) => {
            &[$((2 * $lanes * $n, $name::<$n> as Loop)),+]
        };
    }

    pub fn loops_f32(isa: &str) -> &'static [(usize, Loop)] {
        match isa {
            #[cfg(target_arch = "x86_64")]
            "avx512" => by_chains!(avx512_f32, 16: 8 10 12 14 16 24 28),
            #[cfg(target_arch = "x86_64")]
            "avx2" => by_chains!(avx2_f32, 8: 8 10 12 14),
            _ => by_chains!(baseline_f32, 4: 8 10 12 13),
        }
    }

    pub fn loops_f64(isa: &str) -> &'static [(usize, Loop)] {
        match isa {
            #[cfg(target_arch = "x86_64")]
            "avx512" => by_chains!(avx512_f64, 8: 8 10 12 14 16 24 28),
            #[cfg(target_arch = "x86_64")]
            "avx2" => by_chains!(avx2_f64, 4: 8 10 12 14),
            _ => by_chains!(baseline_f64, 2: 8 10 12 13),
        }
    }
}

/// A buffer larger than caches, to measure main memory on. Making one takes longer than measuring.
pub struct Memory {
    lines: Vec<Line>,
}

/// A cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line([u64; 8]);

impl Memory {
    /// 256 MiB.
    pub const BYTES: usize = 256 << 20;

    /// A buffer of [`BYTES`](Self::BYTES).
    pub fn new() -> Self {
        Self::with_bytes(Self::BYTES)
    }

    /// A buffer of another size.
    pub fn with_bytes(bytes: usize) -> Self {
        Memory { lines: vec![Line([1; 8]); bytes / size_of::<Line>()] }
    }

    /// The most bytes read, in GB/s over all threads.
    pub fn read(&self, threads: usize) -> f64 {
        let team = Team::new(threads);
        let share = self.lines.len() / threads;
        best_of(&memory::reads(best_isa()), |read| {
            let seconds = team.time(&|thread| {
                // SAFETY: this machine has the instruction sets up to its best.
                black_box(unsafe { read(&self.lines[thread * share..][..share]) });
            });
            (threads * share * size_of::<Line>()) as f64 / seconds / 1e9
        })
    }

    /// The most bytes copied, read and written ones counted, in GB/s over all threads.
    pub fn copy(&mut self, threads: usize) -> f64 {
        let team = Team::new(threads);
        let share = self.lines.len() / 2 / threads;
        let (from, to) = self.lines.split_at_mut(threads * share);
        let parts: Vec<_> =
            from.chunks_exact(share).zip(to.chunks_exact_mut(share)).map(Mutex::new).collect();
        best_of(memory::COPIES, |copy| {
            let seconds = team.time(&|thread| {
                let mut part = parts[thread].lock().expect("no panic");
                let (from, to) = &mut *part;
                copy(from, to);
            });
            (2 * threads * share * size_of::<Line>()) as f64 / seconds / 1e9
        })
    }
}

/// The best rate of a pass by each variant and three more by the best of them.
fn best_of<F: Copy>(variants: &[F], rate: impl Fn(F) -> f64) -> f64 {
    let (mut best, mut winner) = (0.0, variants[0]);
    for &variant in variants {
        let rate = rate(variant);
        if rate > best {
            (best, winner) = (rate, variant);
        }
    }
    (0..3).fold(best, |best, _| best.max(rate(winner)))
}

/// Loops over main memory: one or several streams at a time, prefetched by software or not.
mod memory {
    use super::{Line, black_box};
    #[cfg(target_arch = "x86_64")]
    use core::arch::x86_64::*;
    use std::ops::BitXor;

    /// Unsafe as it needs the instructions it was compiled with.
    pub type Read = unsafe fn(&[Line]) -> u64;
    pub type Copy = fn(&[Line], &mut [Line]);

    /// A line so many lines ahead of this one on its way to the first-level cache; 0 for not.
    #[inline(always)]
    fn prefetch(line: &Line, ahead: usize) {
        #[cfg(target_arch = "x86_64")]
        if ahead > 0 {
            let there = std::ptr::from_ref(line).wrapping_add(ahead);
            // SAFETY: a prefetch never faults, wherever it points.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(there.cast()) };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (line, ahead);
    }

    /// Loops that read several streams at a time, each line of which is one or more vectors.
    macro_rules! read {
        ($(#[$feature:meta])? $name:ident, $V:ty, $xor:path) => {
            $(#[$feature])?
            fn $name<const STREAMS: usize, const AHEAD: usize>(lines: &[Line]) -> u64 {
                const VECTORS: usize = size_of::<Line>() / size_of::<$V>();
                // An odd number of lines: streams that are a power of two apart would share sets of a cache.
                let len = (lines.len() / STREAMS).saturating_sub(1) | 1;
                let streams: [&[Line]; STREAMS] = std::array::from_fn(|s| &lines[s * len..][..len]);
                // SAFETY: vectors of integers are valid whatever their bits.
                let mut sums: [[$V; VECTORS]; STREAMS] = unsafe { std::mem::zeroed() };
                for i in 0..len {
                    for (sums, stream) in sums.iter_mut().zip(streams) {
                        prefetch(&stream[i], AHEAD);
                        // SAFETY: a line is so many vectors of integers, and aligned for any.
                        let vectors = unsafe { &*std::ptr::from_ref(&stream[i]).cast::<[$V; VECTORS]>() };
                        for (sum, vector) in sums.iter_mut().zip(vectors) {
                            *sum = $xor(*sum, *vector);
                        }
                    }
                }
                let sum = sums.as_flattened().iter().copied().reduce(|a, b| $xor(a, b));
                black_box(sum);
                lines[STREAMS * len..].iter().fold(0, |sum, line| sum ^ line.0[0])
            }
        };
    }

    read!(baseline, u64, BitXor::bitxor);
    #[cfg(target_arch = "x86_64")]
    read!(
        #[target_feature(enable = "avx2")]
        avx2,
        __m256i,
        _mm256_xor_si256
    );
    #[cfg(target_arch = "x86_64")]
    read!(
        #[target_feature(enable = "avx512f")]
        avx512,
        __m512i,
        _mm512_xor_si512
    );

    /// Streams, and for each how many lines ahead to prefetch.
    macro_rules! variants {
        ($name:ident: $($streams:literal)+) => {
            &[$(
                $name::<$streams, 0> as Read,
                $name::<$streams, 8>,
                $name::<$streams, 32>,
                $name::<$streams, 64>,
            )+]
        };
    }

    /// Those of all instruction sets up to this one: the widest vectors need not read fastest.
    pub fn reads(isa: &str) -> Vec<Read> {
        let baseline: &[Read] = variants!(baseline: 1 2 4 8);
        #[cfg(target_arch = "x86_64")]
        {
            let avx2: &[Read] = variants!(avx2: 1 2 4 8 16);
            let avx512: &[Read] = variants!(avx512: 1 2 4 8 16);
            match isa {
                "avx512" => return [avx512, avx2].concat(),
                "avx2" => return avx2.to_vec(),
                _ => {}
            }
        }
        let _ = isa;
        baseline.to_vec()
    }

    /// Stores that pass the caches by, so that the lines written need not be read first.
    #[cfg(target_arch = "x86_64")]
    fn copy_past_caches<const AHEAD: usize>(from: &[Line], to: &mut [Line]) {
        for (from, to) in from.iter().zip(to) {
            prefetch(from, AHEAD);
            let (from, to) = (from.0.as_ptr().cast::<__m128i>(), to.0.as_mut_ptr().cast::<__m128i>());
            for quarter in 0..4 {
                // SAFETY: four quarters are a line, which is aligned; the fence below orders the
                // stores before whatever hands the lines on; x86-64 has SSE2.
                unsafe { _mm_stream_si128(to.add(quarter), _mm_load_si128(from.add(quarter))) };
            }
        }
        // SAFETY: x86-64 has SSE.
        unsafe { _mm_sfence() };
    }

    fn copy_through_caches<const AHEAD: usize>(from: &[Line], to: &mut [Line]) {
        for (from, to) in from.iter().zip(to) {
            prefetch(from, AHEAD);
            to.0 = from.0;
        }
    }

    pub const COPIES: &[Copy] = &[
        |from, to| to.copy_from_slice(from),
        copy_through_caches::<8>,
        copy_through_caches::<32>,
        #[cfg(target_arch = "x86_64")]
        copy_past_caches::<0>,
        #[cfg(target_arch = "x86_64")]
        copy_past_caches::<8>,
        #[cfg(target_arch = "x86_64")]
        copy_past_caches::<32>,
    ];
}

/// Threads that start together.
struct Team {
    pool: Option<rayon::ThreadPool>,
    threads: usize,
}

impl Team {
    fn new(threads: usize) -> Self {
        let pool = || rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        Team { pool: (threads > 1).then(pool), threads }
    }

    /// Seconds from the first thread's start to the last one's end; each is given its number.
    fn time(&self, work: &(dyn Fn(usize) + Sync)) -> f64 {
        let span = |thread| {
            let start = Instant::now();
            work(thread);
            (start, Instant::now())
        };
        let spans = match &self.pool {
            None => vec![span(0)],
            Some(pool) => {
                let ready = AtomicUsize::new(0);
                pool.broadcast(|context| {
                    ready.fetch_add(1, Ordering::AcqRel);
                    let mut spins = 0;
                    while ready.load(Ordering::Acquire) < self.threads {
                        spins += 1;
                        if spins % 1000 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
                    }
                    span(context.index())
                })
            }
        };
        let start = spans.iter().map(|span| span.0).min().expect("a thread");
        let end = spans.iter().map(|span| span.1).max().expect("a thread");
        (end - start).as_secs_f64()
    }
}
