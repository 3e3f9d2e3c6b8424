//! Texts and alphabets.

use std::error::Error;
use std::fs;
use std::path::Path;

/// A text of at least two characters.
#[derive(Debug)]
pub struct Text(String);

/// The characters that a model knows, sorted; their places are their numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Alphabet(Vec<char>);

impl Text {
    pub fn load(path: &Path) -> Result<Self, Box<dyn Error>> {
        let fail = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let text = fs::read_to_string(path).map_err(|error| fail(&error))?;
        Self::new(text).map_err(|why| fail(&why).into())
    }

    fn new(text: String) -> Result<Self, &'static str> {
        if text.chars().nth(1).is_none() { Err("a text has at least two characters") } else { Ok(Self(text)) }
    }

    pub fn alphabet(&self) -> Alphabet {
        let mut chars: Vec<char> = self.0.chars().collect();
        chars.sort_unstable();
        chars.dedup();
        Alphabet(chars)
    }

    /// The numbers of the characters.
    pub fn encode(&self, alphabet: &Alphabet) -> Result<Vec<usize>, String> {
        self.0
            .chars()
            .map(|c| alphabet.number(c).ok_or_else(|| format!("the model does not know the character {c:?}")))
            .collect()
    }
}

impl Alphabet {
    /// From a string of all characters, each once and in order.
    pub fn from_sorted(chars: &str) -> Option<Self> {
        let chars: Vec<char> = chars.chars().collect();
        chars.is_sorted_by(|a, b| a < b).then_some(Self(chars))
    }

    pub fn as_string(&self) -> String {
        self.0.iter().collect()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn number(&self, c: char) -> Option<usize> {
        self.0.binary_search(&c).ok()
    }

    pub fn char(&self, number: usize) -> char {
        self.0.get(number).copied().unwrap_or('\u{fffd}')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_numbers_and_back() {
        let text = Text::new("banane".to_owned()).unwrap();
        let alphabet = text.alphabet();
        assert_eq!(alphabet.as_string(), "aben");
        assert_eq!(text.encode(&alphabet).unwrap(), [1, 0, 3, 0, 3, 2]);
        assert_eq!(alphabet.char(3), 'n');
        let other = Text::new("bär".to_owned()).unwrap();
        assert!(other.encode(&alphabet).unwrap_err().contains('ä'));
        assert!(Text::new("x".to_owned()).is_err());
    }

    #[test]
    fn an_alphabet_is_sorted_and_has_no_character_twice() {
        assert!(Alphabet::from_sorted("abz").is_some());
        assert!(Alphabet::from_sorted("aab").is_none() && Alphabet::from_sorted("ba").is_none());
    }
}
