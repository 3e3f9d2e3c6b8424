//! Forward over blocks of keys.
//!
//! ```text
//! chunks of queries of one head                 each a task's, or some of them                 y
//!   for each block of keys                      K and V from L2, read where they lie
//!     for each panel of queries                 as many as a row of a tile has lanes
//!       Sᵀ = K Qᵀ                               keys × panel, in L1
//!       S → weights; sums and Yᵀ rescaled       maximum and sum run down the lanes
//!       Yᵀ += Vᵀ weightsᵀ                       the weights are the panel that the product reads
//!   Y = Yᵀ / sums
//! ```
//!
//! With queries in the lanes neither keys nor values need be packed: of them, products broadcast single elements. (Online
//! softmax: M. Milakov and N. Gimelshein, "Online normalizer calculation for softmax", 2018; its use in tiles: T. Dao et
//! al., "FlashAttention", NeurIPS 2022.)

use std::ops::Range;

use super::kernel::{Finish, Weigh};
use super::plan::{GRAIN, Plan};
use super::scores::Panel;
use crate::element::Element;
use crate::error::{Error, Result};
use crate::gemm::{Block, Order, Panels, Store, blocks, pack, packed_len, tile_rows};
use crate::parallel;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::scratch;

/// Queries of a head for which its keys are packed.
const PACK_FROM: usize = 256;

/// One call.
pub(super) struct Forward<'c, 'e, T> {
    pub plan: &'c Plan<'e, T>,
    pub q: TensorView<'c, T, 4>,
    pub k: TensorView<'c, T, 4>,
    pub v: TensorView<'c, T, 4>,
}

/// What a call writes.
pub(super) struct Outputs<'o, T> {
    pub y: TensorViewMut<'o, T, 4>,
    pub normalizer: Option<TensorViewMut<'o, T, 3>>,
}

impl<'o, T> Outputs<'o, T> {
    fn split_at(self, axis: usize, at: usize) -> Result<(Self, Self)> {
        let (y, rest) = self.y.split_at(axis, at)?;
        let (normalizer, others) = match self.normalizer {
            Some(normalizer) => {
                let (one, other) = normalizer.split_at(axis, at)?;
                (Some(one), Some(other))
            }
            None => (None, None),
        };
        Ok((Self { y, normalizer }, Self { y: rest, normalizer: others }))
    }
}

impl<T: Element> Forward<'_, '_, T> {
    pub fn run(&self, outputs: Outputs<'_, T>) -> Result<usize> {
        let tasks = parallel::tasks(self.plan.work(), GRAIN);
        self.split(outputs, [0; 3], tasks)?;
        Ok(tasks)
    }

    /// Computes outputs whose first row is that of query `at`.
    fn split(&self, outputs: Outputs<'_, T>, at: [usize; 3], tasks: usize) -> Result<()> {
        let [entries, heads, queries, _] = outputs.y.shape();
        let units = [entries, heads, queries.div_ceil(self.plan.chunk())];
        let Some(axis) = (0..3).find(|&axis| units[axis] > 1).filter(|_| tasks > 1) else {
            return self.task(outputs, at);
        };
        let half = tasks / 2;
        let unit = if axis == 2 { self.plan.chunk() } else { 1 };
        let cut = (units[axis] * half / tasks).clamp(1, units[axis] - 1) * unit;
        let (low, high) = outputs.split_at(axis, cut)?;
        let mut next = at;
        next[axis] += cut;
        let (first, second) =
            parallel::join(|| self.split(low, at, half), || self.split(high, next, tasks - half));
        first.and(second)
    }

    fn task(&self, mut outputs: Outputs<'_, T>, at: [usize; 3]) -> Result<()> {
        let plan = self.plan;
        let [entries, heads, queries, _] = outputs.y.shape();
        let chunk = plan.chunk().min(queries.next_multiple_of(plan.width()));
        let sizes = Sizes::new(plan, chunk);
        // Keys that many panels of queries read are packed once; an address for each of them costs more than that.
        let packs = queries >= PACK_FROM;
        let packed_len = if packs { packed_len(plan.keys, plan.tile.rows, plan.dim) } else { Some(0) };
        let packed_len = packed_len.ok_or(Error::Alloc { op: plan.op, bytes: usize::MAX })?;
        let mut packed = scratch::<T>(plan.op, packed_len)?;
        let mut packed_for = None;
        let mut memory =
            scratch::<T>(plan.op, sizes.total.ok_or(Error::Alloc { op: plan.op, bytes: usize::MAX })?)?;
        for entry in 0..entries {
            for head in 0..heads {
                let source = [at[0] + entry, (at[1] + head) / plan.group];
                if packs && packed_for.replace(source) != Some(source) {
                    let k: TensorView<'_, T, 2> = self.k.select::<3>(0, source[0])?.select(0, source[1])?;
                    pack(
                        plan.isa,
                        k,
                        0..plan.length(source[0]),
                        0..plan.dim,
                        plan.tile.rows,
                        &mut packed,
                        false,
                    );
                }
                let packed = packs.then_some(&packed[..]);
                let mut y = outputs.y.view_mut().select::<3>(0, entry)?.select::<2>(0, head)?;
                let mut normalizer = match &mut outputs.normalizer {
                    Some(view) => Some(view.view_mut().select::<2>(0, entry)?.select::<1>(0, head)?),
                    None => None,
                };
                for rows in blocks(0..queries, chunk) {
                    let panel = Panel {
                        entry: at[0] + entry,
                        head: at[1] + head,
                        queries: at[2] + rows.start..at[2] + rows.end,
                    };
                    let y = y.tile_mut([rows.start, 0], [rows.len(), plan.value_dim]);
                    let normalizer = match &mut normalizer {
                        Some(view) => Some(view.view_mut().slice(0, rows, 1)?),
                        None => None,
                    };
                    self.chunk(panel, y, normalizer, packed, sizes.split(&mut memory))?;
                }
            }
        }
        Ok(())
    }

    /// Some panels of queries of one head.
    fn chunk(
        &self,
        all: Panel,
        mut y: TensorViewMut<'_, T, 2>,
        mut normalizer: Option<TensorViewMut<'_, T, 1>>,
        packed_k: Option<&[T]>,
        memory: Memory<'_, T>,
    ) -> Result<()> {
        let plan = self.plan;
        let (width, dim, value_dim) = (plan.width(), plan.dim, plan.value_dim);
        let (entry, kv) = (all.entry, all.head / plan.group);
        let q: TensorView<'_, T, 2> = self.q.select::<3>(0, entry)?.select(0, all.head)?;
        let k: TensorView<'_, T, 2> = self.k.select::<3>(0, entry)?.select(0, kv)?;
        let v: TensorView<'_, T, 2> = self.v.select::<3>(0, entry)?.select(0, kv)?.transpose();
        let Memory { queries, scores, addend, outputs, states } = memory;
        pack(plan.isa, q, all.queries.clone(), 0..dim, width, queries, false);
        let panel = |queries: Range<usize>| Panel { queries, ..all.clone() };
        let mut started = [false; super::plan::PANELS];
        let all_keys = plan.ranges(entry, &all.queries);
        // Blocks begin with a panel of packed keys.
        let whole = |key: usize| key / plan.tile.rows * plan.tile.rows;
        for keys in plan.blocks(whole(all_keys.start)..all_keys.end) {
            for (number, rows) in blocks(all.queries.clone(), width).enumerate() {
                let seen = plan.ranges(entry, &rows);
                let keys = keys.start.max(whole(seen.start))..keys.end.min(seen.end);
                if keys.is_empty() || seen.is_empty() {
                    continue;
                }
                let scores = &mut scores[..keys.len() * width];
                // A narrow panel has the kernels for fewer vectors.
                let lanes = rows.len().next_multiple_of(plan.tile.lanes);
                let packed = Panels::Packed {
                    data: &queries[number * width * dim..][..width * dim],
                    width,
                    depth: dim,
                };
                let a = match packed_k {
                    Some(data) => {
                        Panels::Packed { data: &data[keys.start * dim..], width: plan.tile.rows, depth: dim }
                    }
                    None => Panels::Direct(k.tile([keys.start, 0], [keys.len(), dim])),
                };
                product(
                    plan,
                    (a, dim),
                    packed,
                    [plan.factor(), T::ZERO],
                    TensorViewMut::matrix(scores, [keys.len(), width]).tile_mut([0, 0], [keys.len(), lanes]),
                );
                let panel = panel(rows);
                plan.adjust(&panel, &keys, (scores, width), None, addend)?;
                let (max, sum) = states[number * 2 * width..][..2 * width].split_at_mut(width);
                let output = &mut outputs[number * width * value_dim..][..width * value_dim];
                let first = !std::mem::replace(&mut started[number], true);
                let linear = plan.options.linear;
                T::weigh(plan.isa, Weigh { scores, width, first, linear, max, sum, output });
                plan.drop_out(&panel, &keys, (scores, width));
                product(
                    plan,
                    (Panels::Direct(v.tile([0, keys.start], [value_dim, keys.len()])), keys.len()),
                    Panels::Packed { data: scores, width, depth: keys.len() },
                    [T::ONE, if first { T::ZERO } else { T::ONE }],
                    TensorViewMut::matrix(output, [value_dim, width]).tile_mut([0, 0], [value_dim, lanes]),
                );
            }
        }
        for (number, rows) in blocks(0..all.queries.len(), width).enumerate() {
            let (max, sum) = states[number * 2 * width..][..2 * width].split_at_mut(width);
            let output = &mut outputs[number * width * value_dim..][..width * value_dim];
            if !started[number] {
                max.fill(T::NEG_INFINITY);
                sum.fill(T::ZERO);
                output.fill(T::ZERO);
            }
            let linear = plan.options.linear;
            let finished = &mut scores[..width * value_dim];
            T::finish(plan.isa, Finish { output, width, linear, max, sum, rows: finished });
            for (row, finished) in rows.clone().zip(finished.chunks_exact(value_dim.max(1))) {
                match y.row_mut(row) {
                    Some(y) => y.copy_from_slice(finished),
                    None => y
                        .tile_mut([row, 0], [1, value_dim])
                        .copy_from(TensorView::from_slice(finished, [1, value_dim])?),
                }
            }
            if let Some(view) = &mut normalizer {
                let max = TensorView::from_slice(&max[..rows.len()], [rows.len()])?;
                view.view_mut().slice(0, rows, 1)?.assign(max)?;
            }
        }
        Ok(())
    }
}

/// C = factors\[0\] · A · B + factors\[1\] · C on this thread, over this depth.
pub(super) fn product<T: Element>(
    plan: &Plan<'_, T>,
    (a, depth): (Panels<'_, T>, usize),
    b: Panels<'_, T>,
    factors: [T; 2],
    c: TensorViewMut<'_, T, 2>,
) {
    // Panels have the height that they were packed with.
    let tile_rows = match a {
        Panels::Packed { width, .. } => width,
        Panels::Direct(_) | Panels::Windows { .. } => tile_rows(plan.tile, c.shape()),
    };
    let mut block = Block {
        a,
        b,
        tile_rows,
        depth,
        alpha: factors[0],
        beta: (factors[1] != T::ZERO).then_some(factors[1]),
        epilogue: None,
        origin: [0, 0],
        next: None,
        store: Store::Near,
        order: Order::Usual,
        ask: false,
        panel: &mut [],
        c,
    };
    T::block(plan.isa, &mut block);
}

/// Elements of each part of a task's scratch.
struct Sizes {
    queries: usize,
    scores: usize,
    addend: usize,
    outputs: usize,
    states: usize,
    total: Option<usize>,
}

/// A task's scratch.
struct Memory<'m, T> {
    /// Panels of queries, packed.
    queries: &'m mut [T],
    scores: &'m mut [T],
    addend: &'m mut [T],
    /// Yᵀ of each panel.
    outputs: &'m mut [T],
    /// Maxima and sums of each panel.
    states: &'m mut [T],
}

impl Sizes {
    fn new<T: Element>(plan: &Plan<'_, T>, chunk: usize) -> Self {
        let (width, keys) = (plan.width(), plan.block().min(plan.keys));
        let [queries, outputs] = [plan.dim, plan.value_dim].map(|dim| chunk.checked_mul(dim));
        let addend = plan.addend_len(keys);
        let scores = width.checked_mul(keys.max(plan.value_dim));
        let total = || queries?.checked_add(outputs?)?.checked_add(scores?)?.checked_add(addend + 2 * chunk);
        let [q, o, s] = [queries, outputs, scores].map(|size| size.unwrap_or(0));
        Self { queries: q, scores: s, addend, outputs: o, states: 2 * chunk, total: total() }
    }

    fn split<'m, T>(&self, memory: &'m mut [T]) -> Memory<'m, T> {
        let (scores, rest) = memory.split_at_mut(self.scores);
        let (queries, rest) = rest.split_at_mut(self.queries);
        let (outputs, rest) = rest.split_at_mut(self.outputs);
        let (addend, states) = rest.split_at_mut(self.addend);
        Memory { queries, scores, addend, outputs, states: &mut states[..self.states] }
    }
}
