//! From probabilities to segments of speech, by the rule of Silero VAD: speech begins where the probability reaches a
//! threshold, and ends where it falls below a lower one for a while; what is too short is dropped, and what is left
//! grows a little on both sides.

use crate::model::{CHUNK, RATE};

const BEGIN: f32 = 0.5;
const END: f32 = 0.35;
/// In samples, as all that follows.
const LEAST_SPEECH: u64 = RATE as u64 * 250 / 1000;
const LEAST_SILENCE: u64 = RATE as u64 * 100 / 1000;
const MARGIN: u64 = RATE as u64 * 30 / 1000;
// So margins never meet, and a segment is known as soon as it has ended.
const _: () = assert!(LEAST_SILENCE >= 2 * MARGIN);

/// From sample `start` to sample `end`, which is no longer in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    pub start: u64,
    pub end: u64,
}

#[derive(Default)]
pub struct Segments {
    /// The first sample of the next chunk.
    now: u64,
    start: Option<u64>,
    /// Where the probability fell last, while that is not an end.
    fell: Option<u64>,
}

impl Segments {
    /// Takes the probability of the next chunk. Gives the segment that it ends.
    pub fn push(&mut self, probability: f32) -> Option<Segment> {
        let now = self.now;
        self.now += CHUNK as u64;
        if probability >= BEGIN {
            self.fell = None;
            self.start.get_or_insert(now);
            return None;
        }
        let start = self.start?;
        if probability >= END {
            return None;
        }
        let end = *self.fell.get_or_insert(now);
        if now - end < LEAST_SILENCE {
            return None;
        }
        (self.start, self.fell) = (None, None);
        (end - start > LEAST_SPEECH)
            .then(|| Segment { start: start.saturating_sub(MARGIN), end: end + MARGIN })
    }

    /// The segment that goes on up to the end of the sound, of `len` samples.
    pub fn finish(self, len: u64) -> Option<Segment> {
        let start = self.start.filter(|&start| len.saturating_sub(start) > LEAST_SPEECH)?;
        Some(Segment { start: start.saturating_sub(MARGIN), end: len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(probabilities: &[f32], len: u64) -> Vec<[u64; 2]> {
        let mut segments = Segments::default();
        let mut found: Vec<_> = probabilities.iter().filter_map(|&p| segments.push(p)).collect();
        found.extend(segments.finish(len));
        found.into_iter().map(|segment| [segment.start, segment.end]).collect()
    }

    #[test]
    fn short_speech_and_short_silence_do_not_count() {
        let (speech, silence, between) = ([0.9; 10], [0.1; 10], [0.4; 10]);
        let chunks = |parts: &[&[f32]]| segments(&parts.concat(), 512 * parts.concat().len() as u64);
        assert_eq!(chunks(&[&silence, &speech, &silence]), [[5120 - 480, 10240 + 480]]);
        assert_eq!(chunks(&[&silence, &speech, &silence[..3], &speech]), [[5120 - 480, 33 * 512]]);
        assert_eq!(chunks(&[&silence, &speech, &between]), [[5120 - 480, 30 * 512]]);
        assert_eq!(chunks(&[&speech[..7], &silence]), [[0; 2]; 0]);
        assert_eq!(chunks(&[]), [[0; 2]; 0]);
    }
}
