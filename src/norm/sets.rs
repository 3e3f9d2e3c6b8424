//! From sums over channels of samples to statistics of sets, and to the coefficients of each channel.

use super::channels::{self, Coefficients, MOMENTS, SUMS};
use super::moments::Moments;
use super::rows::check_epsilon;
use super::{NormGradientsMut, expect_vector};
use crate::element::Element;
use crate::error::{Error, Result, expect};
use crate::machine;
use crate::tensor::{TensorView, TensorViewMut};
use crate::workspace::scratch;

/// What is one set.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Sets {
    /// A channel of all samples.
    Batch,
    /// Of one sample, neighbouring channels: all of them make this many groups.
    Groups(usize),
}

/// Which normalisation.
#[derive(Clone, Copy)]
pub(super) struct Channels {
    pub op: &'static str,
    pub epsilon: f64,
    pub sets: Sets,
}

/// Mean and biased variance of each channel.
pub(super) type Constants<'a, T> = [TensorView<'a, T, 1>; 2];

/// The value at an index inside a vector, or what stands for a vector left out.
fn value<T: Element>(vector: Option<TensorView<'_, T, 1>>, at: usize, absent: f64) -> f64 {
    vector.map_or(absent, |vector| vector.get([at]).map_or(f64::NAN, |value| value.to_f64()))
}

impl Channels {
    /// `[batch, channels]`, if everything fits.
    pub(super) fn check<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        shift: Option<TensorView<'_, T, 1>>,
    ) -> Result<[usize; 2]> {
        check_epsilon(self.op, self.epsilon)?;
        let [batch, channels, ..] = x.lift().shape();
        if let Sets::Groups(groups) = self.sets
            && !channels.is_multiple_of(groups)
        {
            let expected = "a divisor of the number of channels";
            return Err(Error::argument(self.op, "groups", format!("{groups} of {channels}"), expected));
        }
        expect_vector(self.op, "scale", scale, channels)?;
        expect_vector(self.op, "shift", shift, channels)?;
        Ok([batch, channels])
    }

    /// Calls `f` with the entries of each set.
    fn for_each_set(self, samples: usize, channels: usize, mut f: impl FnMut(Set)) {
        match self.sets {
            Sets::Batch => {
                (0..channels).for_each(|channel| f(Set { first: channel, count: samples, step: channels }))
            }
            Sets::Groups(groups) => {
                let count = channels / groups.max(1);
                for first in (0..samples * channels).step_by(count.max(1)) {
                    f(Set { first, count, step: 1 });
                }
            }
        }
    }

    /// The shapes fit. `statistics` get mean and biased variance of each channel, for sets that are those.
    pub(super) fn forward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        [scale, shift]: [Option<TensorView<'_, T, 1>>; 2],
        statistics: Option<[TensorViewMut<'_, T, 1>; 2]>,
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let isa = machine::isa()?;
        let (op, x, y) = (self.op, x.lift(), y.lift());
        machine::trace(|| format!("{op} {:?} {} {isa}", x.shape(), T::NAME));
        let [batch, channels, ..] = x.shape();
        if x.is_empty() {
            statistics.into_iter().flatten().for_each(|mut vector| vector.fill(T::NAN));
            return Ok(());
        }
        let together = self.sets == Sets::Batch;
        let measured = channels::measure(op, isa, x, None, together)?;
        let size = if together { channels } else { batch * channels };
        let mut arrays = scratch::<T>(op, 3 * size)?;
        let (shifts, rest) = arrays.split_at_mut(size);
        let (slopes, constants) = rest.split_at_mut(size);
        let mut statistics = statistics;
        self.for_each_set(measured.samples, channels, |set| {
            let mut moments = Moments::default();
            for entry in set.entries() {
                moments.join(Moments::get(&measured.sums[MOMENTS * entry..]));
            }
            let factor = 1.0 / (moments.variance() + self.epsilon).sqrt();
            if let Some([mean, variance]) = &mut statistics {
                mean.get_mut([set.first]).into_iter().for_each(|mean| *mean = T::from_f64(moments.mean));
                let variance = variance.get_mut([set.first]).into_iter();
                variance.for_each(|variance| *variance = T::from_f64(moments.variance()));
            }
            // What was measured sample by sample may have one set of coefficients for all of them.
            for entry in set.entries().take(if together { 1 } else { usize::MAX }) {
                let channel = entry % channels;
                let slope = T::from_f64(factor * value(scale, channel, 1.0));
                shifts[entry] = T::from_f64(moments.mean);
                slopes[entry] = slope;
                let rest = (moments.mean - shifts[entry].to_f64()) * slope.to_f64();
                constants[entry] = T::from_f64(value(shift, channel, 0.0) - rest);
            }
        });
        let coefficients = Coefficients { arrays: [shifts, slopes, constants, shifts], channels };
        channels::apply(isa, coefficients, x, None, T::ZERO, y)
    }

    /// With constants for statistics. The shapes fit.
    pub(super) fn forward_constant<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        [mean, variance]: Constants<'_, T>,
        [scale, shift]: [Option<TensorView<'_, T, 1>>; 2],
        y: TensorViewMut<'_, T, N>,
    ) -> Result<()> {
        let isa = machine::isa()?;
        let (op, x, y) = (self.op, x.lift(), y.lift());
        machine::trace(|| format!("{op} {:?} {} {isa}", x.shape(), T::NAME));
        let [_, channels, ..] = x.shape();
        if x.is_empty() {
            return Ok(());
        }
        let mut arrays = scratch::<T>(op, 3 * channels)?;
        let (shifts, rest) = arrays.split_at_mut(channels);
        let (slopes, constants) = rest.split_at_mut(channels);
        for channel in 0..channels {
            let factor = 1.0 / (value(Some(variance), channel, 1.0) + self.epsilon).sqrt();
            shifts[channel] = T::from_f64(value(Some(mean), channel, 0.0));
            slopes[channel] = T::from_f64(factor * value(scale, channel, 1.0));
            constants[channel] = T::from_f64(value(shift, channel, 0.0));
        }
        let coefficients = Coefficients { arrays: [shifts, slopes, constants, shifts], channels };
        channels::apply(isa, coefficients, x, None, T::ZERO, y)
    }

    /// Shapes of what [`backward`](Self::backward) takes.
    pub(super) fn check_backward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        gradients: &NormGradientsMut<'_, T, N>,
    ) -> Result<[usize; 2]> {
        let op = self.op;
        let [batch, channels] = self.check(x, scale, None)?;
        expect(op, "dy", &dy.shape(), &x.shape())?;
        if let Some(dx) = &gradients.input {
            expect(op, "gradients.input", &dx.shape(), &x.shape())?;
        }
        expect_vector(op, "gradients.scale", gradients.scale.as_ref().map(TensorViewMut::view), channels)?;
        expect_vector(op, "gradients.shift", gradients.shift.as_ref().map(TensorViewMut::view), channels)?;
        Ok([batch, channels])
    }

    /// The shapes fit. `mean` is about that of each channel over the batch, where it is known: it saves a pass.
    pub(super) fn backward<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        [scale, mean]: [Option<TensorView<'_, T, 1>>; 2],
        dy: TensorView<'_, T, N>,
        beta: T,
        mut gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        let isa = machine::isa()?;
        let (op, x, dy) = (self.op, x.lift(), dy.lift());
        machine::trace(|| format!("{op} {:?} {} {isa}", x.shape(), T::NAME));
        let [batch, channels, ..] = x.shape();
        if nothing(x, &mut gradients, beta) {
            return Ok(());
        }
        let NormGradientsMut { input, scale: dscale, shift: dshift } = gradients;
        let together = self.sets == Sets::Batch;
        let size = if together { channels } else { batch * channels };
        let mut parameters = scratch::<f64>(op, channels.saturating_mul(2))?;
        parameters.fill(0.0);
        let mut arrays = scratch::<T>(op, size.saturating_mul(4))?;
        let (shifts, rest) = arrays.split_at_mut(size);
        let (slopes, rest) = rest.split_at_mut(size);
        let (offsets, factors) = rest.split_at_mut(size);
        match mean {
            Some(mean) => TensorViewMut::from_slice(shifts, [channels])?.assign(mean)?,
            None => {
                let measured = channels::measure(op, isa, x, None, together)?;
                self.for_each_set(measured.samples, channels, |set| {
                    let mut moments = Moments::default();
                    for entry in set.entries() {
                        moments.join(Moments::get(&measured.sums[MOMENTS * entry..]));
                    }
                    for entry in set.entries().take(if together { 1 } else { usize::MAX }) {
                        shifts[entry] = T::from_f64(moments.mean);
                    }
                });
            }
        }
        let measured = channels::measure(op, isa, x, Some((dy, shifts)), together)?;
        self.for_each_set(measured.samples, channels, |set| {
            let sums = |entry: usize| &measured.sums[SUMS * entry..SUMS * (entry + 1)];
            // All entries of a set have one shift.
            let shift = shifts[set.first].to_f64();
            let mut moments = Moments::default();
            for entry in set.entries() {
                let sums = sums(entry);
                moments.join(Moments::about(shift, measured.positions, [sums[0], sums[1]]));
            }
            let factor = 1.0 / (moments.variance() + self.epsilon).sqrt();
            // x̂ = (d − distance)·factor.
            let distance = moments.mean - shift;
            let (mut sum, mut product) = (0.0, 0.0);
            for entry in set.entries() {
                let sums = sums(entry);
                let (channel, hat) = (entry % channels, factor * (sums[3] - distance * sums[2]));
                parameters[channel] += hat;
                parameters[channels + channel] += sums[2];
                sum += sums[2] * value(scale, channel, 1.0);
                product += hat * value(scale, channel, 1.0);
            }
            let (sum, product) = (sum / moments.count, product / moments.count);
            for entry in set.entries().take(if together { 1 } else { usize::MAX }) {
                factors[entry] = T::from_f64(factor * value(scale, entry % channels, 1.0));
                slopes[entry] = T::from_f64(-factor * factor * product);
                offsets[entry] = T::from_f64(factor * (factor * product * distance - sum));
            }
        });
        if let Some(dx) = input {
            let coefficients = Coefficients { arrays: [shifts, slopes, offsets, factors], channels };
            channels::apply(isa, coefficients, x, Some(dy), beta, dx.lift())?;
        }
        add_parameters([dscale, dshift], Some(&parameters), beta);
        Ok(())
    }

    /// With constants for statistics, on which x has no influence: dx is dy, scaled. The shapes fit.
    pub(super) fn backward_constant<T: Element, const N: usize>(
        self,
        x: TensorView<'_, T, N>,
        [mean, variance]: Constants<'_, T>,
        scale: Option<TensorView<'_, T, 1>>,
        dy: TensorView<'_, T, N>,
        beta: T,
        mut gradients: NormGradientsMut<'_, T, N>,
    ) -> Result<()> {
        let isa = machine::isa()?;
        let (op, x, dy) = (self.op, x.lift(), dy.lift());
        machine::trace(|| format!("{op} {:?} {} {isa}", x.shape(), T::NAME));
        let [_, channels, ..] = x.shape();
        if nothing(x, &mut gradients, beta) {
            return Ok(());
        }
        let NormGradientsMut { input, scale: dscale, shift: dshift } = gradients;
        let factor = |channel| 1.0 / (value(Some(variance), channel, 1.0) + self.epsilon).sqrt();
        let mut arrays = scratch::<T>(op, channels.saturating_mul(2))?;
        let (zeros, numbers) = arrays.split_at_mut(channels);
        if let Some(dx) = input {
            zeros.fill(T::ZERO);
            for (channel, number) in numbers.iter_mut().enumerate() {
                *number = T::from_f64(factor(channel) * value(scale, channel, 1.0));
            }
            let coefficients = Coefficients { arrays: [zeros, numbers, zeros, zeros], channels };
            channels::apply(isa, coefficients, dy, None, beta, dx.lift())?;
        }
        if dscale.is_none() && dshift.is_none() {
            return Ok(());
        }
        let mut parameters = scratch::<f64>(op, channels.saturating_mul(2))?;
        parameters.fill(0.0);
        TensorViewMut::from_slice(numbers, [channels])?.assign(mean)?;
        let measured = channels::measure(op, isa, x, Some((dy, numbers)), true)?;
        for (entry, sums) in measured.sums.chunks_exact(SUMS).enumerate() {
            let channel = entry % channels;
            parameters[channel] += factor(channel) * sums[3];
            parameters[channels + channel] += sums[2];
        }
        add_parameters([dscale, dshift], Some(&parameters), beta);
        Ok(())
    }
}

/// True where no sum is wanted, or all are of nothing: then dscale and dshift are written.
fn nothing<T: Element, const N: usize>(
    x: TensorView<'_, T, 5>,
    gradients: &mut NormGradientsMut<'_, T, N>,
    beta: T,
) -> bool {
    let NormGradientsMut { input, scale, shift } = gradients;
    let nothing = x.is_empty() || (input.is_none() && scale.is_none() && shift.is_none());
    if nothing {
        add_parameters([scale.take(), shift.take()], None, beta);
    }
    nothing
}

/// Writes dscale and dshift from the sums of both; without them, these are 0.
fn add_parameters<T: Element>(
    parameters: [Option<TensorViewMut<'_, T, 1>>; 2],
    sums: Option<&[f64]>,
    beta: T,
) {
    for (number, parameter) in parameters.into_iter().enumerate() {
        let Some(mut parameter) = parameter else { continue };
        let [channels] = parameter.shape();
        for at in 0..channels {
            let sum = sums.map_or(0.0, |sums| sums[number * channels + at]);
            if let Some(out) = parameter.get_mut([at]) {
                *out = T::from_f64(if beta == T::ZERO { sum } else { sum + beta.to_f64() * out.to_f64() });
            }
        }
    }
}

/// Entries of `[samples, channels]` that make up a set.
struct Set {
    first: usize,
    count: usize,
    step: usize,
}

impl Set {
    fn entries(&self) -> impl Iterator<Item = usize> + use<> {
        let (first, step) = (self.first, self.step);
        (0..self.count).map(move |at| first + at * step)
    }
}
