//! Attention, and the encoding of positions that goes with it.

use tilewise::attention::{Align, Attention, Stage};
use tilewise::layer::Rotary;
use tilewise::{Element, Tensor};

use super::{Array, Call, Kind, Result};

pub const OPERATORS: &[&str] = &["Attention", "RotaryEmbedding"];

pub fn run<T: Element>(call: &Call) -> Result<Vec<Array>> {
    if call.node.operator == "Attention" { attention::<T>(call) } else { rotary::<T>(call) }
}

/// `[batch, heads, length, dim]`, from `[batch, length, heads · dim]` where it is that.
fn heads(x: &Array, heads: i64) -> Array {
    if x.rank() == 4 {
        return x.clone();
    }
    let [batch, length, all] = [x.shape[0], x.shape[1], x.shape[2]];
    let heads = heads as usize;
    Array { shape: vec![batch, length, heads, all / heads], ..x.clone() }.permute(&[0, 2, 1, 3])
}

/// `x` behind `past` along the axis of positions.
fn append(past: Option<&Array>, x: Array) -> Array {
    let Some(past) = past else { return x };
    let [outer, dim] = [x.shape[0] * x.shape[1], x.shape[3]];
    let rows = |x: &Array, entry: usize| {
        let len = x.shape[2] * dim;
        x.data[entry * len..(entry + 1) * len].to_vec()
    };
    let data = (0..outer).flat_map(|entry| [rows(past, entry), rows(&x, entry)]).flatten().collect();
    let shape = vec![x.shape[0], x.shape[1], past.shape[2] + x.shape[2], dim];
    Array { kind: x.kind, shape, data }
}

fn attention<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let q = heads(call.need(0)?, call.int("q_num_heads", 0));
    let [k, v] = [1, 2].map(|at| call.need(at).map(|x| heads(x, call.int("kv_num_heads", 0))));
    let past = call.input(4);
    let (k, v) = (append(past, k?), append(call.input(5), v?));
    let (keys, before) = (k.shape[2], past.map_or(0, |past| past.shape[2]));
    let mut options = Attention::<T>::new();
    if call.attribute("scale").is_some() {
        options = options.scale(T::from_f64(call.float("scale", 0.0)));
    }
    if call.float("softcap", 0.0) > 0.0 {
        options = options.soft_cap(T::from_f64(call.float("softcap", 0.0)));
    }
    if call.flag("is_causal") {
        options = options.causal(Align::At(before));
    }
    let mask = call.input(3).map(|mask| wide(mask, keys));
    let (bias, visible);
    match &mask {
        Some(mask) if mask.kind == Kind::Boolean => {
            let flags: Vec<bool> = mask.data.iter().map(|&x| x != 0.0).collect();
            visible = Tensor::from_slice(&flags, mask.shape.as_slice().try_into().expect("rank 4"))?;
            options = options.mask(visible.view());
        }
        Some(mask) => {
            bias = mask.tensor::<T, 4>()?;
            options = options.bias(bias.view());
        }
        None => {}
    }
    let lengths = call.input(6).map(Array::sizes);
    if let Some(lengths) = &lengths {
        options = options.key_lengths(lengths);
    }
    let (q4, k4, v4) = (q.tensor::<T, 4>()?, k.tensor::<T, 4>()?, v.tensor::<T, 4>()?);
    let y = options.forward(q4.view(), k4.view(), v4.view())?;
    let y = if call.need(0)?.rank() == 4 {
        y.into()
    } else {
        let [batch, heads, queries, dim] = y.shape();
        Array { shape: vec![batch, queries, heads * dim], ..Array::from(y.view().permute([0, 2, 1, 3])?) }
    };
    let mut outputs = vec![y, k, v];
    if call.wants(3) {
        let stage = match call.int("qk_matmul_output_mode", 0) {
            0 => Stage::Product,
            1 => Stage::Capped,
            2 => Stage::Masked,
            _ => Stage::Weights,
        };
        outputs.push(options.scores(q4.view(), k4.view(), stage)?.into());
    }
    Ok(outputs)
}

/// A mask of rank 4 for all keys: those that it does not reach are hidden.
fn wide(mask: &Array, keys: usize) -> Array {
    let (last, hidden) = (
        *mask.shape.last().expect("a rank"),
        if mask.kind == Kind::Boolean { 0.0 } else { f64::NEG_INFINITY },
    );
    let mut shape = vec![1; 4 - mask.rank()];
    shape.extend(&mask.shape);
    // A size of 1 broadcasts.
    if last == keys || last == 1 {
        return Array { shape, ..mask.clone() };
    }
    shape[3] = keys;
    let row = |row: &[f64]| {
        let mut row = row.to_vec();
        row.resize(keys, hidden);
        row
    };
    Array { shape, data: mask.data.chunks(last).flat_map(row).collect(), ..mask.clone() }
}

/// The tables are `[positions, dim / 2]` with the positions given, or `[batch, length, dim / 2]` without.
fn rotary<T: Element>(call: &Call) -> Result<Vec<Array>> {
    let (x, cos, sin) = (call.need(0)?, call.need(1)?, call.need(2)?);
    let half = *cos.shape.last().expect("a rank");
    let rows = cos.data.len() / half;
    let (cos, sin) = (cos.to::<T, 2>([rows, half])?, sin.to::<T, 2>([rows, half])?);
    let mut rotary = Rotary::from_tables(cos.view(), sin.view())?;
    if call.flag("interleaved") {
        rotary = rotary.interleaved();
    }
    if call.int("rotary_embedding_dim", 0) > 0 {
        rotary = rotary.partial();
    }
    let positions = call.input(3).map_or_else(|| (0..rows).collect(), Array::sizes);
    let mut y = heads(x, call.int("num_heads", 0)).tensor::<T, 4>()?;
    rotary.apply_at(y.view_mut(), &positions)?;
    let y = if x.rank() == 4 { y.into() } else { Array::from(y.view().permute([0, 2, 1, 3])?) };
    Ok(vec![Array { shape: x.shape.clone(), ..y }])
}
