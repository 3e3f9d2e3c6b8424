//! Progress on standard error: bars on a terminal, one line per epoch elsewhere.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::table::{grouped, percent};

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    Bars,
    Lines,
    Quiet,
}

impl Progress {
    pub fn new(quiet: bool) -> Self {
        match (quiet, ProgressDrawTarget::stderr().is_hidden()) {
            (true, _) => Self::Quiet,
            (false, false) => Self::Bars,
            (false, true) => Self::Lines,
        }
    }

    pub fn epoch(self, model: &str, epoch: usize, epochs: usize, images: usize) -> EpochProgress {
        let width = epochs.to_string().len();
        let heading = format!("{model}  epoch {epoch:width$}/{epochs}");
        let bar = (self == Self::Bars).then(|| {
            let bar = ProgressBar::new(images as u64).with_prefix(heading.clone());
            bar.set_style(style("{prefix}  {wide_bar} {percent:>3} %  {msg}  ETA {eta:>3}"));
            bar
        });
        EpochProgress { lines: self == Self::Lines, bar, heading, started: Instant::now() }
    }
}

pub struct EpochProgress {
    lines: bool,
    bar: Option<ProgressBar>,
    heading: String,
    started: Instant,
}

impl EpochProgress {
    pub fn update(&self, done: usize, loss: f64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done as u64);
            bar.set_message(numbers(done, loss, self.started.elapsed()));
        }
    }

    /// `images` trained on in `time`, and then `accuracy` on the test set.
    pub fn finish(self, images: usize, loss: f64, time: Duration, accuracy: f64) {
        let text = format!("{}  test {}", numbers(images, loss, time), percent(accuracy));
        if let Some(bar) = self.bar {
            bar.set_style(style("{prefix}  {msg}"));
            bar.finish_with_message(text);
        } else if self.lines {
            // Nothing is lost if nobody reads it, so not eprintln, which panics.
            let _ = writeln!(io::stderr(), "{}  {text}", self.heading);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates of this file are well formed")
}

fn numbers(done: usize, loss: f64, time: Duration) -> String {
    format!("loss {loss:.4}  {:>9} images/s", grouped(rate(done, time)))
}

/// Images per second.
pub fn rate(images: usize, time: Duration) -> usize {
    // A clock too coarse to see the work must not give infinity.
    (images as f64 / time.as_secs_f64().max(1e-9)).round() as usize
}
