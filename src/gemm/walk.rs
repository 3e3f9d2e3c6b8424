//! How one thread walks through a product: pure functions of its shape, of where its operands lie and of machine facts.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::blocking::{LEAST_DEPTH, NEAR, PAGE, Tile, balanced, depth_block};
use crate::machine::Caches;

/// Steps of a block where C comes from far.
const DEEP: usize = 512;

/// Columns for which rows of A are read where they lie, by tiles of two vectors: with 1024 of them a packed A is some 4 % faster
/// where rows lie a page apart, and with 256 a tenth slower.
const FEW_COLUMNS: usize = 512;

/// Rows for which panels of B are packed while the first rows read them, where L3 is far and holds B: packed before, they would
/// come from there once more. With 192 rows that costs more than it saves.
const PASSING: usize = 144;

/// [`depth_block`] of matrices in memory. Where L3 is far and tiles are wide, so is what few rows read of a large B as it lies, and again
/// right away: all of a panel then has room in L1; and so for more rows where steps fall on few sets of L1, and there are columns
/// enough. For many rows B is packed, and C comes from as far once for each block: of which there are half as many then, if A is not
/// packed again for each block of fewer columns.
pub(super) fn depth_in_memory<T>(
    tile: Tile,
    caches: Caches,
    [m, n, k]: [usize; 3],
    [a, b]: [Source; 2],
) -> usize {
    let usual = depth_block::<T>(tile, caches, k);
    if !(tile.wide() && caches.distant() && a.direct && b.direct) {
        return usual;
    }
    if b.neighbours && b.bytes > caches.l2 {
        let few_sets = b.stride.saturating_mul(size_of::<T>()).is_multiple_of(PAGE / 4) && k / 4 <= n;
        if m <= if few_sets { tile.most_in_turn() } else { tile.sums() * 3 / 2 } {
            return balanced(k, LEAST_DEPTH, 8);
        }
    }
    let bytes = |lines: usize| lines.saturating_mul(DEEP * size_of::<T>());
    let whole = bytes(n) > room(caches) && bytes(m) <= waiting(tile, caches);
    let deep = m > tile.most_across() && (a.steps || whole);
    if deep { balanced(k, DEEP, 8) } else { usual }
}

/// Bytes of the largest block of A that is packed at once for several blocks of columns, by each thread. Where L3 is far and tiles are
/// wide it may wait there: it is read from front to back.
fn waiting(tile: Tile, caches: Caches) -> usize {
    if tile.wide() && caches.distant() { 16 << 20 } else { caches.l2 / 8 }
}

/// Bytes of L2 for B, the rest for A, C and what comes next: three quarters of a small one, and no more than half of a large
/// one, where each panel of A is used often enough as it is.
fn room(caches: Caches) -> usize {
    (caches.l2 / 4 * 3).min((caches.l2 / 2).max(1 << 20))
}

/// How one thread walks through a product, or through its part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Walk {
    /// Columns of B that are packed at a time, and then read from L2, or from farther, once for some panels of A.
    pub nc: usize,
    /// Blocks of depth for which some rows are computed before the next: as many as let B stay where it is.
    pub group: usize,
    /// Where panels of A come from.
    pub a: Fetch,
    /// Panels of A that are taken at a time.
    pub panels: usize,
    /// The first columns of B that are read in place.
    pub b_in_place: usize,
    /// A panel of them is packed while the first rows read it.
    pub keep: bool,
    /// The next of them is asked for meanwhile.
    pub ask: bool,
    pub order: Order,
}

/// In which order the tiles of a block are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Column by column where a panel of B stays in L1 or there are few of them, row by row otherwise.
    Usual,
    /// Row by row: for few steps of depth what C costs column by column, where each row lies in a page of its own, is more
    /// than what is gained.
    Rows,
    /// Column by column: B may come from memory, and is used a few times only; each panel of it is used by all rows while the
    /// next, where it is packed, is asked for.
    Fetch,
}

/// Where the panels of an operand come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fetch {
    /// They are read where they lie.
    InPlace,
    /// All of a block of depth is packed at once, and stays in L2, or in an L3 that is far.
    Whole,
    /// Some are packed when their turn comes, and stay in L1 or L2 while they are used.
    Panels,
}

/// What [`Walk::new`] needs to know of an operand that is not packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// It is a matrix in memory.
    pub direct: bool,
    /// Neighbouring lines (rows of A, columns of B) are neighbours in memory.
    pub neighbours: bool,
    /// Neighbouring steps of depth are neighbours in memory.
    pub steps: bool,
    /// Elements between neighbouring steps of depth.
    pub stride: usize,
    /// Each of its steps begins with a cache line.
    pub aligned: bool,
    /// Of all its elements.
    pub bytes: usize,
}

impl Walk {
    /// For `m` rows and `n` columns in blocks of depth `kc`; `None` stands for an operand packed before.
    pub(crate) fn new<T>(
        tile: Tile,
        caches: Caches,
        [m, n, kc]: [usize; 3],
        a: Option<Source>,
        b: Option<Source>,
    ) -> Self {
        let bytes = kc * size_of::<T>();
        // A panel of B stays in L1 while panels of A go by, so that B may come from farther than L2.
        let narrow = tile.columns * LEAST_DEPTH * size_of::<T>() <= NEAR;
        let near = narrow && kc >= LEAST_DEPTH;
        let kept = room(caches);
        let room = if near { caches.l2.max(1 << 20) } else { kept };
        // A line of B is a part of each of its panels: what few rows are soon done with must not push lines out of L2.
        let few_rows = m.saturating_mul(bytes) <= caches.l2 / 16
            && matches!(b, Some(Source { direct: true, steps: true, .. }));
        let most = if few_rows { caches.l2 / 16 } else { room };
        let most = (most / bytes).max(tile.columns) / tile.columns * tile.columns;
        let nc = balanced(n, most, tile.columns);
        let large = n.saturating_mul(bytes) > 2 * caches.l1d;
        let far = caches.distant() && b.is_some_and(|b| b.bytes > caches.share() / 2);
        // For few rows B is not packed.
        let (b_in_place, line) = match b {
            Some(Source { direct: true, neighbours: true, stride, .. }) => {
                let times = match bytes.saturating_mul(stride) {
                    span if span <= kept => 12,
                    span if span <= room => 5,
                    _ => 3,
                };
                let passing = large && caches.distant() && !far;
                let few = m <= (tile.sums() * times).max(if passing { PASSING } else { 0 });
                if few { (tile.whole(n), stride.max(n)) } else { (0, nc) }
            }
            _ => (0, nc),
        };
        let group = if nc < n { 1 } else { (room / bytes.saturating_mul(line).max(1)).max(1) };
        // Packing moves each element of A once for each nc columns, so for few columns it costs as much as
        // it saves. Where the columns come in several blocks, A is packed once for all of them if it fits.
        let few = m > tile.rows && m <= tile.most_across() && m.saturating_mul(bytes) <= caches.l2 / 4;
        let across = few && b.is_none() && a.is_some() && large;
        // Columns for which an element of A is read as often as packing it is worth: of neighbouring rows, of which a panel is a short
        // run of memory for each step, fewer where they lie in no cache of this core.
        let often = match a {
            Some(Source { steps: true, .. }) => FEW_COLUMNS,
            // Steps whole pages apart fall on the same sets of L1 and few of L2: there is no room for a line until the next panel reads
            // more of it.
            Some(Source { stride, bytes, .. })
                if bytes > caches.l2 && stride.saturating_mul(size_of::<T>()).is_multiple_of(PAGE) =>
            {
                tile.lanes
            }
            Some(Source { bytes, .. }) if bytes <= caches.l2 / 4 => 8 * tile.columns,
            _ => 64.clamp(4 * tile.columns, 8 * tile.columns),
        };
        let a_fetch = match a {
            Some(Source { direct: true, neighbours, steps, .. }) if (neighbours || steps) && n <= often => {
                Fetch::InPlace
            }
            // An address for each element costs nothing where it is multiplied by four vectors.
            Some(Source { direct: true, steps: true, .. }) if tile.wide() => Fetch::InPlace,
            Some(_) if across => Fetch::Whole,
            Some(_) if nc < n && m.saturating_mul(bytes) <= waiting(tile, caches) => Fetch::Whole,
            _ => Fetch::Panels,
        };
        // The processor sees a B in place coming, but not in time where it comes from so far; nor does it look over the end of a page,
        // which for few rows is soon reached where a step of depth takes most of one. For more rows all wait for the first.
        let some = m > tile.most_in_turn();
        let paged = |b: Source| some || b.stride.saturating_mul(size_of::<T>()) > PAGE / 2;
        let ask = far || (caches.distant() && b.is_some_and(|b| b.bytes > caches.l2 && paged(b)));
        // In place a vector that is part of two lines costs two reads, and what such an L3 sends late keeps all rows waiting.
        let keep = b_in_place == n
            && large
            && match b {
                Some(Source { aligned: true, .. }) if !far => {
                    // Measured: where the next panel is asked for, this one pays with half as many rows.
                    caches.distant() && (some || (ask && 2 * m >= tile.most_in_turn()))
                }
                // Measured: fewer rows wait less for it in place.
                Some(_) if !far && tile.wide() && caches.distant() => m >= 2 * tile.sums(),
                _ => m >= tile.sums(),
            };
        let panel = tile.rows.saturating_mul(bytes).max(1);
        let panels = match (a_fetch, a) {
            (Fetch::Whole, _) => usize::MAX,
            (Fetch::InPlace, _) if across || keep || m.saturating_mul(bytes) <= caches.l2 / 8 => usize::MAX,
            // Nothing is packed: as many as L1 has room for, while the next are asked for.
            (Fetch::InPlace, _) if !narrow => (caches.l1d / 2 / panel).max(1),
            (Fetch::Panels, Some(Source { neighbours: false, .. })) if !narrow => 1,
            // As many as L2 has room for. A step of neighbouring rows is a run of memory: a longer one for each page.
            _ => (caches.l2 / 3 / panel).clamp(1, 24),
        };
        let (nc, group) = if across { (n, 1) } else { (nc, group) };
        // More rows than these hide what a panel in place waits for, and going down its columns costs more.
        let few = m <= tile.most_in_turn() && large;
        let order = if across || keep || (b_in_place == n && few) {
            Order::Fetch
        } else if narrow && !near {
            Order::Rows
        } else {
            Order::Usual
        };
        Self { nc, group, a: a_fetch, panels, b_in_place, keep, ask, order }
    }
}

/// The first step and line of the panel of a packed B that is read after some steps of some columns, in the order of the loops: `steps` of
/// a `group` of blocks of the `depth`, `columns` of `all`. None that was read just now, where more rows follow; after the last
/// the panel to the right, where another call may go on.
pub(super) fn following(
    [steps, group, depth]: [&Range<usize>; 3],
    more_rows: bool,
    [columns, all]: [&Range<usize>; 2],
) -> Option<[usize; 2]> {
    if steps.end < group.end {
        return Some([steps.end, columns.start]);
    }
    if more_rows {
        return None;
    }
    if columns.end < all.end {
        return Some([group.start, columns.end]);
    }
    Some(if group.end < depth.end { [group.end, all.start] } else { [depth.start, all.end] })
}

#[cfg(test)]
mod tests {
    use super::super::blocking::tests::{AVX2, AVX512, CACHES};
    use super::*;

    fn walk(m: usize, n: usize, k: usize, a: Option<Source>, b: Option<Source>) -> Walk {
        Walk::new::<f32>(AVX2, CACHES, [m, n, depth_block::<f32>(AVX2, CACHES, k)], a, b)
    }

    const NONE: Source =
        Source { direct: true, neighbours: false, steps: false, stride: 1, aligned: true, bytes: 8 << 20 };
    const ROWS: Option<Source> = Some(Source { steps: true, ..NONE });
    const COLUMNS: Option<Source> = Some(columns(5000));

    const fn columns(stride: usize) -> Source {
        Source { neighbours: true, stride, ..NONE }
    }

    #[test]
    fn blocks_are_as_deep_as_a_far_l3_wants() {
        let far = Caches { l1d: 48 << 10, l2: 2 << 20, l3: 480 << 20 };
        let (rows, large) = (ROWS.unwrap(), Source { bytes: (2 << 20) + 1, ..columns(1000) });
        let depth = |caches, shape, a: Option<Source>, stride| {
            depth_in_memory::<f32>(AVX512, caches, shape, [a.unwrap(), Source { stride, ..large }])
        };
        // Few rows; more where steps are a quarter of a page apart.
        for (m, stride, expected) in [(36, 1000, 128), (37, 1000, 256), (96, 1024, 128), (97, 1024, 256)] {
            assert_eq!(depth(far, [m, 1000, 2048], ROWS, stride), expected, "{m} {stride}");
        }
        assert_eq!(depth(far, [96, 511, 2048], ROWS, 1024), 256, "few columns");
        assert_eq!(depth(far, [36, 1000, 200], ROWS, 1000), 104, "even blocks");
        let small = Source { bytes: 2 << 20, ..large };
        assert_eq!(depth_in_memory::<f32>(AVX512, far, [36, 1000, 2048], [rows, small]), 256);
        // Many rows.
        assert_eq!([288, 289].map(|m| depth(far, [m, 1000, 2048], ROWS, 1000)), [256, 512]);
        let across = |m, n| depth(far, [m, n, 2048], COLUMNS, 1000);
        assert_eq!([across(8192, 513), across(8193, 513), across(8192, 512)], [512, 256, 256]);
        // Elsewhere, with other tiles, and of what is no matrix.
        assert_eq!(depth(CACHES, [36, 1000, 2048], ROWS, 1000), 160);
        let sources = [rows, large];
        for m in [36, 1000] {
            assert_eq!(depth_in_memory::<f32>(AVX2, far, [m, 1000, 2048], sources), 256);
            let windows = sources.map(|source| Source { direct: false, ..source });
            for sources in [[windows[0], sources[1]], [sources[0], windows[1]]] {
                assert_eq!(depth_in_memory::<f32>(AVX512, far, [m, 1000, 2048], sources), 256);
            }
        }
        assert_eq!(
            depth_in_memory::<f64>(Tile { columns: 32, lanes: 8, ..AVX512 }, far, [36, 1000, 2048], sources),
            128
        );
    }

    #[test]
    fn blocks_fit_their_caches() {
        for k in [1, 8, 100, 256, 1000, 4096] {
            let kc = depth_block::<f32>(AVX2, CACHES, k);
            assert!(kc * AVX2.columns * 4 <= CACHES.l1d, "{kc}");
            for m in [100, 3000] {
                let walk = walk(m, 5000, k, ROWS, COLUMNS);
                let room = if kc >= LEAST_DEPTH { 1 << 20 } else { CACHES.l2 / 4 * 3 };
                assert!(walk.nc * kc * 4 <= room + kc * 4 * AVX2.columns, "{walk:?}");
                assert!(walk.panels.saturating_mul(AVX2.rows).min(m) * kc * 4 <= CACHES.l2 / 3, "{walk:?}");
                assert!(walk.a != Fetch::Whole || m * kc * 4 <= CACHES.l2 / 8, "{walk:?}");
            }
        }
    }

    #[test]
    fn b_has_most_of_a_small_l2() {
        let room = |kib: usize| room(Caches { l2: kib << 10, ..CACHES }) >> 10;
        assert_eq!([256, 512, 1280, 2048, 4096].map(room), [192, 384, 960, 1024, 2048]);
    }

    #[test]
    fn packing_must_pay() {
        assert_eq!(walk(3000, 512, 500, ROWS, COLUMNS).a, Fetch::InPlace);
        assert_eq!(walk(3000, 513, 500, ROWS, COLUMNS).a, Fetch::Panels);
        let across = |n, bytes| walk(3000, n, 500, Some(Source { bytes, ..columns(3000) }), COLUMNS).a;
        let of = [64, 65, 128].map(|n| [across(n, CACHES.l2 / 4), across(n, CACHES.l2 / 4 + 1)]);
        assert_eq!(
            of,
            [[Fetch::InPlace; 2], [Fetch::InPlace, Fetch::Panels], [Fetch::InPlace, Fetch::Panels]]
        );
        let paged =
            |n, stride, bytes| walk(3000, n, 500, Some(Source { bytes, ..columns(stride) }), COLUMNS).a;
        assert_eq!(paged(9, 3072, CACHES.l2 + 1), Fetch::Panels, "steps three pages apart");
        for (n, stride, bytes) in [(8, 3072, CACHES.l2 + 1), (9, 3072, CACHES.l2), (9, 3073, CACHES.l2 + 1)] {
            assert_eq!(paged(n, stride, bytes), Fetch::InPlace, "{n} {stride} {bytes}");
        }
        // Several blocks of columns: at once, if it is small, or L3 far.
        let large =
            |tile, caches, m| Walk::new::<f32>(tile, caches, [m, 5000, 256], Some(columns(5000)), ROWS).a;
        let far = Caches { l3: 480 << 20, ..CACHES };
        let wide = Tile { columns: 32, ..AVX2 };
        for (tile, caches) in [(AVX2, CACHES), (AVX2, far), (wide, CACHES)] {
            assert_eq!([64, 65].map(|m| large(tile, caches, m)), [Fetch::Whole, Fetch::Panels]);
        }
        assert_eq!([16384, 16385].map(|m| large(wide, far, m)), [Fetch::Whole, Fetch::Panels]);
        // Rows that go backwards have no neighbours behind them.
        assert_eq!(walk(3000, 128, 500, Some(NONE), COLUMNS).a, Fetch::Panels);
        assert_eq!(walk(12, 5000, 500, ROWS, COLUMNS).b_in_place, 5000);
        assert_eq!(walk(12, 5001, 500, ROWS, COLUMNS).b_in_place, 4992);
        assert_eq!(walk(36, 5000, 500, ROWS, COLUMNS).b_in_place, 5000);
        assert_eq!(walk(37, 5000, 500, ROWS, COLUMNS).b_in_place, 0);
        // A block of B that fits in L2 as it lies is read in place for more rows.
        let narrow = Some(columns(200));
        assert_eq!(walk(144, 200, 500, ROWS, narrow).b_in_place, 200);
        assert_eq!(walk(145, 200, 500, ROWS, narrow).b_in_place, 0);
        // One that does not, for some.
        let wide = Some(columns(1000));
        assert_eq!(walk(60, 1000, 500, ROWS, wide).b_in_place, 1000);
        assert_eq!(walk(61, 1000, 500, ROWS, wide).b_in_place, 0);
        // Columns of B that are no neighbours, or no matrix, cannot be read as vectors.
        assert_eq!(walk(12, 5000, 500, ROWS, ROWS).b_in_place, 0);
        assert_eq!(walk(12, 5000, 500, ROWS, None).b_in_place, 0);
        // Few rows and several blocks of columns: A is packed once for all of them, but for tiles of four vectors.
        assert_eq!(walk(60, 5000, 500, ROWS, None).a, Fetch::Whole);
        let wide = Walk::new::<f32>(Tile { columns: 32, ..AVX2 }, CACHES, [60, 5000, 256], ROWS, None);
        assert_eq!((wide.a, wide.order), (Fetch::InPlace, Order::Fetch));
    }

    #[test]
    fn few_rows_do_not_push_out_what_is_packed() {
        let (avx512, caches) = (Tile { columns: 64, lanes: 16, ..AVX2 }, Caches { l2: 2 << 20, ..CACHES });
        let nc = |m, b| Walk::new::<f32>(avx512, caches, [m, 1024, 256], ROWS, b).nc;
        assert_eq!(nc(128, ROWS), 128);
        assert_eq!(nc(129, ROWS), 1024, "A would be read again from too far");
        assert_eq!(nc(128, Some(NONE)), 1024, "steps are no lines of memory");
        assert_eq!(nc(128, None), 1024, "packed before");
    }

    #[test]
    fn panels_from_memory_go_through_all_rows() {
        assert!(walk(60, 5000, 500, ROWS, None).order == Order::Fetch);
        assert!(walk(60, 5000, 500, ROWS, ROWS).order != Order::Fetch, "packed here, B is in L2");
        assert!(walk(6, 5000, 500, ROWS, None).order != Order::Fetch, "one row of tiles");
        assert!(walk(60, 16, 500, ROWS, None).order != Order::Fetch, "B is small");
        assert!(walk(3000, 5000, 500, ROWS, None).order != Order::Fetch);
    }

    #[test]
    fn panels_in_place_are_kept_where_reading_them_again_costs() {
        let split = Some(Source { aligned: false, ..columns(200) });
        let keep = |m, n, b| walk(m, n, 500, ROWS, b).keep;
        assert!(
            keep(12, 200, split) && !keep(12, 200, Some(columns(200))),
            "vectors that are part of two lines"
        );
        assert!(!keep(11, 200, split), "two rows of tiles");
        assert!(!keep(13, 48, split), "B stays in L1");
        assert!(!keep(200, 200, split), "B is packed");
        // An L3 that is far.
        let far = Caches { l2: 2 << 20, l3: 480 << 20, ..CACHES };
        let walk = |m, bytes| {
            Walk::new::<f32>(AVX2, far, [m, 200, 250], ROWS, Some(Source { bytes, ..columns(200) }))
        };
        assert!(walk(49, 1 << 20).keep && !walk(48, 1 << 20).keep && !walk(49, 1 << 20).ask);
        assert!(walk(12, 64 << 20).keep && walk(12, 64 << 20).ask && !walk(11, 64 << 20).keep);
        assert_eq!(walk(49, 1 << 20).order, Order::Fetch);
        let walk = |m, stride| {
            let b = Some(Source { bytes: 4 << 20, ..columns(stride) });
            Walk::new::<f32>(AVX2, far, [m, 200, 250], ROWS, b)
        };
        assert!(walk(48, 513).ask && !walk(48, 512).ask, "several steps in a page");
        assert!(walk(49, 512).ask, "rows enough wait for the first");
        assert!(walk(24, 513).keep && !walk(23, 513).keep && !walk(24, 512).keep);
        // Where a block of B is too much for L2.
        let walk = |m, bytes| {
            Walk::new::<f32>(AVX2, far, [m, 5000, 250], ROWS, Some(Source { bytes, ..columns(5000) }))
        };
        assert!(walk(144, 16 << 20).keep && !walk(145, 16 << 20).keep && !walk(144, (16 << 20) + 1).keep);
        // With wide tiles.
        let walk = |m, bytes| {
            let b = Some(Source { aligned: false, bytes, ..columns(200) });
            Walk::new::<f32>(AVX512, far, [m, 200, 250], ROWS, b)
        };
        assert!(walk(48, 1 << 20).keep && !walk(47, 1 << 20).keep);
        assert!(walk(24, 480 << 20).keep && !walk(23, 480 << 20).keep, "from memory");
    }

    #[test]
    fn depth_is_grouped_where_b_stays_near() {
        // kc is 256 for 1024: a block of 128 columns takes 128 of the 1024 KiB.
        assert_eq!(walk(3000, 128, 1024, ROWS, COLUMNS).group, 8);
        assert_eq!(walk(3000, 129, 1024, ROWS, COLUMNS).group, 7);
        assert_eq!(walk(3000, 5000, 1024, ROWS, COLUMNS).group, 1);
        // In place, what lies between the columns counts.
        assert_eq!(walk(12, 64, 1024, ROWS, COLUMNS).group, 1);
    }

    #[test]
    fn what_is_asked_for_is_read_next() {
        // Two groups of two blocks of depth, three blocks of columns, two of rows.
        let (depth, all) = (0..40, 64..256);
        let mut read = Vec::new();
        for group in [0..20, 20..40] {
            for columns in [64..128, 128..192, 192..256] {
                for more_rows in [true, false] {
                    for steps in [group.start..group.start + 10, group.start + 10..group.end] {
                        let next = following([&steps, &group, &depth], more_rows, [&columns, &all]);
                        read.push(([steps.start, columns.start], next, more_rows));
                    }
                }
            }
        }
        for pair in read.windows(2) {
            let expected = if pair[0].2 != pair[1].2 && pair[0].2 { None } else { Some(pair[1].0) };
            assert_eq!(pair[0].1, expected, "{pair:?}");
        }
        assert_eq!(read[read.len() - 1].1, Some([0, 256]), "to the right");
    }
}
