//! The clock: interleaved rounds, and how many threads were at work.

use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tilewise::Element;

use crate::peer::Product;

/// How long and how often.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub struct Plan {
    pub rounds: usize,
    /// Seconds that one sample takes at least.
    pub sample: f64,
    /// Seconds between peers: threads of the one before, which may still wait busily, go to sleep.
    pub pause: f64,
    /// Seconds of calls before a sample, at least one call: a system may let threads that slept share a processor for a while.
    pub warm_up: f64,
}

impl Plan {
    fn pause(&self) {
        std::thread::sleep(Duration::from_secs_f64(self.pause));
    }
}

/// A product and how many times a sample runs it.
pub struct Contestant<'p, T> {
    product: Box<dyn Product<T> + 'p>,
    iterations: u32,
    warm_up: bool,
    samples: Vec<f64>,
}

impl<'p, T: Element> Contestant<'p, T> {
    /// Runs until a sample is long enough, which warms up as well.
    pub fn new(mut product: Box<dyn Product<T> + 'p>, c: &mut [T], plan: Plan) -> Self {
        let mut iterations = 1u32;
        let seconds = loop {
            let elapsed = time(&mut *product, c, iterations);
            let short = plan.sample / elapsed;
            if short <= 1.5 {
                break elapsed / f64::from(iterations);
            }
            iterations = (f64::from(iterations) * short.min(100.0)).ceil() as u32;
        };
        let iterations = (plan.sample / seconds).ceil().max(1.0) as u32;
        // A longer call on one thread fills its caches at no cost that could be seen.
        let warm_up = plan.warm_up > 0.0 || seconds < 0.02;
        Contestant { product, iterations, warm_up, samples: Vec::new() }
    }

    /// Median and best, in seconds of one call.
    pub fn result(mut self) -> (f64, f64) {
        self.samples.sort_by(f64::total_cmp);
        (self.samples[self.samples.len() / 2], self.samples[0])
    }
}

/// In each round every contestant gives one sample, in an order that differs from round to round.
pub fn interleave<T: Element>(contestants: &mut [Contestant<'_, T>], c: &mut [T], plan: Plan) {
    let mut order: Vec<usize> = (0..contestants.len()).collect();
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..plan.rounds {
        random.shuffle(&mut order);
        for &turn in &order {
            let Contestant { product, iterations, warm_up, samples } = &mut contestants[turn];
            plan.pause();
            let start = Instant::now();
            let mut cold = *warm_up;
            while cold {
                product.run(c);
                cold = start.elapsed().as_secs_f64() < plan.warm_up;
            }
            samples.push(time(&mut **product, c, *iterations) / f64::from(*iterations));
        }
    }
}

fn time<T>(product: &mut dyn Product<T>, c: &mut [T], iterations: u32) -> f64 {
    let start = Instant::now();
    for _ in 0..iterations {
        product.run(c);
    }
    start.elapsed().as_secs_f64()
}

/// CPU time of the whole process over wall time while a product runs for a while.
pub fn busy<T>(product: &mut dyn Product<T>, c: &mut [T], plan: Plan) -> f64 {
    product.run(c);
    plan.pause();
    let (cpu, start) = (cpu_time(), Instant::now());
    while start.elapsed() < Duration::from_millis(60) {
        product.run(c);
    }
    (cpu_time() - cpu).as_secs_f64() / start.elapsed().as_secs_f64()
}

fn cpu_time() -> Duration {
    let mut time = MaybeUninit::<libc::timespec>::uninit();
    // SAFETY: a valid place for the result, which is read only after the call filled it.
    let time = unsafe {
        assert_eq!(libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr()), 0);
        time.assume_init()
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
