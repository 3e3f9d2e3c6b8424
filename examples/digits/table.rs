//! The table on standard output, and numbers as people read them.

use std::time::Duration;

use crate::progress::rate;
use crate::run::Outcome;

/// The table's headings. Same seed, same bits: equal checksums are equal scores.
pub const HEADINGS: [&str; 7] =
    ["model", "parameters", "epochs", "train time", "images/s", "test accuracy", "checksum"];

/// The table's line for one model.
pub fn row(outcome: &Outcome) -> [String; 7] {
    let epochs = outcome.epochs.len();
    [
        outcome.name.clone(),
        grouped(outcome.parameters),
        epochs.to_string(),
        seconds(outcome.train_time),
        grouped(rate(outcome.train_images * epochs, outcome.train_time)),
        percent(outcome.test.accuracy()),
        format!("{:08x}", outcome.test.checksum),
    ]
}

/// Lines of columns as wide as their widest cell, the first flush left, the others flush right.
pub fn text(outcomes: &[Outcome]) -> String {
    let rows: Vec<_> = outcomes.iter().map(row).collect();
    let headings = HEADINGS.map(str::to_owned);
    let lines = || std::iter::once(&headings).chain(&rows);
    let widths: [usize; 7] =
        std::array::from_fn(|column| lines().map(|line| line[column].chars().count()).max().unwrap_or(0));
    let mut text = String::new();
    for (index, line) in lines().enumerate() {
        let cells = line.iter().zip(widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        text += &(cells.collect::<Vec<_>>().join("  ") + "\n");
        if index == 0 {
            text += &(widths.map(|width| "─".repeat(width)).join("  ") + "\n");
        }
    }
    text
}

/// 1234567 as 1,234,567.
pub fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

pub fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

pub fn seconds(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 10.0 { format!("{seconds:.2} s") } else { format!("{seconds:.1} s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        let cases = [(0, "0"), (999, "999"), (1000, "1,000"), (123456, "123,456"), (1234567, "1,234,567")];
        cases.iter().for_each(|&(number, text)| assert_eq!(grouped(number), text));
    }

    #[test]
    fn columns_line_up() {
        let text = text(&[crate::run::tests::outcome("a"), crate::run::tests::outcome("a-long-name")]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let width = lines[0].chars().count();
        assert!(lines.iter().all(|line| line.chars().count() == width), "{text}");
    }
}
