//! Optimizers, on one number.

/// One parameter θ under stochastic gradient descent.
///
/// ```
/// let mut theta = tilewise::reference::Sgd { rate: 0.25, momentum: 0.5, ..Default::default() };
/// theta.value = 1.0;
/// theta.step(2.0);
/// theta.step(2.0);
/// assert_eq!(theta.value, -0.25);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sgd {
    /// θ.
    pub value: f64,
    /// γ.
    pub rate: f64,
    /// μ.
    pub momentum: f64,
    /// Whether the step looks ahead.
    pub nesterov: bool,
    /// λ.
    pub weight_decay: f64,
    /// v, 0 at first.
    pub velocity: f64,
}

impl Sgd {
    /// One step by the gradient g.
    pub fn step(&mut self, gradient: f64) {
        let g = gradient + self.weight_decay * self.value;
        self.velocity = self.momentum * self.velocity + g;
        let step = if self.nesterov { g + self.momentum * self.velocity } else { self.velocity };
        self.value -= self.rate * step;
    }
}

/// One parameter θ under Adam or AdamW.
///
/// ```
/// let mut theta = tilewise::reference::Adam::new(1.0, 0.1);
/// theta.step(1000.0);
/// assert!((theta.value - 0.9).abs() < 1e-9);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// θ.
    pub value: f64,
    /// γ.
    pub rate: f64,
    /// β₁ and β₂.
    pub betas: (f64, f64),
    /// ε.
    pub epsilon: f64,
    /// λ.
    pub weight_decay: f64,
    /// True for AdamW.
    pub decoupled: bool,
    /// m, 0 at first.
    pub first: f64,
    /// v, 0 at first.
    pub second: f64,
    /// Steps made.
    pub steps: i32,
}

impl Adam {
    /// θ and γ, with β₁ = 0.9, β₂ = 0.999, ε = 10⁻⁸ and λ = 0.
    pub fn new(value: f64, rate: f64) -> Self {
        Self {
            value,
            rate,
            betas: (0.9, 0.999),
            epsilon: 1e-8,
            weight_decay: 0.0,
            decoupled: false,
            first: 0.0,
            second: 0.0,
            steps: 0,
        }
    }

    /// One step by the gradient g.
    pub fn step(&mut self, gradient: f64) {
        let mut g = gradient;
        if self.decoupled {
            self.value -= self.rate * self.weight_decay * self.value;
        } else {
            g += self.weight_decay * self.value;
        }
        self.steps += 1;
        let (beta1, beta2) = self.betas;
        self.first = beta1 * self.first + (1.0 - beta1) * g;
        self.second = beta2 * self.second + (1.0 - beta2) * g.powi(2);
        let first = self.first / (1.0 - beta1.powi(self.steps));
        let second = self.second / (1.0 - beta2.powi(self.steps));
        self.value -= self.rate * first / (second.sqrt() + self.epsilon);
    }
}
