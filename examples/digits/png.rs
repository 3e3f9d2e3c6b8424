//! Small pictures as PNG data URIs, so that the report is one file.

use std::io::Write;

use flate2::write::ZlibEncoder;
use flate2::{Compression, Crc};

/// A data URI of a picture whose pixels are red, green and blue, row by row.
pub fn data_uri(rows: usize, cols: usize, pixels: &[[u8; 3]]) -> String {
    format!("data:image/png;base64,{}", base64(&encode(rows, cols, pixels)))
}

fn encode(rows: usize, cols: usize, pixels: &[[u8; 3]]) -> Vec<u8> {
    assert_eq!(pixels.len(), rows * cols, "a picture needs a pixel per row and column");
    let size = |size: usize| {
        u32::try_from(size).expect("a picture has less than 2³² rows and columns").to_be_bytes()
    };
    // Eight bits per channel, red-green-blue, and the only compression, filters and order there are.
    let header = [&size(cols)[..], &size(rows)[..], &[8, 2, 0, 0, 0]].concat();
    let mut zlib = ZlibEncoder::new(Vec::new(), Compression::best());
    for row in pixels.chunks(cols.max(1)) {
        // Every row starts with its filter: none.
        zlib.write_all(&[0]).and_then(|()| zlib.write_all(row.as_flattened())).expect("a vector takes all");
    }
    let data = zlib.finish().expect("a vector takes all");

    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, body) in [(b"IHDR", header), (b"IDAT", data), (b"IEND", Vec::new())] {
        let mut crc = Crc::new();
        crc.update(kind);
        crc.update(&body);
        png.extend((body.len() as u32).to_be_bytes());
        png.extend(kind);
        png.extend(&body);
        png.extend(crc.sum().to_be_bytes());
    }
    png
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let word =
            group.iter().fold(0u32, |word, &byte| word << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for at in 0..4 {
            let symbol = ALPHABET[(word >> (18 - 6 * at) & 63) as usize];
            text.push(if at <= group.len() { char::from(symbol) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn base64_pads() {
        let cases = [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        cases.iter().for_each(|&(bytes, text)| assert_eq!(base64(bytes.as_bytes()), text));
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    #[test]
    fn pixels_come_back() {
        let png = encode(2, 1, &[[1, 2, 3], [4, 5, 6]]);
        assert_eq!(png[12..29], *b"IHDR\0\0\0\x01\0\0\0\x02\x08\x02\0\0\0");
        // IEND has no body, so its checksum is the same in every PNG there is.
        assert!(png.ends_with(b"\0\0\0\0IEND\xae\x42\x60\x82"));
        let mut raw = Vec::new();
        flate2::read::ZlibDecoder::new(&png[41..]).read_to_end(&mut raw).unwrap();
        assert_eq!(raw, [0, 1, 2, 3, 0, 4, 5, 6]);
    }
}
