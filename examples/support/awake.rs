//! Threads that do not fall asleep between the products of one call.
//!
//! rayon's threads sleep as soon as they find nothing to do, and waking one takes longer than many a product of a small
//! model. Here they look for work until the call is over; a thread that finds none gives way to whoever else wants the
//! processor.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long a call waits for the others to wake before it goes on without them.
const PATIENCE: Duration = Duration::from_micros(100);

const ASLEEP: u8 = 0;
const AWAKE: u8 = 1;
const LATE: u8 = 2;

/// Runs `call` on this thread, which should be one of the current pool, while the pool's others stay awake.
pub fn awake<R>(call: impl FnOnce() -> R) -> R {
    if rayon::current_thread_index().is_none() || rayon::current_num_threads() == 1 {
        return call();
    }
    let over = AtomicBool::new(false);
    let keepers: Vec<AtomicU8> = (1..rayon::current_num_threads()).map(|_| AtomicU8::new(ASLEEP)).collect();
    let turn = |keeper: &AtomicU8, to: u8| {
        keeper.compare_exchange(ASLEEP, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    };
    rayon::in_place_scope(|scope| {
        for keeper in &keepers {
            let over = &over;
            scope.spawn(move |_| {
                let keeps = turn(keeper, AWAKE);
                while keeps && !over.load(Ordering::Acquire) {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        thread::yield_now();
                    }
                }
            });
        }
        // A keeper that this thread met while it waits in a call would keep it for ever: those not started by then are
        // not to start.
        let start = Instant::now();
        let waiting = || keepers.iter().any(|keeper| keeper.load(Ordering::Acquire) == ASLEEP);
        while waiting() && start.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
        keepers.iter().for_each(|keeper| {
            turn(keeper, LATE);
        });
        let result = call();
        over.store(true, Ordering::Release);
        result
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2ⁿ by halving.
    fn count(n: u32) -> u64 {
        if n == 0 {
            return 1;
        }
        let (one, two) = rayon::join(|| count(n - 1), || count(n - 1));
        one + two
    }

    #[test]
    fn calls_within_calls_and_beside_them_end() {
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                assert_eq!(awake(|| count(10)), 1024);
                assert_eq!(awake(|| awake(|| count(8))), 256);
                let both = rayon::join(|| awake(|| count(9)), || awake(|| count(9)));
                assert_eq!(both, (512, 512));
            });
            assert_eq!(awake(|| pool.install(|| count(3))), 8);
        }
    }
}
