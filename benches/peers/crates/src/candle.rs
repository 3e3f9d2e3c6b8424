//! candle and candle-nn.

mod digits;

use candle_core::{D, Device, Tensor, Var};
use candle_nn::attention::{AttnMask, flash_attn};
use candle_nn::rnn::{GRU, LSTM, RNN};
use candle_nn::{VarBuilder, ops};

use crate::{Call, Problem, Read, Result};

pub fn prepare(problem: &Problem) -> Result<Call> {
    match (problem.work.as_str(), problem.kind.as_str()) {
        ("digits", "training") => digits::step(problem),
        ("convolution", "forward") => convolution(problem),
        ("attention", "flash") => flash(problem),
        ("attention", _) => attention(problem),
        ("lstm", _) => {
            recurrent(problem, 4, |i, h, of| LSTM::new(i, h, Default::default(), of), |state| state.h())
        }
        ("gru", _) => {
            recurrent(problem, 3, |i, h, of| GRU::new(i, h, Default::default(), of), |state| state.h())
        }
        _ => problem.refuse(),
    }
}

/// A variable where gradients for it are wanted.
fn take<const N: usize>(problem: &Problem, shape: [usize; N]) -> Result<Tensor> {
    let tensor = Tensor::from_vec(problem.take(&shape)?, &shape, &Device::Cpu)?;
    Ok(if problem.kind == "training" { Var::from_tensor(&tensor)?.into_inner() } else { tensor })
}

fn read(tensors: impl IntoIterator<Item = Tensor>) -> Result<Read> {
    let tensors: Vec<Tensor> = tensors.into_iter().collect();
    Ok(Box::new(move || {
        let numbers = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        Ok(tensors.iter().map(numbers).collect::<candle_core::Result<Vec<_>>>()?.concat())
    }))
}

/// Forward is done: back from `dy`, which candle only takes as a factor. Reads `y` and the gradients for `of`.
fn back<const N: usize>(y: Tensor, dy: &Tensor, of: [&Tensor; N]) -> Result<Read> {
    let gradients = (&y * dy)?.sum_all()?.backward()?;
    let mut found = vec![y];
    for variable in of {
        found.push(gradients.get(variable).ok_or("no gradient")?.clone());
    }
    read(found)
}

fn convolution(problem: &Problem) -> Result<Call> {
    let [batch, c_in, c_out, groups, size, kernel, stride] = problem.sizes()?;
    let x = take(problem, [batch, c_in, size, size])?;
    let w = take(problem, [c_out, c_in / groups, kernel, kernel])?;
    Ok(Box::new(move || read([x.conv2d(&w, kernel / 2, stride, 1, groups)?])))
}

fn attention(problem: &Problem) -> Result<Call> {
    let [batch, heads, kv_heads, queries, keys, dim, causal] = problem.sizes()?;
    let q = take(problem, [batch, heads, queries, dim])?;
    let (k, v) = (take(problem, [batch, kv_heads, keys, dim])?, take(problem, [batch, kv_heads, keys, dim])?);
    let hidden = |i| move |j| if j + queries > i + keys { f32::NEG_INFINITY } else { 0.0 };
    let mask: Vec<f32> = (0..queries).flat_map(|i| (0..keys).map(hidden(i))).collect();
    let mask = Tensor::from_vec(mask, (queries, keys), &Device::Cpu)?;
    let training = problem.kind == "training";
    let forward = move |q: &Tensor, k: &Tensor, v: &Tensor| {
        let mut scores = (q * (dim as f64).sqrt().recip())?.matmul(&k.t()?)?;
        if causal == 1 {
            scores = scores.broadcast_add(&mask)?;
        }
        // The one that is made for it has no gradient.
        let weights =
            if training { ops::softmax(&scores, D::Minus1) } else { ops::softmax_last_dim(&scores) };
        weights?.matmul(v)
    };
    if !training {
        return Ok(Box::new(move || read([forward(&q, &k, &v)?])));
    }
    let dy = take(problem, [batch, heads, queries, dim])?.detach();
    Ok(Box::new(move || back(forward(&q, &k, &v)?, &dy, [&q, &k, &v])))
}

/// It wants heads side by side at each position, and gives them one after the other.
fn flash(problem: &Problem) -> Result<Call> {
    let [batch, heads, kv_heads, queries, keys, dim, causal] = problem.sizes()?;
    let beside = |heads, length| -> Result<Tensor> {
        Ok(take(problem, [batch, heads, length, dim])?.transpose(1, 2)?.contiguous()?)
    };
    let (q, k, v) = (beside(heads, queries)?, beside(kv_heads, keys)?, beside(kv_heads, keys)?);
    let scale = (dim as f32).sqrt().recip();
    Ok(Box::new(move || {
        let mask = if causal == 1 { AttnMask::causal_with_offset(keys - queries) } else { AttnMask::None };
        read([flash_attn::<f32>(&q, &k, &v, scale, mask, None, None)?])
    }))
}

/// Sequences have the batch first in candle: as views, so that each step is one piece of memory as it is with others.
fn recurrent<R: RNN + 'static>(
    problem: &Problem,
    gates: usize,
    new: impl Fn(usize, usize, VarBuilder) -> candle_core::Result<R>,
    hidden: fn(&R::State) -> &Tensor,
) -> Result<Call> {
    let [time, batch, inputs, size] = problem.sizes()?;
    let rows = gates * size;
    let (u, w) = (take(problem, [rows, inputs])?, take(problem, [rows, size])?);
    let (b, rb) = (take(problem, [rows])?, take(problem, [rows])?);
    let names = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"];
    let weights = names.map(String::from).into_iter().zip([&u, &w, &b, &rb].map(Tensor::clone)).collect();
    let cell = new(inputs, size, VarBuilder::from_tensors(weights, u.dtype(), u.device()))?;
    let (x, dy) = (take(problem, [time, batch, inputs])?, take(problem, [time, batch, size])?.detach());
    let forward = move |x: &Tensor, cell: &R| {
        let y = cell.states_to_tensor(&cell.seq(&x.transpose(0, 1)?)?)?;
        y.reshape((batch, time, size))?.transpose(0, 1)
    };
    Ok(match problem.kind.as_str() {
        "forward" => Box::new(move || read([forward(&x, &cell)?])),
        "training" => Box::new(move || back(forward(&x, &cell)?, &dy, [&x, &u, &w])),
        "step" => {
            let (x, mut state) = (x.get(0)?, cell.zero_state(batch)?);
            Box::new(move || {
                state = cell.step(&x, &state)?;
                read([hidden(&state).clone()])
            })
        }
        _ => return problem.refuse(),
    })
}
