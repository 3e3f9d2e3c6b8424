//! The loss of every pass, as SVG.

use std::error::Error;

use plotters::prelude::*;

use crate::model::Epoch;

const SIZE: (u32, u32) = (640, 360);
const TRAIN: RGBColor = RGBColor(59, 130, 246);
const TEST: RGBColor = RGBColor(234, 138, 11);

/// Mean losses in nats per character: on the text learned from, and on what was kept apart.
pub fn loss(epochs: &[Epoch]) -> Result<String, Box<dyn Error>> {
    let all = || epochs.iter().flat_map(|epoch| [epoch.train, epoch.test]).filter(|loss| loss.is_finite());
    let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    // A range of no height cannot be drawn.
    let range = if least < most { least * 0.95..most * 1.05 } else { 0.0..most.max(1.0) * 1.05 };
    let last = i32::try_from(epochs.len())?.max(2);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(62)
            .build_cartesian_2d(1..last, range)?;
        chart
            .configure_mesh()
            .x_desc("pass over the text (blue: learned from, orange: kept apart)")
            .y_desc("nats per character")
            .x_labels(usize::try_from(last)?.min(12))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let series: [(RGBColor, fn(&Epoch) -> f64); 2] =
            [(TRAIN, |epoch| epoch.train), (TEST, |epoch| epoch.test)];
        for (colour, of) in series {
            let points = || (1..).zip(epochs.iter().map(of)).filter(|(_, loss)| loss.is_finite());
            chart.draw_series(LineSeries::new(points(), colour.stroke_width(2)))?;
            chart.draw_series(points().map(|at| Circle::new(at, 3, colour.filled())))?;
        }
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_and_no_test_draw() {
        for epochs in [&[Epoch { train: 2.0, test: f64::NAN }][..], &[Epoch { train: 2.0, test: 2.0 }; 3]] {
            let svg = loss(epochs).unwrap();
            assert!(svg.starts_with("<svg ") && svg.contains("<circle"));
        }
    }
}
