//! Work to tasks, on rayon's current pool.
//!
//! Tasks are made by [`rayon::join`] over halves, which allocates nothing. What they write is split by
//! [`TensorViewMut::split_at`](crate::TensorViewMut::split_at) or by slices, so that disjointness is the
//! borrow checker's business. No sum is ever cut by the number of threads.

use std::ops::Range;

/// Tasks a thread should find: enough to even out tasks of unlike length.
const TASKS_PER_THREAD: usize = 4;

/// Into how many tasks `work` is best cut, if one must have at least `grain` of it.
///
/// Work of less than two grains asks rayon for nothing, not even its number of threads.
pub(crate) fn tasks(work: usize, grain: usize) -> usize {
    if work < 2 * grain { 1 } else { tasks_for(work, grain, rayon::current_num_threads()) }
}

/// [`tasks`] as a pure function.
fn tasks_for(work: usize, grain: usize, threads: usize) -> usize {
    if threads == 1 { 1 } else { (work / grain).clamp(1, TASKS_PER_THREAD * threads) }
}

/// Calls `f` with pieces of `range` that begin at multiples of `unit` from its start, about `tasks` of them,
/// possibly at the same time.
pub(crate) fn for_each_piece(
    range: Range<usize>,
    unit: usize,
    tasks: usize,
    f: &(impl Fn(Range<usize>) + Sync),
) {
    let units = range.len().div_ceil(unit);
    if tasks <= 1 || units <= 1 {
        if !range.is_empty() {
            f(range);
        }
        return;
    }
    let half = tasks / 2;
    // At least one unit on each side; in proportion to the tasks otherwise.
    let cut = (units * half / tasks).clamp(1, units - 1) * unit + range.start;
    rayon::join(
        || for_each_piece(range.start..cut, unit, half, f),
        || for_each_piece(cut..range.end, unit, tasks - half, f),
    );
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
        rayon::join(
            || halve(low, first, chunk, half, f),
            || halve(high, first + cut, chunk, tasks - half, f),
        );
    }
    halve(data, 0, chunk, tasks, f);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn little_work_is_one_task() {
        assert_eq!(tasks_for(100, 1000, 8), 1);
        assert_eq!(tasks_for(10_000, 1000, 1), 1);
        assert_eq!(tasks_for(10_000, 1000, 2), 8);
        assert_eq!(tasks_for(3_000, 1000, 64), 3);
    }

    #[test]
    fn pieces_cover_the_range_once_and_begin_at_units() {
        for (len, unit, tasks) in [(0, 4, 3), (1, 4, 3), (17, 4, 3), (100, 7, 16), (64, 64, 5), (65, 64, 5)] {
            let seen = Mutex::new(Vec::new());
            for_each_piece(10..10 + len, unit, tasks, &|piece| seen.lock().unwrap().push(piece));
            let mut pieces = seen.into_inner().unwrap();
            pieces.sort_by_key(|piece| piece.start);
            let mut next = 10;
            for piece in &pieces {
                assert_eq!(piece.start, next);
                assert_eq!((piece.start - 10) % unit, 0);
                assert!(!piece.is_empty());
                next = piece.end;
            }
            assert_eq!(next, 10 + len);
        }
    }
}
