//! Curves over the epochs, as SVG to put into a page. The page's style sheet colours text and axes, so
//! that they fit a light page and a dark one.

use std::error::Error;

use plotters::coord::types::{RangedCoordf64, RangedCoordi32};
use plotters::prelude::*;

use crate::run::{Epoch, Outcome};
use crate::table::percent;

const SIZE: (u32, u32) = (560, 320);

/// Colours that stand out from white as well as from black.
const PALETTE: [(u8, u8, u8); 8] = [
    (59, 130, 246),
    (234, 138, 11),
    (16, 170, 120),
    (225, 70, 90),
    (139, 92, 246),
    (20, 165, 185),
    (219, 80, 165),
    (120, 160, 20),
];

/// The colour of the model at `index` in all charts and in the legend.
pub fn colour(index: usize) -> RGBColor {
    let (red, green, blue) = PALETTE[index % PALETTE.len()];
    RGBColor(red, green, blue)
}

/// Mean loss of every epoch, a line per model.
pub fn loss(outcomes: &[Outcome]) -> Result<String, Box<dyn Error>> {
    let top = epochs(outcomes).map(|epoch| epoch.loss).fold(0.0, f64::max);
    // A loss of 0 throughout must not make a range of no height.
    let range = 0.0..if top > 0.0 { top * 1.05 } else { 1.0 };
    draw(outcomes, range, &|loss| label(loss, top), |chart, index, outcome| {
        line(chart, index, outcome, |epoch| epoch.loss, false)
    })
}

/// Accuracy after every epoch, per model a line for the test set and dashes for the training set.
pub fn accuracy(outcomes: &[Outcome]) -> Result<String, Box<dyn Error>> {
    let least =
        epochs(outcomes).map(|epoch| epoch.train_accuracy.min(epoch.test_accuracy)).fold(1.0, f64::min);
    // Down to a multiple of 5 % with room below, so that small differences near the top show.
    let bottom = (((least - 0.01) * 20.0).floor() / 20.0).max(0.0);
    let whole = |share: &f64| percent(*share).replace(".00", "");
    draw(outcomes, bottom..1.0, &whole, |chart, index, outcome| {
        line(chart, index, outcome, |epoch| epoch.train_accuracy, true)?;
        line(chart, index, outcome, |epoch| epoch.test_accuracy, false)
    })
}

fn epochs(outcomes: &[Outcome]) -> impl Iterator<Item = &Epoch> {
    outcomes.iter().flat_map(|outcome| &outcome.epochs)
}

/// As few decimals as tell the labels of an axis up to `top` apart.
fn label(value: &f64, top: f64) -> String {
    let decimals = (1.0 - top.max(1e-9).log10().floor()).clamp(0.0, 9.0) as usize;
    format!("{value:.decimals$}")
}

type Chart<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<RangedCoordi32, RangedCoordf64>>;
type Drawn<'a> = Result<(), DrawingAreaErrorKind<<SVGBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw(
    outcomes: &[Outcome],
    range: std::ops::Range<f64>,
    label: &dyn Fn(&f64) -> String,
    series: impl for<'a> Fn(&mut Chart<'a, '_>, usize, &Outcome) -> Drawn<'a>,
) -> Result<String, Box<dyn Error>> {
    let last = outcomes.iter().map(|outcome| outcome.epochs.len()).max().unwrap_or(1).try_into()?;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        // One epoch is a point: in the middle.
        let across = if last == 1 { 0..2 } else { 1..last };
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(across, range)?;
        let grey = RGBColor(128, 128, 128);
        chart
            .configure_mesh()
            .x_desc("epoch")
            .x_labels(usize::try_from(last)?.clamp(2, 12))
            .y_labels(6)
            .y_label_formatter(label)
            .label_style(("sans-serif", 17))
            .axis_desc_style(("sans-serif", 17))
            .axis_style(grey)
            .bold_line_style(grey.mix(0.25))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, outcome) in outcomes.iter().enumerate() {
            series(&mut chart, index, outcome)?;
        }
        area.present()?;
    }
    // The page scales the drawing by its viewBox.
    Ok(svg.replacen(&format!("width=\"{}\" height=\"{}\" ", SIZE.0, SIZE.1), "role=\"img\" ", 1))
}

fn line<'a>(
    chart: &mut Chart<'a, '_>,
    index: usize,
    outcome: &Outcome,
    value: impl Fn(&Epoch) -> f64,
    dashed: bool,
) -> Drawn<'a> {
    let colour = colour(index);
    let points: Vec<(i32, f64)> = (1..).zip(outcome.epochs.iter().map(value)).collect();
    if dashed {
        chart.draw_series(DashedLineSeries::new(points.clone(), 5, 4, colour.mix(0.8).stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, colour.stroke_width(1))))?;
    } else {
        chart.draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))?;
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, colour.filled())))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::outcome;

    #[test]
    fn charts_of_one_epoch_and_of_no_loss_draw() {
        let mut flat = outcome("flat");
        flat.epochs[0].loss = 0.0;
        for outcomes in [vec![outcome("a")], vec![flat]] {
            for svg in [loss(&outcomes).unwrap(), accuracy(&outcomes).unwrap()] {
                assert!(svg.starts_with("<svg ") && svg.trim_end().ends_with("</svg>"), "{svg}");
                assert!(svg.contains("epoch") && svg.contains("<circle"), "{svg}");
            }
        }
    }

    #[test]
    fn labels_have_the_decimals_they_need() {
        let cases = [(2.5, 3.0, "2.5"), (20.0, 31.0, "20"), (0.05, 0.3, "0.05"), (0.0, 0.0, "0.000000000")];
        cases.iter().for_each(|&(value, top, text)| assert_eq!(label(&value, top), text));
    }
}
