//! Backward over blocks of keys.
//!
//! ```text
//! heads of keys and values                      each a task's
//!   for each query head of the group
//!     for each block of keys
//!       for each block of queries that sees it  or each of its panels, where positions hide part of the tile
//!         Sᵀ = K Qᵀ, dAᵀ = V dYᵀ                keys × queries, in L2
//!         A = 2^(S − L), dS = A ⊙ (dA − D)
//!         dV += Aᵀ dY, dK += dSᵀ Q, dQ += dS K
//! ```
//!
//! One task writes all gradients of its heads, one block after the other: there is nothing to merge.

use std::ops::Range;

use super::forward::product;
use super::kernel::{Differentiate, Dot, log2_e};
use super::plan::{GRAIN, Plan};
use super::scores::Panel;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Panels, blocks, pack};
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::scratch;

/// Panels of queries in a block.
const PANELS: usize = 4;

/// One call.
pub struct Backward<'c, 'e, T> {
    pub plan: &'c Plan<'e, T>,
    pub q: TensorView<'c, T, 4>,
    pub k: TensorView<'c, T, 4>,
    pub v: TensorView<'c, T, 4>,
    pub y: TensorView<'c, T, 4>,
    pub normalizer: TensorView<'c, T, 3>,
    pub dy: TensorView<'c, T, 4>,
}

/// What a call writes, all over `[batch, heads or kv_heads, …]`.
pub(super) struct Outputs<'o, T> {
    pub query: Option<TensorViewMut<'o, T, 4>>,
    pub key: Option<TensorViewMut<'o, T, 4>>,
    pub value: Option<TensorViewMut<'o, T, 4>>,
}

fn split<'o, T>(
    view: Option<TensorViewMut<'o, T, 4>>,
    axis: usize,
    at: usize,
) -> Result<[Option<TensorViewMut<'o, T, 4>>; 2]> {
    let Some(view) = view else { return Ok([None, None]) };
    let (one, other) = view.split_at(axis, at)?;
    Ok([Some(one), Some(other)])
}

/// The matrix of one head of one entry.
fn head<'v, T>(
    view: &'v mut Option<TensorViewMut<'_, T, 4>>,
    entry: usize,
    head: usize,
) -> Result<Option<TensorViewMut<'v, T, 2>>> {
    let Some(view) = view else { return Ok(None) };
    Ok(Some(view.view_mut().select::<3>(0, entry)?.select(0, head)?))
}

/// What a query head brings along, for the queries of `all`.
struct Head<'h, T> {
    all: Panel,
    q: TensorView<'h, T, 2>,
    k: TensorView<'h, T, 2>,
    v: TensorView<'h, T, 2>,
    dy: TensorView<'h, T, 2>,
    /// Panels of Q and dY.
    packed_q: &'h [T],
    packed_dy: &'h [T],
    /// Of each query, as [`Differentiate`] takes them.
    normalizers: &'h [T],
    means: &'h [T],
}

/// Where a tile of scores is.
struct Tile<'t, T> {
    /// keys × [`stride`](Backward::stride): out: weights.
    weights: &'t mut [T],
    /// Out: dS, by q·k without its factor.
    gradients: &'t mut [T],
    addend: &'t mut [T],
    /// Empty where there is no soft cap, and where the bias's gradient is wanted, which is added behind it.
    slopes: &'t mut [T],
}

impl<'c, T: Element> Backward<'c, '_, T> {
    pub(super) fn run(
        &self,
        outputs: Outputs<'_, T>,
        bias: Option<TensorViewMut<'_, T, 4>>,
    ) -> Result<usize> {
        let tasks = parallel::tasks(self.plan.work().saturating_mul(3), GRAIN);
        let kv_heads = self.k.shape()[1];
        if outputs.query.is_some() || outputs.key.is_some() || outputs.value.is_some() {
            self.split(outputs, [0..self.plan.batch, 0..kv_heads], tasks)?;
        }
        if let Some(bias) = bias {
            self.bias(bias, [0; 3], tasks)?;
        }
        Ok(tasks)
    }

    fn split(
        &self,
        outputs: Outputs<'_, T>,
        [entries, kv_heads]: [Range<usize>; 2],
        tasks: usize,
    ) -> Result<()> {
        let axis = if entries.len() > 1 { 0 } else { 1 };
        let units = [entries.len(), kv_heads.len()][axis];
        if tasks <= 1 || units <= 1 {
            return self.task(outputs, [entries, kv_heads]);
        }
        let half = tasks / 2;
        let cut = (units * half / tasks).clamp(1, units - 1);
        let group = if axis == 1 { self.plan.group } else { 1 };
        let [query, query_rest] = split(outputs.query, axis, cut * group)?;
        let [key, key_rest] = split(outputs.key, axis, cut)?;
        let [value, value_rest] = split(outputs.value, axis, cut)?;
        let (low, high) =
            (Outputs { query, key, value }, Outputs { query: query_rest, key: key_rest, value: value_rest });
        let (mut first, mut second) = ([entries.clone(), kv_heads.clone()], [entries, kv_heads]);
        first[axis].end = first[axis].start + cut;
        second[axis].start += cut;
        let (first, second) =
            parallel::join(|| self.split(low, first, half), || self.split(high, second, tasks - half));
        first.and(second)
    }

    /// Queries of a block, and the distance of rows of a tile.
    fn stride(&self) -> usize {
        PANELS * self.plan.width()
    }

    /// True where products read Q, K and dY in place, and then any part of them.
    fn in_place(&self) -> bool {
        let whole = |view: TensorView<'_, T, 4>| {
            view.strides()[3] == 1 && view.shape()[3].is_multiple_of(self.plan.tile.lanes)
        };
        whole(self.q) && whole(self.k) && whole(self.dy)
    }

    /// True where positions hide so much of a tile that its panels are better taken one by one, each with the keys that
    /// it sees.
    fn divides(&self, entry: usize, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        let (plan, width) = (self.plan, self.plan.width());
        let (first, last) = (plan.range(entry, queries.start), plan.range(entry, queries.end - 1));
        keys.end > first.end.saturating_add(width) || last.start > keys.start.saturating_add(width)
    }

    fn task(&self, mut outputs: Outputs<'_, T>, [entries, kv_heads]: [Range<usize>; 2]) -> Result<()> {
        let plan = self.plan;
        let mut memory = Memory::new(self, plan.queries, Some(self.in_place()))?;
        for (number, entry) in entries.enumerate() {
            for (kv_number, kv) in kv_heads.clone().enumerate() {
                let mut dk = head(&mut outputs.key, number, kv_number)?;
                let mut dv = head(&mut outputs.value, number, kv_number)?;
                let [all_begin, all_meet] = self.covers(entry);
                if !all_meet {
                    [&mut dk, &mut dv].into_iter().flatten().for_each(|gradient| gradient.fill(T::ZERO));
                }
                for member in 0..plan.group {
                    let mut dq = head(&mut outputs.query, number, kv_number * plan.group + member)?;
                    if !all_begin {
                        [&mut dq].into_iter().flatten().for_each(|gradient| gradient.fill(T::ZERO));
                    }
                    let all = Panel { entry, head: kv * plan.group + member, queries: 0..plan.queries };
                    let fresh = [all_begin, all_meet && member == 0];
                    self.head(all, &mut memory, fresh, &mut dq, [&mut dk, &mut dv])?;
                }
            }
        }
        Ok(())
    }

    /// True where each query sees the first of the keys: then dQ is written with the first block of keys, not added to.
    /// True where each query sees each key: then dK and dV are, with the first block of queries.
    fn covers(&self, entry: usize) -> [bool; 2] {
        let plan = self.plan;
        if plan.keys == 0 || plan.queries == 0 {
            return [false; 2];
        }
        let queries = 0..plan.queries;
        [plan.all_seen(entry, &queries, &(0..1)), plan.all_seen(entry, &queries, &(0..plan.keys))]
    }

    /// Adds to the gradients what a query head gives them; those of Q, and those of K and V, are written first where they
    /// are `fresh`.
    fn head(
        &self,
        all: Panel,
        memory: &mut Memory<T>,
        fresh: [bool; 2],
        dq: &mut Option<TensorViewMut<'_, T, 2>>,
        [dk, dv]: [&mut Option<TensorViewMut<'_, T, 2>>; 2],
    ) -> Result<()> {
        let (plan, entry, in_place) = (self.plan, all.entry, self.in_place());
        let (width, scale) = (plan.width(), plan.scale());
        let (prepared, mut tile, rows) = memory.split();
        let head = self.prepare(all, prepared)?;
        let all_keys = plan.ranges(entry, &head.all.queries);
        let panels = [plan.dim, plan.value_dim].map(|dim| dim.next_multiple_of(width));
        let (packed_k, packed) = rows.split_at_mut(if in_place { 0 } else { panels[0] * plan.block() });
        let (rows_q, rows_dy) = packed.split_at_mut(if in_place { 0 } else { panels[0] * plan.queries });
        if !in_place {
            for queries in blocks(0..plan.queries, self.stride()) {
                let part = |panels: usize| queries.start * panels..queries.end * panels;
                pack(
                    plan.isa,
                    head.q.transpose(),
                    0..plan.dim,
                    queries.clone(),
                    width,
                    &mut rows_q[part(panels[0])],
                    false,
                );
                let to = &mut rows_dy[part(panels[1])];
                pack(plan.isa, head.dy.transpose(), 0..plan.value_dim, queries.clone(), width, to, false);
            }
        }
        for keys in plan.blocks(all_keys) {
            let first_keys = keys.start == 0;
            if !in_place {
                let to = &mut packed_k[..panels[0] * keys.len()];
                pack(plan.isa, head.k.transpose(), 0..plan.dim, keys.clone(), width, to, false);
            }
            let parts = |block: Range<usize>| {
                let step = if in_place && self.divides(entry, &block, &keys) { width } else { self.stride() };
                blocks(block, step)
            };
            for block in blocks(0..plan.queries, self.stride()).flat_map(parts) {
                let seen = plan.ranges(entry, &block);
                if seen.start >= keys.end || seen.end <= keys.start {
                    continue;
                }
                let (mut keys, mut queries) = (keys.clone(), block.clone());
                if in_place {
                    keys = keys.start.max(seen.start)..keys.end.min(seen.end);
                    // Panels at both ends may see nothing of the block.
                    let sees = |panel: &Range<usize>| {
                        let seen = plan.ranges(entry, panel);
                        seen.start < keys.end && keys.start < seen.end
                    };
                    let mut used = blocks(block, width).filter(sees);
                    let Some(first) = used.next() else { continue };
                    queries = first.start..used.last().map_or(first.end, |last| last.end);
                }
                self.tile(&head, &queries, &keys, &mut tile)?;
                let (n, m, stride) = (keys.len(), queries.len(), self.stride());
                let [old_q, old_kv] = [fresh[0] && first_keys, fresh[1] && queries.start == 0]
                    .map(|first| if first { T::ZERO } else { T::ONE });
                let weights = TensorView::as_strided(&*tile.weights, [n, m], [stride as isize, 1])?;
                let gradients = TensorView::as_strided(&*tile.gradients, [n, m], [stride as isize, 1])?;
                if let Some(dv) = dv {
                    let b = operand(head.dy, &queries, in_place, rows_dy, panels[1], width);
                    product(
                        plan,
                        (Panels::Direct(weights), m),
                        b,
                        [T::ONE, old_kv],
                        dv.tile_mut([keys.start, 0], [n, plan.value_dim]),
                    );
                }
                if let Some(dk) = dk {
                    let b = operand(head.q, &queries, in_place, rows_q, panels[0], width);
                    product(
                        plan,
                        (Panels::Direct(gradients), m),
                        b,
                        [scale, old_kv],
                        dk.tile_mut([keys.start, 0], [n, plan.dim]),
                    );
                }
                if let Some(dq) = dq {
                    let b = if in_place {
                        Panels::Direct(head.k.tile([keys.start, 0], [n, plan.dim]).transpose())
                    } else {
                        Panels::Packed { data: &packed_k[..panels[0] * n], width, depth: n }
                    };
                    let to = dq.tile_mut([queries.start, 0], [m, plan.dim]);
                    product(plan, (Panels::Direct(gradients.transpose()), n), b, [scale, old_q], to);
                }
            }
        }
        Ok(())
    }

    /// Panels, normalisers and means of some queries of a head.
    fn prepare<'h>(&self, all: Panel, memory: Prepared<'h, T>) -> Result<Head<'h, T>>
    where
        'c: 'h,
    {
        let plan = self.plan;
        let Panel { entry, head, ref queries } = all;
        let kv = head / plan.group;
        let q: TensorView<'c, T, 2> = self.q.select::<3>(0, entry)?.select(0, head)?;
        let k: TensorView<'c, T, 2> = self.k.select::<3>(0, entry)?.select(0, kv)?;
        let v: TensorView<'c, T, 2> = self.v.select::<3>(0, entry)?.select(0, kv)?;
        let y: TensorView<'c, T, 2> = self.y.select::<3>(0, entry)?.select(0, head)?;
        let dy: TensorView<'c, T, 2> = self.dy.select::<3>(0, entry)?.select(0, head)?;
        let normalizer: TensorView<'c, T, 1> = self.normalizer.select::<2>(0, entry)?.select(0, head)?;
        let Prepared { packed_q, packed_dy, normalizers, means } = memory;
        let width = plan.width();
        pack(plan.isa, q, queries.clone(), 0..plan.dim, width, packed_q, false);
        pack(plan.isa, dy, queries.clone(), 0..plan.value_dim, width, packed_dy, false);
        normalizers.fill(T::INFINITY);
        means.fill(T::ZERO);
        for (at, query) in queries.clone().enumerate() {
            let value = normalizer.get([query]).copied().unwrap_or(T::NAN);
            normalizers[at] = match value {
                value if plan.options.linear => value,
                value if value == T::NEG_INFINITY => T::INFINITY,
                value => value * log2_e(),
            };
            means[at] = match (y.row(query), dy.row(query)) {
                (Some(y), Some(dy)) => T::dot(plan.isa, Dot(y, dy)),
                _ => (0..plan.value_dim).fold(T::ZERO, |sum, d| {
                    let of = |view: TensorView<'_, T, 2>| view.get([query, d]).copied().unwrap_or(T::NAN);
                    sum + of(y) * of(dy)
                }),
            };
        }
        Ok(Head { all, q, k, v, dy, packed_q, packed_dy, normalizers, means })
    }

    /// Weights and the gradients of scores, for at most a block of queries, whole panels from the head's first on.
    fn tile(
        &self,
        head: &Head<'_, T>,
        queries: &Range<usize>,
        keys: &Range<usize>,
        tile: &mut Tile<'_, T>,
    ) -> Result<()> {
        let (plan, n, stride) = (self.plan, keys.len(), self.stride());
        let (width, first) = (plan.width(), queries.start - head.all.queries.start);
        let columns = queries.len().next_multiple_of(width);
        for (matrix, packed, factor, to) in [
            (head.k, head.packed_q, plan.factor(), &mut *tile.weights),
            (head.v, head.packed_dy, T::ONE, &mut *tile.gradients),
        ] {
            let depth = matrix.shape()[1];
            let b = Panels::Packed { data: &packed[first * depth..], width, depth };
            let mut c = TensorViewMut::matrix(to, [n, stride]);
            let c = c.tile_mut([0, 0], [n, columns]);
            product(
                plan,
                (Panels::Direct(matrix.tile([keys.start, 0], [n, depth])), depth),
                b,
                [factor, T::ZERO],
                c,
            );
        }
        let capped = !tile.slopes.is_empty();
        for rows in blocks(queries.clone(), width) {
            let (column, lane) = (rows.start - queries.start, rows.start - head.all.queries.start);
            let part = column..(n - 1) * stride + column + width;
            let panel = Panel { queries: rows, ..head.all.clone() };
            let scores = &mut tile.weights[part.clone()];
            let gradients = &mut tile.gradients[part];
            let slopes = &mut tile.slopes[..if capped { n * width } else { 0 }];
            plan.adjust(&panel, keys, (scores, stride), capped.then_some(&mut *slopes), tile.addend)?;
            plan.drop_out(&panel, keys, (gradients, stride));
            let differentiate = Differentiate {
                scores,
                gradients,
                width,
                stride,
                linear: plan.options.linear,
                normalizers: &head.normalizers[lane..],
                means: &head.means[lane..],
                slopes: capped.then_some(slopes),
            };
            T::differentiate(plan.isa, differentiate);
            plan.drop_out(
                &panel,
                keys,
                (&mut tile.weights[column..(n - 1) * stride + column + width], stride),
            );
        }
        Ok(())
    }

    /// The gradient of the bias: dS, summed over the axes along which it was broadcast.
    fn bias(&self, to: TensorViewMut<'_, T, 4>, at: [usize; 3], tasks: usize) -> Result<()> {
        let shape = to.shape();
        let units = [shape[0], shape[1], shape[2].div_ceil(self.stride())];
        if let Some(axis) = (0..3).find(|&axis| units[axis] > 1).filter(|_| tasks > 1) {
            let half = tasks / 2;
            let cut = (units[axis] * half / tasks).clamp(1, units[axis] - 1);
            let cut = if axis == 2 { cut * self.stride() } else { cut };
            let (low, high) = to.split_at(axis, cut)?;
            let mut next = at;
            next[axis] += cut;
            let (first, second) =
                parallel::join(|| self.bias(low, at, half), || self.bias(high, next, tasks - half));
            return first.and(second);
        }
        self.bias_task(to, at)
    }

    fn bias_task(&self, mut to: TensorViewMut<'_, T, 4>, at: [usize; 3]) -> Result<()> {
        let plan = self.plan;
        to.fill(T::ZERO);
        let mut memory = Memory::new(self, self.stride().min(plan.queries), None)?;
        let full = [plan.batch, plan.heads, plan.queries];
        let bias = self.plan.options.bias.map_or([0; 4], |bias| bias.shape());
        // An axis of size 1 collects from all.
        let all = |axis: usize| {
            if bias[axis] == full[axis] { at[axis]..at[axis] + to.shape()[axis] } else { 0..full[axis] }
        };
        let (entries, heads, queries) = (all(0), all(1), all(2));
        for entry in entries {
            for head in heads.clone() {
                for rows in blocks(queries.clone(), self.stride()) {
                    let (prepared, mut tile, _) = memory.split();
                    let panel = Panel { entry, head, queries: rows.clone() };
                    let prepared = self.prepare(panel, prepared)?;
                    for keys in plan.blocks(plan.ranges(entry, &rows)) {
                        self.tile(&prepared, &rows, &keys, &mut tile)?;
                        for (key, gradients) in keys.clone().zip(tile.gradients.chunks(self.stride())) {
                            for (query, &gradient) in rows.clone().zip(gradients) {
                                let index = [entry, head, query, key];
                                let index = std::array::from_fn(|axis| match axis {
                                    _ if bias[axis] == 1 => 0,
                                    3 => index[axis],
                                    _ => index[axis] - at[axis],
                                });
                                if let Some(sum) = to.get_mut(index) {
                                    *sum += gradient;
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Some rows as the right operand of a product: in place, or from blocks packed with all of them.
fn operand<'p, T: Element>(
    matrix: TensorView<'p, T, 2>,
    rows: &Range<usize>,
    in_place: bool,
    packed: &'p [T],
    padded: usize,
    width: usize,
) -> Panels<'p, T> {
    if in_place {
        let columns = matrix.shape()[1];
        return Panels::Direct(matrix.tile([rows.start, 0], [rows.len(), columns]).transpose());
    }
    Panels::Packed { data: &packed[rows.start * padded..rows.end * padded], width, depth: rows.len() }
}

/// A task's scratch.
struct Memory<T: Element> {
    all: crate::workspace::Scratch<T>,
    sizes: [usize; 9],
}

/// The parts of [`Memory`] that [`Backward::prepare`] fills.
struct Prepared<'m, T> {
    packed_q: &'m mut [T],
    packed_dy: &'m mut [T],
    normalizers: &'m mut [T],
    means: &'m mut [T],
}

impl<T: Element> Memory<T> {
    /// For this many queries at a time; for products, with room for rows of operands unless they are `in_place`, or for
    /// the gradient of the bias.
    fn new(call: &Backward<'_, '_, T>, queries: usize, in_place: Option<bool>) -> Result<Self> {
        let plan = call.plan;
        let (width, keys) = (plan.width(), plan.block().min(plan.keys));
        let padded = queries.next_multiple_of(width);
        let tile = keys * call.stride();
        let product = |a: usize, b: usize| a.checked_mul(b);
        let packed_rows = || {
            let [dim, value_dim] = [plan.dim, plan.value_dim].map(|dim| dim.checked_next_multiple_of(width));
            let lines = plan.queries.checked_add(plan.block())?;
            product(dim?, lines)?.checked_add(product(value_dim?, plan.queries)?)
        };
        let sizes = || {
            let slopes = if plan.options.soft_cap.is_some() && in_place.is_some() { keys * width } else { 0 };
            Some([
                product(padded, plan.dim)?,
                product(padded, plan.value_dim)?,
                padded,
                padded,
                tile,
                tile,
                plan.addend_len(keys),
                slopes,
                if in_place == Some(false) { packed_rows()? } else { 0 },
            ])
        };
        let sizes: Option<[usize; 9]> = sizes();
        let total = sizes.and_then(|sizes| sizes.iter().try_fold(0usize, |sum, &size| sum.checked_add(size)));
        let (Some(sizes), Some(total)) = (sizes, total) else {
            return Err(Error::Alloc { op: plan.op, bytes: usize::MAX });
        };
        Ok(Self { all: scratch(plan.op, total)?, sizes })
    }

    fn split(&mut self) -> (Prepared<'_, T>, Tile<'_, T>, &mut [T]) {
        let mut rest = &mut self.all[..];
        let mut parts: [&mut [T]; 9] = Default::default();
        for (part, size) in parts.iter_mut().zip(self.sizes) {
            (*part, rest) = rest.split_at_mut(size);
        }
        let [packed_q, packed_dy, normalizers, means, weights, gradients, addend, slopes, rows] = parts;
        (
            Prepared { packed_q, packed_dy, normalizers, means },
            Tile { weights, gradients, addend, slopes },
            rows,
        )
    }
}
