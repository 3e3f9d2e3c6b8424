//! burn, with its backend `flex`.

mod digits;
mod recurrent;

use burn::nn::{Gru, Lstm};
use burn::tensor::module::{attention, conv2d};
use burn::tensor::ops::{AttentionModuleOptions, ConvOptions};
use burn::tensor::{Device, Gradients, Tensor, TensorData};

use crate::{Call, Problem, Read, Result};

pub fn prepare(problem: &Problem) -> Result<Call> {
    match (problem.work.as_str(), problem.kind.as_str()) {
        ("digits", "training") => digits::step(problem),
        ("convolution", "forward") => convolution(problem),
        ("attention", _) => attend(problem),
        ("lstm", _) => recurrent::prepare::<Lstm>(problem),
        ("gru", _) => recurrent::prepare::<Gru>(problem),
        _ => problem.refuse(),
    }
}

fn device(problem: &Problem) -> Device {
    if problem.kind == "training" { Device::flex().autodiff() } else { Device::flex() }
}

fn take<const N: usize>(problem: &Problem, shape: [usize; N]) -> Result<Tensor<N>> {
    let tensor = Tensor::from_data(TensorData::new(problem.take(&shape)?, shape), &device(problem));
    Ok(if problem.kind == "training" { tensor.require_grad() } else { tensor })
}

/// What reads the tensor.
fn read<const N: usize>(tensor: Tensor<N>) -> Read {
    Box::new(move || tensor.into_data().try_to_vec().map_err(|e| format!("{e:?}").into()))
}

fn all(parts: Vec<Read>) -> Read {
    Box::new(move || Ok(parts.into_iter().map(|read| read()).collect::<Result<Vec<_>>>()?.concat()))
}

/// From `dy`, which burn only takes as a factor.
fn back<const N: usize>(y: &Tensor<N>, dy: &Tensor<N>) -> Gradients {
    (y.clone() * dy.clone()).sum().backward()
}

fn gradient<const N: usize>(of: &Tensor<N>, gradients: &Gradients) -> Result<Tensor<N>> {
    of.grad(gradients).ok_or("no gradient".into())
}

fn convolution(problem: &Problem) -> Result<Call> {
    let [batch, c_in, c_out, groups, size, kernel, stride] = problem.sizes()?;
    let x = take(problem, [batch, c_in, size, size])?;
    let w = take(problem, [c_out, c_in / groups, kernel, kernel])?;
    Ok(Box::new(move || {
        let options = ConvOptions::new([stride; 2], [kernel / 2; 2], [1; 2], groups);
        Ok(read(conv2d(x.clone(), w.clone(), None, options)))
    }))
}

fn attend(problem: &Problem) -> Result<Call> {
    let [batch, heads, kv_heads, queries, keys, dim, causal] = problem.sizes()?;
    let q = take(problem, [batch, heads, queries, dim])?;
    let (k, v) = (take(problem, [batch, kv_heads, keys, dim])?, take(problem, [batch, kv_heads, keys, dim])?);
    let options = AttentionModuleOptions { is_causal: causal == 1, ..Default::default() };
    let of = [q, k, v];
    let forward = move |[q, k, v]: [Tensor<4>; 3]| attention(q, k, v, None, None, options);
    if problem.kind != "training" {
        return Ok(Box::new(move || Ok(read(forward(of.clone())))));
    }
    let dy = take(problem, [batch, heads, queries, dim])?.detach();
    Ok(Box::new(move || {
        let y = forward(of.clone());
        let gradients = back(&y, &dy);
        let mut parts = vec![read(y)];
        for x in &of {
            parts.push(read(gradient(x, &gradients)?));
        }
        Ok(all(parts))
    }))
}
