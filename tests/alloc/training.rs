//! What learns: optimizers and the perceptron.

use tilewise::Element;
use tilewise::layer::optimizer::{Adam, AdamW, Optimizer, Sgd};
use tilewise::layer::{Init, Linear};
use tilewise::perceptron::{Perceptron, Rule};
use tilewise::random::Rng;

use super::{Measure, matrix};

pub fn calls<T: Element>(call: &mut Measure) {
    // One task and several.
    for [inputs, outputs] in [[30, 20], [700, 300]] {
        let mut layer =
            Linear::<T>::new(inputs, outputs, Init::kaiming_uniform(), &mut Rng::seed(7)).unwrap();
        let optimizers: [(&str, Box<dyn Optimizer<T>>); 4] = [
            ("SGD", Box::new(Sgd::new(1e-3))),
            ("SGD, momentum", Box::new(Sgd::new(1e-3).momentum(0.9).nesterov(true).weight_decay(1e-4))),
            ("Adam", Box::new(Adam::new(1e-3))),
            ("AdamW", Box::new(AdamW::new(1e-3).weight_decay(1e-2))),
        ];
        for (name, mut optimizer) in optimizers {
            call(name, &mut || optimizer.step(&mut layer).unwrap());
        }
    }
    // Rows come again with the other label: every pass has mistakes.
    let (x, labels) = (matrix::<T>([80, 13]), [1, -1].repeat(40));
    let mut perceptron = Perceptron::<T>::new(13).unwrap();
    call("perceptron", &mut || {
        let outcome = perceptron.fit(x.view(), &labels, &Rule::new().max_passes(3)).unwrap();
        assert!(!outcome.separable && outcome.updates > 0);
    });
}
