//! The page with curves, confusion matrices, mistakes and what the models drew.

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{fmt, fs};

use tempfile::NamedTempFile;

use crate::charts;
use crate::idx::Dataset;
use crate::model::{CLASSES, Drawing, Picture};
use crate::png;
use crate::run::{Outcome, Reading};
use crate::table::{self, grouped, percent};

const STYLE: &str = include_str!("report.css");

/// Mistakes shown of each model.
const SHOWN: usize = 24;

/// What the page tells.
pub struct Report<'a> {
    /// One line on the data and the settings.
    pub about: &'a str,
    /// The set that the outcomes' readings index.
    pub test: &'a Dataset,
    pub outcomes: &'a [Outcome],
}

/// Fails if the report could not be written, and makes its folder.
pub fn check_writable(path: &Path) -> Result<(), WriteError> {
    temporary(path).map(drop).map_err(|error| WriteError { path: path.to_owned(), error })
}

impl Report<'_> {
    /// Replaces the file at once: whoever reads it sees the old page or the new one, whole.
    pub fn write(&self, path: &Path) -> Result<(), Box<dyn Error>> {
        let page = self.page()?;
        let save = || {
            let mut file = temporary(path)?;
            file.write_all(page.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(path)?;
            Ok(())
        };
        Ok(save().map_err(|error| WriteError { path: path.to_owned(), error })?)
    }

    fn page(&self) -> Result<String, Box<dyn Error>> {
        let mut page = String::new();
        write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <title>Handwritten digits</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n\
             <header><h1>Handwritten digits</h1>\n<p>{}</p></header>\n",
            Escaped(self.about)
        )?;
        self.summary(&mut page)?;
        self.curves(&mut page)?;
        for outcome in self.outcomes {
            writeln!(page, "<section>\n<h2>{}</h2>", Escaped(&outcome.name))?;
            confusion(&mut page, &outcome.test)?;
            self.mistakes(&mut page, &outcome.test)?;
            outcome.drawings.iter().try_for_each(|drawing| pictures(&mut page, drawing))?;
            page += "</section>\n";
        }
        page += "</body>\n</html>\n";
        Ok(page)
    }

    fn summary(&self, page: &mut String) -> fmt::Result {
        *page += "<section>\n<div class=\"scroll\"><table class=\"summary\">\n<thead><tr>";
        table::HEADINGS
            .iter()
            .try_for_each(|heading| write!(page, "<th scope=\"col\">{}</th>", Escaped(heading)))?;
        *page += "</tr></thead>\n<tbody>\n";
        for (index, outcome) in self.outcomes.iter().enumerate() {
            let [name, rest @ ..] = table::row(outcome);
            write!(page, "<tr><th scope=\"row\">{}{}</th>", swatch(index), Escaped(&name))?;
            rest.iter().try_for_each(|cell| write!(page, "<td>{}</td>", Escaped(cell)))?;
            *page += "</tr>\n";
        }
        *page += "</tbody>\n</table></div>\n<p class=\"note\">The time is that of training alone. The checksum \
                  is that of all scores on the test set: the same seed gives the same bits.</p>\n</section>\n";
        Ok(())
    }

    fn curves(&self, page: &mut String) -> Result<(), Box<dyn Error>> {
        *page += "<section>\n<h2>Training</h2>\n<p class=\"legend\">";
        for (index, outcome) in self.outcomes.iter().enumerate() {
            write!(page, "<span>{}{}</span> ", swatch(index), Escaped(&outcome.name))?;
        }
        write!(
            page,
            "</p>\n<div class=\"charts\">\n<figure class=\"chart\"><figcaption>Mean loss</figcaption>\n{}</figure>\n\
             <figure class=\"chart\"><figcaption>Accuracy: test set as a line, training set dashed</figcaption>\n\
             {}</figure>\n</div>\n</section>\n",
            charts::loss(self.outcomes)?,
            charts::accuracy(self.outcomes)?
        )?;
        Ok(())
    }

    fn mistakes(&self, page: &mut String, reading: &Reading) -> fmt::Result {
        let count = reading.wrong.len();
        let share = percent(count as f64 / reading.count().max(1) as f64);
        writeln!(
            page,
            "<h3>Read wrongly: {} of {} ({share})</h3>",
            grouped(count),
            grouped(reading.count())
        )?;
        if count > SHOWN {
            writeln!(page, "<p class=\"note\">The {SHOWN} that it was surest of.</p>")?;
        }
        *page += "<div class=\"pictures\">\n";
        let (rows, cols) = (self.test.rows, self.test.cols);
        for wrong in reading.wrong.iter().take(SHOWN) {
            let grey = &self.test.images[wrong.index * rows * cols..][..rows * cols];
            let pixels: Vec<_> = grey.iter().map(|&grey| [255 - grey; 3]).collect();
            writeln!(
                page,
                "<figure><img src=\"{}\" alt=\"a {}\" title=\"test image {}\"><figcaption><b>{}</b> read as \
                 <b class=\"wrong\">{}</b></figcaption></figure>",
                png::data_uri(rows, cols, &pixels),
                wrong.label,
                wrong.index,
                wrong.label,
                wrong.read
            )?;
        }
        *page += "</div>\n";
        Ok(())
    }
}

fn confusion(page: &mut String, reading: &Reading) -> fmt::Result {
    *page += "<h3>Confusion matrix</h3>\n<div class=\"scroll\"><table class=\"confusion\">\n\
              <thead><tr><th scope=\"col\">shown \\ read</th>";
    (0..CLASSES).try_for_each(|class| write!(page, "<th scope=\"col\">{class}</th>"))?;
    *page += "<th scope=\"col\">right</th></tr></thead>\n<tbody>\n";
    for (label, row) in reading.confusion.iter().enumerate() {
        let total = row.iter().sum::<usize>().max(1) as f64;
        write!(page, "<tr><th scope=\"row\">{label}</th>")?;
        for (read, &count) in row.iter().enumerate() {
            let share = count as f64 / total;
            // A mistake made with one digit in ten is as strong in colour as it gets.
            let (class, strength) =
                if read == label { ("right", share) } else { ("wrong", (10.0 * share).min(1.0)) };
            match count {
                0 => write!(page, "<td class=\"none\">0</td>")?,
                _ => write!(
                    page,
                    "<td class=\"{class}\" style=\"--strength:{:.0}%\">{count}</td>",
                    strength * 60.0
                )?,
            }
        }
        writeln!(page, "<td class=\"share\">{}</td></tr>", percent(row[label] as f64 / total))?;
    }
    *page += "</tbody>\n</table></div>\n";
    Ok(())
}

fn pictures(page: &mut String, drawing: &Drawing) -> fmt::Result {
    writeln!(page, "<h3>{}</h3>\n<div class=\"pictures\">", Escaped(&drawing.title))?;
    for picture in &drawing.pictures {
        writeln!(
            page,
            "<figure><img src=\"{}\" alt=\"\"><figcaption>{}</figcaption></figure>",
            png::data_uri(picture.rows, picture.cols, &shades(picture)),
            Escaped(&picture.caption)
        )?;
    }
    *page += "</div>\n";
    Ok(())
}

/// White for 0, towards blue for positive values and towards red for negative ones.
fn shades(picture: &Picture) -> Vec<[u8; 3]> {
    let largest = picture.values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    let scale = if largest > 0.0 && largest.is_finite() { 1.0 / largest } else { 0.0 };
    let shade = |value: &f32| {
        let strength = value.abs() * scale;
        let full = if *value < 0.0 { [200.0, 30.0, 45.0] } else { [20.0, 70.0, 190.0] };
        full.map(|channel: f32| (255.0 + (channel - 255.0) * strength).round() as u8)
    };
    picture.values.iter().map(shade).collect()
}

fn swatch(index: usize) -> String {
    let plotters::style::RGBColor(red, green, blue) = charts::colour(index);
    format!("<i style=\"background:rgb({red} {green} {blue})\"></i>")
}

/// A file in the report's folder, to take its place.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    let Some(name) = path.file_name() else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
    };
    if path.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    // To take the place of a device such as /dev/null would break the system.
    if path.exists() && !path.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if folder.exists() && !folder.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    fs::create_dir_all(folder)?;
    let mut prefix = name.to_owned();
    prefix.push(".");
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // Temporary files are private; a report is as readable as any file, less the umask.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder.tempfile_in(folder)
}

/// Why the report could not be written. Names its path.
#[derive(Debug)]
pub struct WriteError {
    path: PathBuf,
    error: io::Error,
}

impl fmt::Display for WriteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: cannot write the report: {}", self.path.display(), self.error)
    }
}

impl Error for WriteError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&self.error)
    }
}

/// Text as HTML.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::outcome;

    fn dataset() -> Dataset {
        Dataset { images: vec![9; 2 * 4], labels: vec![3, 6], rows: 2, cols: 2 }
    }

    #[test]
    fn text_is_escaped() {
        let mut bad = outcome("<b>\"&'</b>");
        let values = vec![-1.0, 0.0, 0.5, 1.0];
        let pictures = vec![Picture { caption: "<p>".to_owned(), rows: 2, cols: 2, values }];
        bad.drawings.push(Drawing { title: "<q>".to_owned(), pictures });
        let page = Report { about: "<i>", test: &dataset(), outcomes: &[bad] }.page().unwrap();
        assert!(page.contains("&lt;b&gt;&quot;&amp;&#39;&lt;/b&gt;"));
        assert!(page.contains("&lt;i&gt;") && page.contains("&lt;q&gt;") && page.contains("&lt;p&gt;"));
        assert!(!page.contains("<b>\"") && !page.contains("<q>"));
    }

    #[test]
    fn pictures_show_signs() {
        let values = vec![-2.0, 0.0, 1.0, 2.0];
        let picture = Picture { caption: String::new(), rows: 2, cols: 2, values };
        assert_eq!(shades(&picture), [[200, 30, 45], [255; 3], [138, 163, 223], [20, 70, 190]]);
        let blank = Picture { caption: String::new(), rows: 1, cols: 2, values: vec![f32::NAN, 0.0] };
        assert_eq!(shades(&blank).len(), 2);
    }

    #[test]
    fn writing_makes_the_folder_replaces_the_file_and_leaves_nothing_else() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("a/b/report.html");
        let (test, outcomes) = (dataset(), [outcome("a")]);
        let report = Report { about: "", test: &test, outcomes: &outcomes };
        check_writable(&path).unwrap();
        assert!(!path.exists());
        report.write(&path).unwrap();
        fs::write(&path, "old").unwrap();
        report.write(&path).unwrap();
        assert!(fs::read_to_string(&path).unwrap().starts_with("<!doctype html>"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn errors_name_the_path() {
        let dir = tempfile::TempDir::new().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        for path in [dir.path().to_owned(), file.join("report.html"), PathBuf::from("..")] {
            let error = check_writable(&path).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{}: cannot write the report: ", path.display())), "{error}");
        }
        #[cfg(unix)]
        assert!(
            check_writable(Path::new("/dev/null")).unwrap_err().to_string().ends_with("not a regular file")
        );
    }
}
