//! The options of a call, tile by tile.

use std::ops::Range;

use super::dropout::Row;
use super::kernel::{Adjust, Drop, log2_e};
use super::plan::Plan;
use crate::element::Element;
use crate::error::Result;
use crate::gemm::pack;
use crate::tensor::TensorView;

/// Queries of the widest panel.
pub(super) const LANES: usize = 64;

/// The scores of a panel of queries of one head, at most [`LANES`].
#[derive(Clone)]
pub(super) struct Panel {
    pub entry: usize,
    pub head: usize,
    pub queries: Range<usize>,
}

impl<T: Element> Plan<'_, T> {
    /// Scores are kept in units of ln 2, so that weights are powers of 2; with `linear` as they are.
    pub fn unit(&self) -> T {
        if self.options.linear { T::ONE } else { log2_e() }
    }

    /// What products of queries and keys are multiplied by.
    pub fn factor(&self) -> T {
        match self.options.soft_cap {
            Some(cap) => self.scale() / cap,
            None => self.scale() * self.unit(),
        }
    }

    /// Elements of scratch for [`adjust`](Self::adjust), for this many keys.
    pub fn addend_len(&self, keys: usize) -> usize {
        if self.bias.is_some() { keys * self.width() } else { 0 }
    }

    /// Makes scores of products: a row of [`width`](Self::width) for each of `keys`, `stride` apart. The derivatives by the products,
    /// without their factor, go to `slopes` where there is a soft cap.
    pub(super) fn adjust(
        &self,
        panel: &Panel,
        keys: &Range<usize>,
        (scores, stride): (&mut [T], usize),
        slopes: Option<&mut [T]>,
        addend: &mut [T],
    ) -> Result<()> {
        self.add(panel, keys, (&mut *scores, stride), slopes, addend)?;
        // Not by an addend of −∞: the score may be NaN.
        if let Some(mask) = self.mask {
            let mask = mask.select::<3>(0, panel.entry)?.select(0, panel.head)?;
            exclude(mask, &panel.queries, keys, self.width(), (scores, stride));
        }
        Ok(())
    }

    /// [`adjust`](Self::adjust) but for the mask.
    fn add(
        &self,
        panel: &Panel,
        keys: &Range<usize>,
        (scores, stride): (&mut [T], usize),
        slopes: Option<&mut [T]>,
        addend: &mut [T],
    ) -> Result<()> {
        let (options, width) = (&self.options, self.width());
        let Panel { entry, head, ref queries } = *panel;
        let bounded = !self.all_seen(entry, queries, keys);
        let (mut keys, mut scores) = (keys.clone(), scores);
        if self.bias.is_none() && options.soft_cap.is_none() && options.slopes.is_none() {
            if !bounded {
                return Ok(());
            }
            // Keys that all see, before those that some do not.
            if self.range(entry, queries.end - 1).start <= keys.start {
                let hidden = self.range(entry, queries.start).end.max(keys.start);
                scores = &mut scores[(hidden - keys.start) * stride..];
                keys.start = hidden;
            }
        }
        let addend = &mut addend[..self.addend_len(keys.len())];
        if let Some(bias) = self.bias {
            let bias: TensorView<'_, T, 2> = bias.select::<3>(0, entry)?.select(0, head)?;
            pack(self.isa, bias, queries.clone(), keys.clone(), width, addend, false);
        }
        let local = |key: usize| T::from_usize(key.clamp(keys.start, keys.end) - keys.start);
        let (mut low, mut high, mut positions) = ([T::ZERO; LANES], [T::ZERO; LANES], [T::ZERO; LANES]);
        for (lane, query) in queries.clone().enumerate() {
            let range = self.range(entry, query);
            (low[lane], high[lane]) = (local(range.start), local(range.end));
            if options.slopes.is_some() {
                let position = self.position(entry).saturating_add(query as isize) - keys.start as isize;
                positions[lane] = T::from_f64(position as f64);
            }
        }
        let slope = options.slopes.map(|slopes| slopes.get([head]).copied().unwrap_or(T::NAN));
        let adjust = Adjust {
            scores,
            width,
            stride,
            cap: options.soft_cap.map(|cap| cap * self.unit()),
            slopes,
            alibi: slope.map(|slope| (slope * self.unit(), &positions[..])),
            addend: self.bias.is_some().then_some(&*addend),
            unit: self.unit(),
            bounds: bounded.then_some((&low[..], &high[..])),
        };
        T::adjust(self.isa, adjust);
        Ok(())
    }

    /// Dropout of weights, laid out as in [`adjust`](Self::adjust).
    pub(super) fn drop_out(&self, panel: &Panel, keys: &Range<usize>, (weights, stride): (&mut [T], usize)) {
        let Some(dropout) = self.options.dropout else { return };
        let rows: [Row; LANES] = std::array::from_fn(|lane| {
            let query = panel.queries.start + lane;
            dropout.row([panel.entry, panel.head, query])
        });
        let drop = Drop {
            weights,
            stride,
            first: keys.start,
            rows: &rows[..self.width()],
            threshold: dropout.threshold(),
            factor: dropout.factor(),
        };
        T::drop_out(self.isa, drop);
    }
}

/// −∞ where a mask is false.
fn exclude<T: Element>(
    mask: TensorView<'_, bool, 2>,
    queries: &Range<usize>,
    keys: &Range<usize>,
    width: usize,
    (scores, stride): (&mut [T], usize),
) {
    let hidden = |query, key| mask.get([query, key]) == Some(&false);
    let same = mask.strides()[0] == 0;
    for (key, row) in keys.clone().zip(scores.chunks_mut(stride)) {
        let row = &mut row[..width];
        if same {
            if hidden(queries.start, key) {
                row.fill(T::NEG_INFINITY);
            }
            continue;
        }
        for (query, score) in queries.clone().zip(row) {
            if hidden(query, key) {
                *score = T::NEG_INFINITY;
            }
        }
    }
}
