//! Times of a model, for `benches/peers/python/models.py`, which runs another library beside this program.

use std::error::Error;
use std::io::{self, BufRead, Write};
use std::time::Instant;

/// What is timed.
pub type Work<'w> = Box<dyn FnMut() -> Result<(), Box<dyn Error>> + 'w>;

/// For each line `BATCH LENGTH SECONDS` of standard input, runs that work for at least so many seconds after one warm
/// call, and prints the seconds of the median call.
pub fn serve<'w>(
    mut prepare: impl FnMut(usize, usize) -> Result<Work<'w>, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let [batch, length, seconds] = words[..] else {
            return Err(format!("{line:?} is not BATCH LENGTH SECONDS").into());
        };
        let (mut work, least) = (prepare(batch.parse()?, length.parse()?)?, seconds.parse()?);
        work()?;
        let (start, mut times) = (Instant::now(), Vec::new());
        while times.is_empty() || start.elapsed().as_secs_f64() < least {
            let call = Instant::now();
            work()?;
            times.push(call.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        writeln!(io::stdout(), "{}", times[times.len() / 2])?;
    }
    Ok(())
}
