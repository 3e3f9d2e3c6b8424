//! A step of training of the small convolutional network of the example `digits`: forward, cross-entropy, back, AdamW.

use tilewise::activation::Activation;
use tilewise::conv::Convolution;
use tilewise::layer::optimizer::{AdamW, Optimizer};
use tilewise::layer::{Activate, Conv2d, Init, Layer, Linear, Parameter, Parameters};
use tilewise::loss::CrossEntropy;
use tilewise::random::Rng;
use tilewise::{Result, Tensor};

const SIDE: usize = 28;
const CLASSES: usize = 10;
const HIDDEN: usize = 128;

pub struct Training {
    net: Net,
    optimizer: AdamW<f32>,
    images: Tensor<f32, 4>,
    labels: Vec<usize>,
}

struct Net {
    convolutions: Vec<Conv2d<f32>>,
    hidden: (Linear<f32>, Activate<f32>),
    head: Linear<f32>,
}

impl Parameters<f32> for Net {
    fn visit(&self, f: &mut dyn FnMut(&str, &Parameter<f32>)) {
        self.convolutions.iter().for_each(|layer| layer.visit(f));
        self.hidden.0.visit(f);
        self.head.visit(f);
    }

    fn visit_mut(&mut self, f: &mut dyn FnMut(&str, &mut Parameter<f32>)) {
        self.convolutions.iter_mut().for_each(|layer| layer.visit_mut(f));
        self.hidden.0.visit_mut(f);
        self.head.visit_mut(f);
    }
}

impl Training {
    pub fn new(batch: usize) -> Result<Self> {
        let (mut rng, init) = (Rng::seed(1), Init::kaiming_normal());
        let (mut convolutions, mut image) = (Vec::new(), [1, 1, SIDE, SIDE]);
        for (filters, taps, stride) in [(16, 5, 1), (32, 3, 2), (32, 3, 1), (64, 3, 2)] {
            let options = Convolution::new().padding([taps / 2; 2]).stride([stride; 2]);
            let options = options.activation(Activation::Relu);
            let layer = Conv2d::new(image[1], filters, [taps; 2], options, init, &mut rng)?;
            image = options.output_shape(image, [filters, image[1], taps, taps])?;
            convolutions.push(layer);
        }
        let inputs = image.iter().product();
        let hidden = (Linear::new(inputs, HIDDEN, init, &mut rng)?, Activate::new(Activation::Relu));
        let head = Linear::new(HIDDEN, CLASSES, Init::xavier_uniform(), &mut rng)?;
        Ok(Self {
            net: Net { convolutions, hidden, head },
            optimizer: AdamW::new(1e-3),
            images: Tensor::from_fn([batch, 1, SIDE, SIDE], |_| rng.uniform(0.0, 1.0))?,
            labels: (0..batch).map(|_| rng.below(CLASSES)).collect(),
        })
    }

    /// Gives the loss.
    pub fn step(&mut self) -> Result<f32> {
        self.step_in_laps(&mut |_| {})
    }

    /// [`step`](Self::step); `lap` hears what has just been done.
    pub fn step_in_laps(&mut self, lap: &mut dyn FnMut(&str)) -> Result<f32> {
        let Net { convolutions, hidden, head } = &mut self.net;
        let mut y = self.images.view().to_tensor()?;
        lap("copy of the images");
        for (i, layer) in convolutions.iter_mut().enumerate() {
            y = layer.forward_owned(y)?;
            lap(&format!("convolution and ReLU {i}"));
        }
        let shape = y.shape();
        let y = y.reshape([shape[0], shape[1..].iter().product()])?;
        let y = hidden.0.forward_owned(y)?;
        let y = hidden.1.forward_owned(y)?;
        let scores = head.forward_owned(y)?;
        let (loss, d) = CrossEntropy::new().forward_backward(scores.view(), &self.labels)?;
        lap("dense layers and loss");
        self.net.zero_gradients();
        lap("gradients to 0");
        let Net { convolutions, hidden, head } = &mut self.net;
        let d = head.backward(d.view())?;
        let d = hidden.1.backward(d.view())?;
        let mut d = hidden.0.backward_owned(d)?.reshape(shape)?;
        lap("dense layers, back");
        let (first, others) = convolutions.split_at_mut(1);
        for (i, layer) in others.iter_mut().enumerate().rev() {
            d = layer.backward_owned(d)?;
            lap(&format!("convolution and ReLU {}, back", i + 1));
        }
        first[0].backward_parameters_owned(d)?;
        lap("convolution and ReLU 0, back");
        self.optimizer.step(&mut self.net)?;
        lap("AdamW");
        Ok(loss)
    }
}
