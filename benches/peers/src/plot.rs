//! GFLOP/s of square products by size, a picture for each element type and number of threads.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::peer::TILEWISE;
use crate::record::Record;
use crate::workload::{Dtype, Workload};

const BACKGROUND: RGBColor = WHITE;

pub fn write(records: &[Record], workloads: &[Workload], out: &Path) -> Result<(), Box<dyn Error>> {
    for record in records {
        let Record::Peak(peak) = record else { continue };
        for (dtype, name) in [(Dtype::F32, "f32"), (Dtype::F64, "f64")] {
            let lines = lines(records, workloads, dtype, peak.threads);
            if lines.values().any(|line| line.len() > 1) {
                let threads = peak.threads;
                let path = out.join(format!("squares_{name}_{threads}t.svg"));
                let title = format!("square products in {name}, {threads} thread(s)");
                draw(&path, &title, if dtype == Dtype::F32 { peak.f32.max } else { peak.f64.max }, &lines)?;
            }
        }
    }
    Ok(())
}

/// Sizes and GFLOP/s by peer. Tilewise ran in more than one process: the first counts.
fn lines<'r>(
    records: &'r [Record],
    workloads: &[Workload],
    dtype: Dtype,
    threads: usize,
) -> BTreeMap<&'r str, BTreeMap<usize, f64>> {
    let mut lines = BTreeMap::<&str, BTreeMap<usize, f64>>::new();
    for record in records {
        let Record::Result(result) = record else { continue };
        let workload = workloads.iter().find(|workload| workload.name == result.workload);
        let Some(workload) = workload.filter(|workload| workload.dtype == dtype) else { continue };
        if let Some(size) = workload.square()
            && result.threads == threads
        {
            lines.entry(&result.peer).or_default().entry(size).or_insert(result.gflops);
        }
    }
    lines
}

fn draw(
    path: &Path,
    title: &str,
    peak: f64,
    lines: &BTreeMap<&str, BTreeMap<usize, f64>>,
) -> Result<(), Box<dyn Error>> {
    let root = SVGBackend::new(path, (1000, 600)).into_drawing_area();
    root.fill(&BACKGROUND)?;
    let sizes = || lines.values().flat_map(BTreeMap::keys).map(|&size| size as f64);
    let (least, most) = (sizes().fold(f64::INFINITY, f64::min), sizes().fold(0.0, f64::max));
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(56)
        .build_cartesian_2d((least..most).log_scale().base(2.0), 0.0..peak * 1.06)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("size")
        .y_desc("GFLOP/s")
        .x_label_formatter(&|size| format!("{size:.0}"))
        .draw()?;
    chart
        .draw_series(LineSeries::new([(least, peak), (most, peak)], BLACK.stroke_width(1)))?
        .label("FMA peak")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK));
    for (index, (peer, line)) in lines.iter().enumerate() {
        let (color, width) =
            if *peer == TILEWISE { (BLACK.to_rgba(), 3) } else { (Palette99::pick(index).to_rgba(), 1) };
        chart
            .draw_series(LineSeries::new(
                line.iter().map(|(&size, &gflops)| (size as f64, gflops)),
                color.stroke_width(width),
            ))?
            .label(*peer)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(width)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(BACKGROUND.mix(0.8))
        .draw()?;
    root.present()?;
    Ok(())
}
