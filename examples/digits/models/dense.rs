//! A network of dense layers, trained by AdamW on the softmax cross-entropy.

use tilewise::TensorView;
use tilewise::activation::Activation;
use tilewise::layer::optimizer::{AdamW, Optimizer};
use tilewise::layer::{Activate, Init, Layer, Linear, Parameters, Sequential};
use tilewise::loss::CrossEntropy;
use tilewise::random::Rng;

use crate::model::{CLASSES, Model, Samples};
use crate::models::Entry;

pub const ENTRY: Entry = Entry {
    name: "dense",
    about: "a dense network with hidden layers of 256 and 128",
    build: |rows, cols, seed| Ok(Box::new(Dense::new(rows * cols, seed)?)),
};

const HIDDEN: [usize; 2] = [256, 128];
const BATCH: usize = 64;
const RATE: f64 = 1e-3;

struct Dense {
    net: Sequential<f32>,
    optimizer: AdamW<f32>,
}

impl Dense {
    fn new(inputs: usize, seed: u64) -> tilewise::Result<Self> {
        let mut rng = Rng::seed(seed);
        let net = Sequential::new()
            .push(Linear::new(inputs, HIDDEN[0], Init::kaiming_uniform(), &mut rng)?)
            .push(Activate::new(Activation::Relu))
            .push(Linear::new(HIDDEN[0], HIDDEN[1], Init::kaiming_uniform(), &mut rng)?)
            .push(Activate::new(Activation::Relu))
            .push(Linear::new(HIDDEN[1], CLASSES, Init::xavier_uniform(), &mut rng)?);
        Ok(Self { net, optimizer: AdamW::new(RATE) })
    }
}

impl Model for Dense {
    fn name(&self) -> &str {
        ENTRY.name
    }

    fn parameters(&self) -> usize {
        self.net.parameter_count()
    }

    fn train_epoch(
        &mut self,
        train: &Samples,
        order: &[usize],
        progress: &mut dyn FnMut(usize, f64),
    ) -> tilewise::Result<f64> {
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        let (mut done, mut sum) = (0, 0.0);
        for batch in order.chunks(BATCH) {
            train.gather(batch, &mut pixels, &mut labels);
            let x = TensorView::from_slice(&pixels, [batch.len(), train.image_len()])?;
            let logits = self.net.forward(x)?;
            let (loss, d_logits) = CrossEntropy::new().forward_backward(logits.view(), &labels)?;
            self.net.zero_gradients();
            self.net.backward_parameters(d_logits.view())?;
            self.optimizer.step(&mut self.net)?;
            done += batch.len();
            sum += f64::from(loss) * batch.len() as f64;
            progress(done, sum / done as f64);
        }
        Ok(sum / done.max(1) as f64)
    }

    fn scores(&mut self, images: &Samples) -> tilewise::Result<Vec<f32>> {
        let x = TensorView::from_slice(&images.pixels, [images.len(), images.image_len()])?;
        Ok(self.net.infer(x)?.as_slice().to_vec())
    }

    fn default_epochs(&self) -> usize {
        10
    }
}
