use candle_core::{DType, Device, Tensor};
use candle_nn::{
    AdamW, Conv2d, Conv2dConfig, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, conv2d, linear,
    loss,
};

use crate::digits::{CONVOLUTIONS, DENSE, SIDE};
use crate::{Call, Problem, Result};

struct Net {
    convolutions: Vec<Conv2d>,
    hidden: Linear,
    head: Linear,
}

impl Module for Net {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut y = x.clone();
        for layer in &self.convolutions {
            y = layer.forward(&y)?.relu()?;
        }
        self.head.forward(&self.hidden.forward(&y.flatten_from(1)?)?.relu()?)
    }
}

pub fn step(problem: &Problem) -> Result<Call> {
    let [batch] = problem.sizes()?;
    let variables = VarMap::new();
    let of = VarBuilder::from_varmap(&variables, DType::F32, &Device::Cpu);
    let (mut convolutions, mut channels) = (Vec::new(), 1);
    for (i, (filters, taps, stride)) in CONVOLUTIONS.into_iter().enumerate() {
        let config = Conv2dConfig { padding: taps / 2, stride, ..Default::default() };
        convolutions.push(conv2d(channels, filters, taps, config, of.pp(format!("convolution{i}")))?);
        channels = filters;
    }
    let [inputs, hidden, classes] = DENSE;
    let (hidden, head) = (linear(inputs, hidden, of.pp("hidden"))?, linear(hidden, classes, of.pp("head"))?);
    let net = Net { convolutions, hidden, head };
    let mut optimizer = AdamW::new(variables.all_vars(), ParamsAdamW { lr: 1e-3, ..Default::default() })?;
    let x = Tensor::rand(0f32, 1.0, (batch, 1, SIDE, SIDE), &Device::Cpu)?;
    let labels = (0..batch).map(|i| (i * 7 % classes) as u32).collect();
    let labels = Tensor::from_vec::<_, u32>(labels, batch, &Device::Cpu)?;
    Ok(Box::new(move || {
        let loss = loss::cross_entropy(&net.forward(&x)?, &labels)?;
        optimizer.backward_step(&loss)?;
        super::read([])
    }))
}
