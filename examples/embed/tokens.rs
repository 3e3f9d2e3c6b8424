//! Text into tokens as BERT does it: words, lower-case and without accents, cut into the longest pieces that a vocabulary
//! has (WordPiece).
//!
//! J. Devlin et al., "BERT: pre-training of deep bidirectional transformers" (2018), and the code that came with it.

use std::collections::HashMap;
use std::error::Error;

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// A longer word is unknown as a whole.
const LONGEST_WORD: usize = 100;

pub struct WordPiece {
    pieces: HashMap<String, u32>,
    unknown: u32,
    first: u32,
    last: u32,
}

impl WordPiece {
    /// From a vocabulary with one piece a line; those that continue a word begin with `##`.
    pub fn parse(vocabulary: &str) -> Result<Self, Box<dyn Error>> {
        let pieces: HashMap<String, u32> = vocabulary.lines().map(str::to_owned).zip(0..).collect();
        let find =
            |piece: &str| pieces.get(piece).copied().ok_or_else(|| format!("the vocabulary has no {piece}"));
        Ok(Self { unknown: find("[UNK]")?, first: find("[CLS]")?, last: find("[SEP]")?, pieces })
    }

    /// At most `most` tokens (2 are the least), the first and the last of which enclose the text. Brackets in the text
    /// are text: `[SEP]` there is no separator.
    pub fn encode(&self, text: &str, most: usize) -> Vec<u32> {
        let mut tokens = vec![self.first];
        for word in words(text) {
            self.cut(&word, &mut tokens);
        }
        tokens.truncate(most.max(2) - 1);
        tokens.push(self.last);
        tokens
    }

    /// The longest piece that the word begins with, then the longest that continues it, and so on.
    fn cut(&self, word: &str, tokens: &mut Vec<u32>) {
        let before = tokens.len();
        let mut rest = word;
        let mut piece = String::new();
        while !rest.is_empty() && word.chars().count() <= LONGEST_WORD {
            piece.clear();
            piece.push_str(if rest.len() < word.len() { "##" } else { "" });
            piece.push_str(rest);
            let token = loop {
                match self.pieces.get(&piece) {
                    Some(&token) => break token,
                    None => match piece.pop() {
                        // Without its letters, `##` is a word by itself.
                        Some(_) if piece.len() > if rest.len() < word.len() { 2 } else { 0 } => {}
                        _ => {
                            tokens.truncate(before);
                            tokens.push(self.unknown);
                            return;
                        }
                    },
                }
            };
            tokens.push(token);
            rest = &rest[piece.len() - if rest.len() < word.len() { 2 } else { 0 }..];
        }
        if !rest.is_empty() {
            tokens.push(self.unknown);
        }
    }
}

/// Words, each punctuation mark and each ideograph by itself.
fn words(text: &str) -> Vec<String> {
    let clean = text.chars().filter(|&c| {
        let control =
            c.general_category_group() == GeneralCategoryGroup::Other && !matches!(c, '\t' | '\n' | '\r');
        !control && c != char::REPLACEMENT_CHARACTER
    });
    let plain = clean
        .nfd()
        .filter(|c| c.general_category() != GeneralCategory::NonspacingMark)
        // One by one: the sigma at the end of a word is that in the middle.
        .flat_map(char::to_lowercase);
    let mut words = vec![String::new()];
    for c in plain {
        let alone = is_ideograph(c)
            || c.is_ascii_punctuation()
            || c.general_category_group() == GeneralCategoryGroup::Punctuation;
        if alone || c.is_whitespace() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut()
            && !c.is_whitespace()
        {
            word.push(c);
        }
        if alone {
            words.push(String::new());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

/// Chinese characters, not the syllables of Japanese and Korean.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c),
        0x3400..=0x4dbf | 0x4e00..=0x9fff | 0xf900..=0xfaff | 0x20000..=0x2a6df | 0x2a700..=0x2b81f
        | 0x2b820..=0x2ceaf | 0x2f800..=0x2fa1f)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> Vec<u32> {
        let pieces = "[UNK] [CLS] [SEP] un ##aff ##able ! ## naive 京".replace(' ', "\n");
        WordPiece::parse(&pieces).unwrap().encode(text, 8)
    }

    #[test]
    fn words_are_cut_into_the_longest_pieces() {
        assert_eq!(encode("Unaffable!"), [1, 3, 4, 5, 6, 2]);
        assert_eq!(encode("una ##"), [1, 0, 0, 0, 2]);
        assert_eq!(encode("NAÏVE\u{200b} 京京"), [1, 8, 9, 9, 2]);
        assert_eq!(encode(&"un".repeat(51)), [1, 0, 2]);
    }

    #[test]
    fn no_text_and_much_text() {
        assert_eq!(encode(""), [1, 2]);
        assert_eq!(encode(&"! ".repeat(20)), [1, 6, 6, 6, 6, 6, 6, 2]);
        assert_eq!(WordPiece::parse("[UNK]\n[CLS]\n[SEP]").unwrap().encode("a b c", 0), [1, 2]);
        assert!(WordPiece::parse("a\nb").is_err());
    }
}
