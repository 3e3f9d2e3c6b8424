//! Aligned memory: checked allocation, and scratch that is kept for the next call.
//!
//! Scratch belongs to a thread. It is *taken out* of the thread's store while in use, so a task that rayon
//! runs on the same thread meanwhile finds the store free and takes another buffer; no borrow is held.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use aligned_vec::{AVec, Alignment, ConstAlign, RuntimeAlign};

use crate::element::Element;
use crate::error::{Error, Result};
use crate::simd::CACHE_LINE;

/// A vector aligned to 64 bytes, a cache line and the widest vector.
pub(crate) type Aligned<T> = AVec<T, ConstAlign<CACHE_LINE>>;

/// An empty vector with room for `len` elements.
pub(crate) fn try_vec<T>(op: &'static str, len: usize) -> Result<Aligned<T>> {
    with_room(op, Aligned::new(0), len)
}

/// `data`, which is empty, with room for `len` elements.
fn with_room<T, A: Alignment>(op: &'static str, mut data: AVec<T, A>, len: usize) -> Result<AVec<T, A>> {
    let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= isize::MAX as usize - HUGE);
    bytes
        .and_then(|_| data.try_reserve_exact(len).ok())
        .ok_or(Error::Alloc { op, bytes: bytes.unwrap_or(usize::MAX) })?;
    huge_pages(&mut data);
    Ok(data)
}

/// The product of sizes, as a number of elements.
pub(crate) fn product(op: &'static str, sizes: &[usize]) -> Result<usize> {
    let len = sizes.iter().try_fold(1usize, |len, &size| len.checked_mul(size));
    len.ok_or(Error::Alloc { op, bytes: usize::MAX })
}

/// An empty list with room for so many.
pub(crate) fn room<T>(op: &'static str, len: usize) -> Result<Vec<T>> {
    let mut list = Vec::new();
    let bytes = len.saturating_mul(size_of::<T>());
    list.try_reserve_exact(len).map_err(|_| Error::Alloc { op, bytes })?;
    Ok(list)
}

/// What `to` holds becomes a copy of `from`; where there is no memory, it is what it was.
pub(crate) fn try_copy<T: Copy>(op: &'static str, from: &[T], to: &mut Vec<T>) -> Result<()> {
    let bytes = size_of_val(from);
    to.try_reserve_exact(from.len().saturating_sub(to.len())).map_err(|_| Error::Alloc { op, bytes })?;
    to.clear();
    to.extend_from_slice(from);
    Ok(())
}

/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// Asks Linux for huge pages, before the first touch: with ordinary ones, a matrix of some megabytes has more pages than
/// the processor keeps addresses of. Many systems give them on request only. Where it is refused, nothing is lost.
fn huge_pages<T, A: Alignment>(data: &mut AVec<T, A>) {
    #[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    {
        use std::ffi::{c_int, c_void};

        unsafe extern "C" {
            fn madvise(address: *mut c_void, len: usize, advice: c_int) -> c_int;
        }
        const MADV_HUGEPAGE: c_int = 14;
        /// Where the system's pages are larger, it refuses.
        const PAGE: usize = 4096;

        let bytes = data.capacity() * size_of::<T>();
        if bytes < HUGE {
            return;
        }
        // From the start of the first page: a large allocation begins just behind its allocator's note, and without
        // that page the first huge one could not be had.
        let inside = data.as_ptr().addr() % PAGE;
        let start = data.as_mut_ptr().cast::<u8>().wrapping_sub(inside);
        // SAFETY: only a hint how these pages are backed: it changes no contents, also of what shares the first and the
        // last page with the buffer, and those are mapped because the buffer is.
        unsafe { madvise(start.cast(), bytes + inside, MADV_HUGEPAGE) };
    }
    #[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"), not(miri))))]
    let _ = data;
}

/// What scratch can hold.
///
/// # Safety
/// Every bit pattern is a value, and no value needs more than 64 bytes' alignment.
pub(crate) unsafe trait Plain: Copy {
    /// A value that no kernel works with by mistake.
    const POISON: Self;
}

// SAFETY: element types are `f32` and `f64`, and sealed.
unsafe impl<T: Element> Plain for T {
    const POISON: Self = T::NAN;
}

// SAFETY: an integer.
unsafe impl Plain for usize {
    const POISON: Self = usize::MAX;
}

// SAFETY: an integer.
unsafe impl Plain for u32 {
    const POISON: Self = u32::MAX;
}

/// Buffers of a kind that a thread keeps. More would only hold memory: no operation uses as many at once.
const KEPT: usize = 8;

/// What scratch lies in.
type Words = AVec<u64, RuntimeAlign>;

thread_local! {
    static STORE: RefCell<Vec<Words>> = const { RefCell::new(Vec::new()) };
}

/// A zeroed-once, 64-byte aligned scratch slice; goes back to the thread's store when dropped.
///
/// Its contents are whatever the last use left; with debug assertions on they are NaN, so that a test
/// sees a kernel that reads what it has not written.
pub(crate) struct Scratch<T: Plain> {
    words: Words,
    len: usize,
    element: std::marker::PhantomData<T>,
}

/// Scratch for `len` elements.
pub(crate) fn scratch<T: Plain>(op: &'static str, len: usize) -> Result<Scratch<T>> {
    aligned(op, len, CACHE_LINE)
}

/// [`scratch`] that is read again and again. From a quarter of a huge page on it has whole ones to itself: what L2 has room for then
/// lies in one piece. Of ordinary pages some share its sets, as chance has it, which takes up to 6 % of a product.
pub(crate) fn resident<T: Plain>(op: &'static str, len: usize) -> Result<Scratch<T>> {
    aligned(op, len, if len.saturating_mul(size_of::<T>()) < HUGE / 4 { CACHE_LINE } else { HUGE })
}

/// Scratch that begins with a line, or with a huge page and is as long as some of these.
fn aligned<T: Plain>(op: &'static str, len: usize, align: usize) -> Result<Scratch<T>> {
    let bytes = len.checked_mul(size_of::<T>()).ok_or(Error::Alloc { op, bytes: usize::MAX })?;
    let words = bytes.div_ceil(size_of::<u64>());
    if words == 0 {
        return Ok(Scratch { words: Words::new(CACHE_LINE), len, element: std::marker::PhantomData });
    }
    // Of its kind, so that each finds its own again, the smallest that is large enough, else the largest, which grows least.
    let take = |store: &mut Vec<Words>| {
        let kind = (0..store.len()).filter(|&at| store[at].alignment() == align);
        let best = kind.min_by_key(|&at| match store[at].capacity() {
            enough if enough >= words => (false, enough),
            less => (true, usize::MAX - less),
        });
        best.map(|at| store.swap_remove(at))
    };
    // The thread may be ending, its store gone.
    let kept = STORE.try_with(|store| store.try_borrow_mut().ok().and_then(|mut store| take(&mut store)));
    let mut buffer = kept.ok().flatten().unwrap_or_else(|| Words::new(align));
    if buffer.capacity() < words {
        // Not resized in place: what is in it need not be copied.
        drop(buffer);
        let whole = words.checked_next_multiple_of(align / size_of::<u64>()).unwrap_or(usize::MAX);
        buffer = with_room(op, Words::new(align), whole)?;
    }
    if buffer.len() < words {
        buffer.resize(words, 0);
    }
    let mut scratch = Scratch { words: buffer, len, element: std::marker::PhantomData };
    if cfg!(debug_assertions) {
        scratch.fill(T::POISON);
    }
    Ok(scratch)
}

impl<T: Plain> Drop for Scratch<T> {
    fn drop(&mut self) {
        if self.words.is_empty() {
            return;
        }
        let words = std::mem::replace(&mut self.words, Words::new(CACHE_LINE));
        // The thread may be ending, its store gone: then the buffer is freed.
        let _ = STORE.try_with(|store| {
            if let Ok(mut store) = store.try_borrow_mut()
                && store.iter().filter(|kept| kept.alignment() == words.alignment()).count() < KEPT
            {
                store.push(words);
            }
        });
    }
}

impl<T: Plain> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `words` holds at least `len` elements' bytes, all initialised, aligned to 64 bytes, and
        // every bit pattern is a value of a plain type.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `deref`, and the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.words.as_mut_ptr().cast(), self.len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_is_reused_aligned_and_poisoned() {
        let first = scratch::<f32>("test", 1000).unwrap();
        let address = first.as_ptr() as usize;
        assert_eq!(address % 64, 0);
        drop(first);
        let mut again = scratch::<f64>("test", 400).unwrap();
        assert_eq!(again.as_ptr() as usize, address, "the thread's buffer is reused");
        assert!(again.iter().all(|x| x.is_nan()));
        again.fill(1.0);
        let other = scratch::<f64>("test", 400).unwrap();
        assert_ne!(other.as_ptr() as usize, address, "a buffer in use is not given out again");
    }

    #[test]
    fn what_stays_in_l2_has_huge_pages_to_itself() {
        const PAGE: usize = HUGE / size_of::<u32>();
        let small = resident::<u32>("test", PAGE / 4 - 1).unwrap();
        assert_eq!(small.words.alignment(), CACHE_LINE);
        for len in [PAGE / 4, 2 * PAGE + 1] {
            let first = resident::<u32>("test", len).unwrap();
            let address = first.as_ptr().addr();
            assert_eq!(address % HUGE, 0, "{len}");
            drop(first);
            let other = scratch::<u32>("test", len).unwrap();
            assert_ne!(other.as_ptr().addr(), address, "of another kind");
            let mut whole = resident::<u32>("test", len.next_multiple_of(PAGE)).unwrap();
            assert_eq!(whole.as_ptr().addr(), address, "there is room for it");
            whole.fill(7);
            assert!(whole.iter().all(|&x| x == 7));
        }
    }

    #[test]
    fn large_buffers_are_aligned_and_usable() {
        for len in [(2 << 20) - 1, 2 << 20, (9 << 20) + 5] {
            let mut data = try_vec::<u8>("test", len).unwrap();
            data.resize(len, 7);
            assert_eq!(data.as_ptr() as usize % 64, 0);
            assert!(data.iter().all(|&x| x == 7));
        }
    }

    #[test]
    fn impossible_sizes_are_errors() {
        assert!(matches!(scratch::<f64>("test", usize::MAX), Err(Error::Alloc { .. })));
        assert!(matches!(scratch::<f32>("test", isize::MAX as usize / 4), Err(Error::Alloc { .. })));
        assert!(matches!(try_vec::<u8>("test", usize::MAX), Err(Error::Alloc { .. })));
    }
}
