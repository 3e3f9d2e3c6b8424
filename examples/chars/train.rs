//! The text is cut into as many strips as are read at the same time, each is read window by window. For an LSTM this is
//! truncated back-propagation through time: states are carried on, gradients are not carried back. A transformer knows
//! nothing of the windows before.

use std::error::Error;
use std::io::{self, Write};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tilewise::layer::optimizer::{AdamW, Optimizer};

use crate::args::Args;
use crate::model::{Epoch, Model, Window};

/// The part of the text that is kept for tests, at its end: one in so many characters.
const TEST: usize = 20;

pub fn train(
    model: &mut Model,
    optimizer: &mut AdamW<f32>,
    text: &[usize],
    args: &Args,
) -> Result<(), Box<dyn Error>> {
    let (train, test) = text.split_at(text.len() - text.len() / TEST);
    let (batch, window) = (args.batch as usize, model.window(args.window as usize));
    let steps = Strips::new(train, batch, window).map_or(0, |strips| strips.windows());
    if args.epochs > 0 && steps == 0 {
        let (needed, found) = (batch.saturating_add(1), train.len());
        return Err(format!(
            "a batch of {batch} needs at least {needed} characters to train on, not {found}"
        )
        .into());
    }
    let rate = args.rate(model.options.net);
    let bars = !args.quiet && !ProgressDrawTarget::stderr().is_hidden();
    for epoch in 0..args.epochs as usize {
        let started = Instant::now();
        let heading = format!("epoch {}/{}", epoch + 1, args.epochs);
        let bar = bars.then(|| {
            let template = "{prefix}  {wide_bar} {percent:>3} %  {msg}  ETA {eta:>3}";
            let style = ProgressStyle::with_template(template).expect("the template is well formed");
            ProgressBar::new(steps as u64).with_style(style).with_prefix(heading.clone())
        });
        let mut strips = Strips::new(train, batch, window).ok_or("no text")?;
        let mut state = model.start(batch)?;
        let (mut sum, mut done, mut read) = (0.0, 0, 0);
        while let Some(window) = strips.next_window() {
            read += window.next.len();
            let all = (steps * args.epochs as usize) as f64;
            let progress = (epoch * steps) as f64 / all + done as f64 / all;
            optimizer.set_learning_rate(rate * (0.55 + 0.45 * (std::f64::consts::PI * progress).cos()));
            sum += model.train(&window, &mut state, optimizer)?;
            done += 1;
            if let Some(bar) = &bar {
                bar.set_position(done as u64);
                bar.set_message(format!("loss {:.4}", sum / done as f64));
            }
        }
        let losses = Epoch { train: sum / done.max(1) as f64, test: self::test(model, test, window)? };
        model.epochs.push(losses);
        let speed = read as f64 / started.elapsed().as_secs_f64().max(1e-9);
        let line =
            format!("{heading}  loss {:.4}  test {:.4}  {speed:.0} characters/s", losses.train, losses.test);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        if !args.quiet {
            // Nothing is lost if nobody reads it, so not eprintln, which panics.
            let _ = writeln!(io::stderr(), "{line}");
        }
    }
    Ok(())
}

/// The mean loss over a text; NaN where there is too little of it.
fn test(model: &Model, text: &[usize], window: usize) -> Result<f64, Box<dyn Error>> {
    /// Each strip begins without knowing what came before.
    const STRIPS: usize = 8;
    let Some(mut strips) = Strips::new(text, STRIPS, window) else { return Ok(f64::NAN) };
    let mut state = model.start(STRIPS)?;
    let (mut sum, mut count) = (0.0, 0);
    while let Some(window) = strips.next_window() {
        sum += model.test(&window, &mut state)? * window.next.len() as f64;
        count += window.next.len();
    }
    Ok(sum / count as f64)
}

/// A text in strips of one length, read side by side.
struct Strips<'t> {
    text: &'t [usize],
    batch: usize,
    window: usize,
    /// Characters of a strip that have one that follows.
    len: usize,
    at: usize,
    characters: Vec<usize>,
    next: Vec<usize>,
}

impl<'t> Strips<'t> {
    /// None where strips would be empty.
    fn new(text: &'t [usize], batch: usize, window: usize) -> Option<Self> {
        let len = text.len().checked_sub(1)? / batch;
        (len > 0).then(|| Self { text, batch, window, len, at: 0, characters: Vec::new(), next: Vec::new() })
    }

    fn windows(&self) -> usize {
        self.len.div_ceil(self.window)
    }

    fn next_window(&mut self) -> Option<Window<'_>> {
        let end = self.len.min(self.at + self.window);
        if self.at == end {
            return None;
        }
        self.characters.clear();
        self.next.clear();
        for time in self.at..end {
            for strip in 0..self.batch {
                self.characters.push(self.text[strip * self.len + time]);
                self.next.push(self.text[strip * self.len + time + 1]);
            }
        }
        self.at = end;
        Some(Window { characters: &self.characters, next: &self.next, batch: self.batch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_are_read_side_by_side() {
        let text: Vec<usize> = (0..12).collect();
        let mut strips = Strips::new(&text, 2, 3).unwrap();
        assert_eq!(strips.windows(), 2);
        let first = strips.next_window().unwrap();
        assert_eq!(first.characters, [0, 5, 1, 6, 2, 7]);
        assert_eq!(first.next, [1, 6, 2, 7, 3, 8]);
        assert_eq!(strips.next_window().unwrap().next, [4, 9, 5, 10]);
        assert!(strips.next_window().is_none());
        assert!(Strips::new(&text, 12, 3).is_none() && Strips::new(&[], 1, 3).is_none());
    }
}
