//! A call that has been checked: its sizes, which keys a query sees, and how the work is cut. Pure functions.

use std::ops::Range;

use super::{Align, Attention};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::gemm::{Tile, balanced, blocks, tile};
use crate::machine::{self, Isa};
use crate::tensor::{TensorView, TensorViewMut};

/// Panels of queries that are taken through the keys together, so that a block of keys and values is read from L2 for
/// all of them.
pub(super) const PANELS: usize = 4;

/// Multiply-adds that a task is worth at least.
pub(super) const GRAIN: usize = 1 << 19;

/// A checked call.
#[derive(Clone, Copy)]
pub struct Plan<'e, T> {
    pub op: &'static str,
    pub options: Attention<'e, T>,
    pub isa: Isa,
    pub(super) tile: Tile,
    pub batch: usize,
    pub heads: usize,
    /// Query heads that share a head of keys and values.
    pub group: usize,
    pub queries: usize,
    pub keys: usize,
    pub dim: usize,
    pub value_dim: usize,
    /// What is added to scores, `[batch, heads, queries, keys]` by strides of 0.
    pub bias: Option<TensorView<'e, T, 4>>,
    /// Where keys may be attended to, alike.
    pub mask: Option<TensorView<'e, bool, 4>>,
}

impl<'e, T: Element> Plan<'e, T> {
    /// Checks all but outputs.
    pub fn new(
        op: &'static str,
        options: &Attention<'e, T>,
        q: TensorView<'_, T, 4>,
        k: TensorView<'_, T, 4>,
        v: TensorView<'_, T, 4>,
    ) -> Result<Self> {
        let ([batch, heads, queries, dim], [_, kv_heads, keys, _]) = (q.shape(), k.shape());
        let value_dim = v.shape()[3];
        expect(op, "k", &k.shape(), &[batch, kv_heads, keys, dim])?;
        expect(op, "v", &v.shape(), &[batch, kv_heads, keys, value_dim])?;
        let group = heads.checked_div(kv_heads).unwrap_or(0);
        if group * kv_heads != heads || (heads == 0) != (kv_heads == 0) {
            return Err(Error::argument(
                op,
                "heads of q",
                heads,
                "a multiple of the heads of k, which are as many or fewer",
            ));
        }
        options.check(op)?;
        let shape = [batch, heads, queries, keys];
        if let Some(slopes) = options.slopes {
            expect(op, "slopes", &slopes.shape(), &[heads])?;
        }
        if let Some(lengths) = options.lengths {
            expect(op, "key_lengths", &[lengths.len()], &[batch])?;
            if let Some(length) = lengths.iter().find(|length| **length > keys) {
                return Err(Error::argument(op, "key_lengths", length, "at most the number of keys"));
            }
        }
        let (bias, mask) =
            (broadcast(op, "bias", options.bias, shape)?, broadcast(op, "mask", options.mask, shape)?);
        let isa = machine::isa()?;
        Ok(Self {
            op,
            options: *options,
            isa,
            tile: tile::<T>(isa),
            batch,
            heads,
            group,
            queries,
            keys,
            dim,
            value_dim,
            bias,
            mask,
        })
    }

    /// True where scores are products alone, seen or hidden by positions.
    pub fn adds_nothing(&self) -> bool {
        self.bias.is_none() && self.mask.is_none() && self.options.slopes.is_none()
    }

    /// The normalisers where nothing is added and all products are 0, as those of keys without elements are: of these there
    /// may be more than anything can walk.
    pub fn count(&self, normalizer: &mut TensorViewMut<'_, T, 3>) {
        for entry in 0..self.batch {
            for head in 0..self.heads {
                for query in 0..self.queries {
                    let sum = T::from_usize(self.range(entry, query).len());
                    if let Some(to) = normalizer.get_mut([entry, head, query]) {
                        *to = if self.options.linear { T::ZERO } else { sum.ln() };
                    }
                }
            }
        }
    }

    /// The factor of q·k.
    pub fn scale(&self) -> T {
        self.options.scale.unwrap_or_else(|| T::ONE / T::from_usize(self.dim.max(1)).sqrt())
    }

    /// Queries of a panel: as many as a row of a tile has lanes.
    pub fn width(&self) -> usize {
        self.tile.columns
    }

    /// Queries that are taken through the keys together.
    pub fn chunk(&self) -> usize {
        PANELS * self.width()
    }

    /// Most keys of a block: their scores with a panel of queries stay in L1, and leave room there for the panel and for
    /// what streams past.
    pub fn block(&self) -> usize {
        let keys = machine::caches().l1d / 8 * 5 / (self.width() * size_of::<T>());
        (keys / self.tile.rows).max(1) * self.tile.rows
    }

    /// These keys in blocks of about one size: a short one at the end would cost more than it has work.
    pub fn blocks(&self, keys: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let block = balanced(keys.len(), self.block(), self.tile.rows);
        blocks(keys, block)
    }

    /// Multiply-adds of the two products of forward.
    pub fn work(&self) -> usize {
        let scores =
            self.batch.saturating_mul(self.heads).saturating_mul(self.queries).saturating_mul(self.keys);
        let work = scores.saturating_mul(self.dim.saturating_add(self.value_dim));
        if self.options.causal.is_some() { work / 2 } else { work }
    }

    /// Keys of an entry of the batch that are there.
    pub fn length(&self, entry: usize) -> usize {
        self.options.lengths.map_or(self.keys, |lengths| lengths[entry])
    }

    /// Where query 0 of an entry stands among its keys.
    pub fn position(&self, entry: usize) -> isize {
        match self.options.align_of_positions() {
            Align::Start => 0,
            Align::End => self.length(entry) as isize - self.queries as isize,
            Align::At(position) => isize::try_from(position).unwrap_or(isize::MAX),
        }
    }

    /// The keys that masks made of positions leave to a query. Neither end decreases from a query to the next.
    pub fn range(&self, entry: usize, query: usize) -> Range<usize> {
        let (mut low, mut high) = (0isize, self.length(entry) as isize);
        let position = self.position(entry).saturating_add(query as isize);
        if self.options.causal.is_some() {
            high = high.min(position.saturating_add(1));
        }
        if let Some(window) = self.options.window {
            let window = isize::try_from(window).unwrap_or(isize::MAX);
            high = high.min(position.saturating_add(window));
            low = position.saturating_sub(window).saturating_add(1);
        }
        let high = high.max(0);
        low.clamp(0, high) as usize..high as usize
    }

    /// The keys that some of these queries see.
    pub fn ranges(&self, entry: usize, queries: &Range<usize>) -> Range<usize> {
        let (first, last) = (self.range(entry, queries.start), self.range(entry, queries.end - 1));
        first.start..last.end.max(first.start)
    }

    /// True where each of these queries sees all of these keys, as far as positions decide.
    pub fn all_seen(&self, entry: usize, queries: &Range<usize>, keys: &Range<usize>) -> bool {
        let (first, last) = (self.range(entry, queries.start), self.range(entry, queries.end - 1));
        last.start <= keys.start && keys.end <= first.end
    }
}

/// A mask over all scores.
fn broadcast<'e, M>(
    op: &'static str,
    arg: &'static str,
    mask: Option<TensorView<'e, M, 4>>,
    shape: [usize; 4],
) -> Result<Option<TensorView<'e, M, 4>>> {
    let Some(mask) = mask else { return Ok(None) };
    mask.broadcast(shape).map(Some).map_err(|_| Error::shape(op, arg, &mask.shape(), &shape))
}
