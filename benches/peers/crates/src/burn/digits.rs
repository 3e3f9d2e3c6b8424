use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig, PaddingConfig2d};
use burn::optim::{AdamWConfig, GradientsParams};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Distribution, Int, Tensor};

use crate::digits::{CONVOLUTIONS, DENSE, SIDE};
use crate::{Call, Problem, Result};

#[derive(Module, Debug)]
struct Net {
    convolutions: Vec<Conv2d>,
    hidden: Linear,
    head: Linear,
}

impl Net {
    fn new(device: &Device) -> Self {
        let (mut convolutions, mut channels) = (Vec::new(), 1);
        for (filters, taps, stride) in CONVOLUTIONS {
            let half = taps / 2;
            let config = Conv2dConfig::new([channels, filters], [taps; 2]).with_stride([stride; 2]);
            convolutions
                .push(config.with_padding(PaddingConfig2d::Explicit(half, half, half, half)).init(device));
            channels = filters;
        }
        let [inputs, hidden, classes] = DENSE;
        let (hidden, head) = (LinearConfig::new(inputs, hidden), LinearConfig::new(hidden, classes));
        Self { convolutions, hidden: hidden.init(device), head: head.init(device) }
    }

    fn forward(&self, x: Tensor<4>) -> Tensor<2> {
        let y = self.convolutions.iter().fold(x, |y, layer| relu(layer.forward(y)));
        self.head.forward(relu(self.hidden.forward(y.flatten(1, 3))))
    }
}

pub fn step(problem: &Problem) -> Result<Call> {
    let [batch] = problem.sizes()?;
    let device = Device::flex().autodiff();
    let (mut net, mut optimizer) = (Some(Net::new(&device)), AdamWConfig::new().init());
    let x = Tensor::<4>::random([batch, 1, SIDE, SIDE], Distribution::Uniform(0.0, 1.0), &device);
    let labels: Vec<i64> = (0..batch).map(|i| (i * 7 % DENSE[2]) as i64).collect();
    let labels = Tensor::<1, Int>::from_data(labels.as_slice(), &device);
    let loss = CrossEntropyLossConfig::new().init(&device);
    Ok(Box::new(move || {
        let now = net.take().ok_or("a step failed before")?;
        let gradients = loss.forward(now.forward(x.clone()), labels.clone()).backward();
        let gradients = GradientsParams::from_grads(gradients, &now);
        net = Some(optimizer.step(1e-3, now, gradients));
        Ok(Box::new(|| Ok(Vec::new())))
    }))
}
