//! Work to tasks, on rayon's current pool.
//!
//! Tasks are made by [`rayon::join`] over halves, which allocates nothing; a call from a thread outside the pool takes a
//! share itself, and allocates for handing out the others. What they write is split by
//! [`TensorViewMut::split_at`](crate::TensorViewMut::split_at) or by slices, so that disjointness is the
//! borrow checker's business. No sum is ever cut by the number of threads.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::error::Error as _;
use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rayon::ThreadPoolBuilder;

use crate::element::Element;
use crate::error::Result;
use crate::machine;
use crate::tensor::TensorViewMut;

/// Tasks a thread should find: enough to even out tasks of unlike length, where threads of the pool take them from each other.
pub(crate) const TASKS_PER_THREAD: usize = 4;

/// Runs both, possibly at the same time, and waits for them.
pub(crate) fn join<A: Send, B: Send>(a: impl FnOnce() -> A + Send, b: impl FnOnce() -> B + Send) -> (A, B) {
    let (mut a, mut b, mut first, mut second) = (Some(a), Some(b), None, None);
    both(&mut || first = a.take().map(|a| a()), &mut || second = b.take().map(|b| b()));
    let (Some(first), Some(second)) = (first, second) else {
        unreachable!("internal error: a task that did not run")
    };
    (first, second)
}

/// What [`join`] hands on: a task of any kind. So that what rayon does is compiled once, and not for each of them in each crate
/// that uses this one.
type Task<'t> = &'t mut (dyn FnMut() + Send + 't);

/// While a thread waits, rayon may run a job on it that has nothing to do with this call: such a job must
/// not find the instruction set that [`machine::with_isa`] forces here. Tasks of ours get theirs handed down.
fn both(a: Task<'_>, b: Task<'_>) {
    if SHARE.get() == 1 {
        a();
        return b();
    }
    let before = machine::force(None);
    let forced = before.forced();
    let a = move || {
        let _forced = machine::force(forced);
        a();
    };
    let b = move || {
        let _forced = machine::force(forced);
        b();
    };
    if rayon::current_thread_index().is_some() {
        join_inside(a, b);
    } else {
        join_from_outside(a, b);
    }
}

/// How long a thread looks for what comes before it sleeps: about what it takes to wake it.
const PATIENCE: Duration = Duration::from_micros(100);

/// [`rayon::join`] from a thread that is not of the pool hands both to it, and waits: for a thread to wake up, for that to
/// wake another, and to be woken itself. Here it takes the first, and looks for the end of the second for a while before it
/// sleeps. What it takes it cuts further until it is one thread's share. The last share that it hands on is not cut: more tasks
/// would wake one thread more than there are processors, which then keeps one of the others waiting.
fn join_from_outside(a: impl FnOnce(), b: impl FnOnce() + Send) {
    let share = SHARE.get().min(threads());
    if share == 1 {
        a();
        return b();
    }
    let over = AtomicBool::new(false);
    rayon::in_place_scope(|scope| {
        let over = &over;
        scope.spawn(move |_| {
            sharing(if share == 2 { 1 } else { usize::MAX }, b);
            let here = rayon::current_thread_index();
            rayon::spawn(move || linger(here));
            over.store(true, Ordering::Release);
        });
        sharing(share.div_ceil(2), a);
        let start = Instant::now();
        while !over.load(Ordering::Acquire) && start.elapsed() < PATIENCE {
            std::hint::spin_loop();
        }
    });
}

/// [`rayon::join`] on a thread of the pool, where the thread that waits for the second would sleep after a few microseconds, and
/// take tens of them to wake up. Here it looks for the end of it, and for other work, for a while before.
fn join_inside(a: impl FnOnce() + Send, b: impl FnOnce() + Send) {
    let (taken, over) = (AtomicBool::new(false), AtomicBool::new(false));
    rayon::join_context(
        |_| {
            a();
            if taken.load(Ordering::Relaxed) {
                let start = Instant::now();
                while !over.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                    if rayon::yield_now() != Some(rayon::Yield::Executed) {
                        // The other thread may be on this processor.
                        std::thread::yield_now();
                    }
                }
            }
        },
        |context| {
            taken.store(context.migrated(), Ordering::Relaxed);
            b();
            over.store(true, Ordering::Relaxed);
        },
    );
}

/// Keeps the thread of this index in the pool awake for the next call, which often follows soon. Work of any kind ends it.
fn linger(here: Option<usize>) {
    let start = Instant::now();
    while rayon::current_thread_index() == here
        && start.elapsed() < PATIENCE
        && rayon::yield_now() == Some(rayon::Yield::Idle)
    {
        std::hint::spin_loop();
    }
}

thread_local! {
    /// Threads that share the work of this thread's call, itself among them: those of the pool before the first cut. With one,
    /// no more tasks are made.
    static SHARE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Runs `f`, the share of that many threads.
fn sharing<R>(threads: usize, f: impl FnOnce() -> R) -> R {
    struct Share(usize);
    impl Drop for Share {
        fn drop(&mut self) {
            SHARE.set(self.0);
        }
    }
    let _before = Share(SHARE.replace(threads));
    f()
}

/// Runs `f`, one thread's share, without tasks of its own.
pub(crate) fn alone<R>(f: impl FnOnce() -> R) -> R {
    sharing(1, f)
}

/// Threads that this one's work is for: those of the current pool, or this alone where it has its share.
fn threads() -> usize {
    if SHARE.get() == 1 { 1 } else { pool() }
}

/// Threads of the current pool; 1 where rayon's global pool is meant and cannot be started.
pub(crate) fn pool() -> usize {
    static STARTED: OnceLock<bool> = OnceLock::new();
    if rayon::current_thread_index().is_some() {
        return rayon::current_num_threads();
    }
    // An error without a source says that the pool is there already.
    let start =
        || ThreadPoolBuilder::new().build_global().map_or_else(|error| error.source().is_none(), |()| true);
    if *STARTED.get_or_init(start) { rayon::current_num_threads() } else { 1 }
}

/// Into how many tasks `work` is best cut, if one must have at least `grain` of it.
///
/// Work of less than two grains asks rayon for nothing, not even its number of threads.
pub(crate) fn tasks(work: usize, grain: usize) -> usize {
    if work < 2 * grain { 1 } else { tasks_for(work, grain, threads()) }
}

/// How many threads of the current pool find at least `grain` of `work` each. Little work asks rayon for nothing, as in
/// [`tasks`].
#[inline]
pub(crate) fn threads_for(work: usize, grain: usize) -> usize {
    if work < 2 * grain { 1 } else { (work / grain).min(threads()) }
}

/// [`tasks`] as a pure function.
fn tasks_for(work: usize, grain: usize, threads: usize) -> usize {
    if threads == 1 { 1 } else { (work / grain).clamp(1, TASKS_PER_THREAD * threads) }
}

/// As many parts of a sum as are enough for the threads of a small machine.
pub(crate) const PARTS: usize = 8;

/// Parts of a sum that threads share, each summed by itself: the same for any number of threads, a power of two, one or not above `most`.
pub(crate) fn parts(most: usize) -> usize {
    1 << most.clamp(1, PARTS).ilog2()
}

/// Of `count` things, those of one of so many parts.
pub(crate) fn share(count: usize, parts: usize, part: usize) -> Range<usize> {
    // ⌊count · part / parts⌋, whose product may not be counted.
    let cut = |part: usize| count / parts * part + count % parts * part / parts;
    cut(part)..cut(part + 1)
}

/// The first of some sums of a length becomes all of them, added up in order.
pub(crate) fn total<T: Element>(sums: &mut [T], len: usize) -> &[T] {
    let (total, others) = sums.split_at_mut(len);
    for sums in others.chunks_exact(len.max(1)) {
        total.iter_mut().zip(sums).for_each(|(total, &sum)| *total += sum);
    }
    total
}

/// Calls `f` with the index of the first of a number of neighbouring chunks and with those chunks, about
/// `tasks` times, possibly at the same time.
pub(crate) fn for_each_chunk_mut<T: Send>(
    data: &mut [T],
    chunk: usize,
    tasks: usize,
    f: &(impl Fn(usize, &mut [T]) + Sync),
) {
    fn halve<T: Send>(
        data: &mut [T],
        first: usize,
        chunk: usize,
        tasks: usize,
        f: &(impl Fn(usize, &mut [T]) + Sync),
    ) {
        let chunks = data.len().div_ceil(chunk);
        if tasks <= 1 || chunks <= 1 {
            return f(first, data);
        }
        let half = tasks / 2;
        let cut = (chunks * half / tasks).clamp(1, chunks - 1);
        let (low, high) = data.split_at_mut(cut * chunk);
        join(|| halve(low, first, chunk, half, f), || halve(high, first + cut, chunk, tasks - half, f));
    }
    halve(data, 0, chunk, tasks, f);
}

/// Cuts `y`, which has several `unit`s along `axis`, at a multiple of one, and calls `f` with each part, with where it begins
/// and with its share of the tasks, possibly at the same time. `at` is where `y` begins, along its first axes.
pub(crate) fn halves<T: Element, const N: usize, const M: usize>(
    y: TensorViewMut<'_, T, N>,
    at: [usize; M],
    (axis, unit): (usize, usize),
    tasks: usize,
    f: &(impl Fn(TensorViewMut<'_, T, N>, [usize; M], usize) -> Result<()> + Sync),
) -> Result<()> {
    let (parts, half) = (y.shape()[axis].div_ceil(unit), tasks / 2);
    let middle = (parts * half / tasks).clamp(1, parts - 1) * unit;
    let (low, high) = y.split_at(axis, middle)?;
    let mut next = at;
    next[axis] += middle;
    let (first, second) = join(|| f(low, at, half), || f(high, next, tasks - half));
    first.and(second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_even_and_all() {
        let shares = |count, parts| (0..parts).map(|part| share(count, parts, part)).collect::<Vec<_>>();
        assert_eq!(shares(10, 4), [0..2, 2..5, 5..7, 7..10]);
        assert_eq!(shares(1, 2), [0..0, 0..1]);
        assert_eq!(share(usize::MAX, 8, 7).end, usize::MAX);
    }

    #[test]
    fn little_work_is_one_task() {
        assert_eq!(tasks_for(100, 1000, 8), 1);
        assert_eq!(tasks_for(10_000, 1000, 1), 1);
        assert_eq!(tasks_for(10_000, 1000, 2), 8);
        assert_eq!(tasks_for(3_000, 1000, 64), 3);
    }

    #[test]
    fn parts_are_a_power_of_two() {
        assert_eq!([0, 1, 2, 3, 4, 7, 8, 9, 100].map(parts), [1, 1, 2, 2, 4, 4, 8, 8, 8]);
        assert_eq!(total(&mut [1.0f32, 2.0, 10.0, 20.0, 100.0, 200.0], 2), [111.0, 222.0]);
        assert_eq!(total::<f32>(&mut [], 0), []);
    }

    #[test]
    fn calls_from_outside_take_a_share() {
        let numbers = |data: &mut [usize]| {
            for_each_chunk_mut(data, 1, 8, &|first, data| {
                data.iter_mut().enumerate().for_each(|(i, x)| *x = first + i);
            });
        };
        let here = std::thread::current().id();
        let mut data = [0; 100];
        let (mine, ()) = join(|| std::thread::current().id(), || numbers(&mut data));
        assert!(mine == here && SHARE.get() == usize::MAX);
        assert!(data.iter().enumerate().all(|(i, &x)| x == i), "{data:?}");
        let panics = || std::panic::catch_unwind(|| join(|| (), || panic!("meant")));
        assert!(panics().is_err() && SHARE.get() == usize::MAX);
        let (inner, outer) = (join(|| join(|| 1, || 2), || join(|| 3, || 4)), join(|| 5, || 6));
        assert_eq!((inner, outer), (((1, 2), (3, 4)), (5, 6)));
    }

    #[test]
    fn chunks_are_visited_once_and_never_cut() {
        for (len, chunk, tasks) in [(0, 4, 3), (1, 4, 3), (17, 4, 3), (100, 7, 16), (64, 64, 5), (65, 64, 5)]
        {
            let mut data = vec![0; len];
            for_each_chunk_mut(&mut data, chunk, tasks, &|first, chunks| {
                for (i, x) in chunks.iter_mut().enumerate() {
                    *x += 1 + first * chunk + i;
                }
            });
            assert!(data.iter().enumerate().all(|(i, &x)| x == i + 1), "{len} {chunk} {tasks}: {data:?}");
        }
    }
}
