//! The heads of projections.

use super::MultiHeadAttention;
use crate::element::Element;
use crate::error::Result;
use crate::tensor::{Tensor, TensorView, TensorViewMut};

/// How projections fall into heads.
pub(super) struct Parts<'p, T> {
    pub layer: &'p MultiHeadAttention<T>,
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
}

impl<T: Element> Parts<'_, T> {
    /// The views `[batch, heads, length, head_dim]` of Q, K and V.
    pub(super) fn split<'v>(
        &self,
        projected: &'v Tensor<T, 2>,
        context: Option<&'v Tensor<T, 2>>,
    ) -> Result<[TensorView<'v, T, 4>; 3]> {
        let [q_columns, kv_columns] = self.layer.columns();
        let (q, rest) = projected.view().split_at(1, q_columns)?;
        let (k, v) = context.map_or(rest, Tensor::view).split_at(1, kv_columns)?;
        let heads = |part: TensorView<'v, T, 2>, length: usize, heads: usize| {
            part.reshape([self.batch, length, heads, self.layer.head_dim])?.permute([0, 2, 1, 3])
        };
        let kv_heads = self.layer.kv_heads;
        Ok([
            heads(q, self.queries, self.layer.heads)?,
            heads(k, self.keys, kv_heads)?,
            heads(v, self.keys, kv_heads)?,
        ])
    }

    /// As [`split`](Self::split).
    pub(super) fn split_mut<'v>(
        &self,
        projected: &'v mut Tensor<T, 2>,
        context: Option<&'v mut Tensor<T, 2>>,
    ) -> Result<[TensorViewMut<'v, T, 4>; 3]> {
        let [q_columns, kv_columns] = self.layer.columns();
        let (q, rest) = projected.view_mut().split_at(1, q_columns)?;
        let (k, v) = context.map_or(rest, Tensor::view_mut).split_at(1, kv_columns)?;
        let heads = |part: TensorViewMut<'v, T, 2>, length: usize, heads: usize| {
            part.reshape([self.batch, length, heads, self.layer.head_dim])?.permute([0, 2, 1, 3])
        };
        let kv_heads = self.layer.kv_heads;
        Ok([
            heads(q, self.queries, self.layer.heads)?,
            heads(k, self.keys, kv_heads)?,
            heads(v, self.keys, kv_heads)?,
        ])
    }
}
