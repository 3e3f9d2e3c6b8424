//! Reads sound from a WAV file (RIFF, PCM of 16 bits) as it comes.

use std::error::Error;
use std::io::{self, Read};

pub struct Wav<R> {
    source: R,
    channels: usize,
    /// Bytes of sound that are left.
    left: u64,
}

fn bytes<const N: usize>(source: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(source: &mut impl Read, count: u64) -> io::Result<()> {
    io::copy(&mut source.take(count), &mut io::sink()).map(|_| ())
}

impl<R: Read> Wav<R> {
    /// Reads up to the first sample; the file must have `rate` samples a second.
    pub fn open(mut source: R, rate: u32) -> Result<Self, Box<dyn Error>> {
        let [riff, _, wave] = [bytes::<4>(&mut source)?, bytes(&mut source)?, bytes(&mut source)?];
        if (&riff, &wave) != (b"RIFF", b"WAVE") {
            return Err("it is no WAV file".into());
        }
        let mut channels = None;
        loop {
            let kind = bytes::<4>(&mut source).map_err(|_| "it has no sound")?;
            let size = u32::from_le_bytes(bytes(&mut source)?);
            match &kind {
                b"fmt " if size >= 16 => {
                    let format: [u8; 16] = bytes(&mut source)?;
                    let half = |at: usize| u16::from_le_bytes([format[at], format[at + 1]]);
                    let found = u32::from_le_bytes([format[4], format[5], format[6], format[7]]);
                    // 0xfffe says that a longer description follows; with 16 bits it is PCM as well.
                    if !matches!(half(0), 1 | 0xfffe) || half(14) != 16 || half(2) == 0 {
                        return Err("it is not PCM of 16 bits".into());
                    }
                    if found != rate {
                        return Err(format!("it has {found} samples a second, not {rate}").into());
                    }
                    channels = Some(usize::from(half(2)));
                    skip(&mut source, u64::from(size - 16 + size % 2))?;
                }
                b"data" => {
                    let channels = channels.ok_or("its sound comes before its format")?;
                    // Who writes into a pipe does not know the size, and says 0 or the most.
                    let left = if matches!(size, 0 | u32::MAX) { u64::MAX } else { u64::from(size) };
                    return Ok(Self { source, channels, left });
                }
                _ => skip(&mut source, u64::from(size) + u64::from(size % 2))?,
            }
        }
    }

    /// Fills `samples` with numbers from −1 to 1, the means of all channels; gives how many there were.
    pub fn read(&mut self, samples: &mut [f32]) -> io::Result<usize> {
        let frame = 2 * self.channels;
        for (i, sample) in samples.iter_mut().enumerate() {
            let mut sum = 0.0;
            if self.left < frame as u64 {
                return Ok(i);
            }
            for _ in 0..self.channels {
                match bytes(&mut self.source) {
                    Ok(bytes) => sum += f32::from(i16::from_le_bytes(bytes)),
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                        self.left = 0;
                        return Ok(i);
                    }
                    Err(error) => return Err(error),
                }
            }
            self.left -= frame as u64;
            *sample = sum / (32768.0 * self.channels as f32);
        }
        Ok(samples.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(channels: u16, size: u32, sound: &[i16]) -> Vec<u8> {
        let mut bytes = b"RIFF\0\0\0\0WAVEjunk\x03\0\0\0abc\0fmt \x10\0\0\0\x01\0".to_vec();
        bytes.extend(channels.to_le_bytes());
        bytes.extend(16_000u32.to_le_bytes());
        bytes.extend((32_000 * u32::from(channels)).to_le_bytes());
        bytes.extend([2 * channels as u8, 0, 16, 0]);
        bytes.extend(b"data");
        bytes.extend(size.to_le_bytes());
        bytes.extend(sound.iter().flat_map(|x| x.to_le_bytes()));
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Vec<f32>, String> {
        let mut wav = Wav::open(bytes, 16_000).map_err(|error| error.to_string())?;
        let mut samples = [0.0; 8];
        let count = wav.read(&mut samples).map_err(|error| error.to_string())?;
        Ok(samples[..count].to_vec())
    }

    #[test]
    fn samples_are_read_up_to_the_end() {
        let sound = [16384, -32768, 0, 8192];
        assert_eq!(read(&file(1, 8, &sound)), Ok(vec![0.5, -1.0, 0.0, 0.25]));
        assert_eq!(read(&file(1, 6, &sound)), Ok(vec![0.5, -1.0, 0.0]));
        assert_eq!(read(&file(1, 0, &sound)), Ok(vec![0.5, -1.0, 0.0, 0.25]));
        assert_eq!(read(&file(1, 100, &sound)), Ok(vec![0.5, -1.0, 0.0, 0.25]));
        assert_eq!(read(&file(2, 8, &sound)), Ok(vec![-0.25, 0.125]));
        assert_eq!(read(&file(3, 8, &sound)).map(|samples| samples.len()), Ok(1));
    }

    #[test]
    fn what_is_no_such_file_is_refused() {
        let whole = file(1, 8, &[0; 4]);
        for end in 0..whole.len() - 8 {
            assert!(read(&whole[..end]).is_err(), "{end} bytes");
        }
        assert!(Wav::open(&whole[..], 8000).is_err());
        assert!(read(&file(0, 8, &[0; 4])).is_err());
        let mut float = whole.clone();
        float[32] = 3;
        assert_eq!(read(&float), Err("it is not PCM of 16 bits".to_owned()));
    }
}
