//! The probability of speech over time, as SVG.

use std::error::Error;

use plotters::prelude::*;

use crate::model::{CHUNK, RATE};
use crate::segments::Segment;

const SIZE: (u32, u32) = (960, 280);
const CURVE: RGBColor = RGBColor(59, 130, 246);
const SPEECH: RGBColor = RGBColor(234, 138, 11);

/// One probability for each chunk, with segments shaded.
pub fn probability(probabilities: &[f32], segments: &[Segment]) -> Result<String, Box<dyn Error>> {
    let seconds = |sample: u64| sample as f64 / f64::from(RATE);
    let ends = (1u64..).zip(probabilities).map(|(i, &p)| (seconds(i * CHUNK as u64), f64::from(p)));
    let last = seconds((probabilities.len().max(1) * CHUNK) as u64);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..last, 0.0..1.0)?;
        let boxes = segments.iter().map(|s| {
            Rectangle::new([(seconds(s.start), 0.0), (seconds(s.end), 1.0)], SPEECH.mix(0.2).filled())
        });
        chart.draw_series(boxes)?;
        chart
            .configure_mesh()
            .x_desc("seconds (orange: speech)")
            .y_desc("probability of speech")
            .y_labels(6)
            .light_line_style(TRANSPARENT)
            .draw()?;
        chart.draw_series(LineSeries::new(ends, CURVE.stroke_width(2)))?;
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_sound_and_some_draw() {
        for (probabilities, segments) in
            [(&[][..], &[][..]), (&[0.1, 0.9], &[Segment { start: 512, end: 1024 }])]
        {
            let svg = probability(probabilities, segments).unwrap();
            assert!(svg.starts_with("<svg ") && svg.contains("probability of speech"));
        }
    }
}
