//! A vocabulary of pieces as the files give it: `vocab.txt`, or the map in `tokenizer.json`. Knows nothing of look-ups.

use crate::error::{Error, Result};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde::{Deserialize, de};
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

/// Tokens and their ids. Of a token that is there twice the last one counts.
#[derive(Debug, Default)]
pub(super) struct Vocabulary {
    /// All tokens, end to end.
    text: String,
    tokens: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    start: u32,
    len: u32,
    id: u32,
}

impl Vocabulary {
    /// One token a line, its id the line's number from 0. As in the reference, spaces at the end of a line are not
    /// the token's.
    pub(super) fn from_lines(path: &Path, bytes: &[u8]) -> Result<Self> {
        let refuse = |message: String| Error::Tokenizer { path: path.into(), message };
        let text = std::str::from_utf8(bytes).map_err(|e| {
            let line = bytes[..e.valid_up_to()].iter().filter(|&&b| b == b'\n').count() + 1;
            refuse(format!("line {line} is not UTF-8"))
        })?;
        let mut vocabulary = Self::default();
        for (i, line) in text.lines().enumerate() {
            let id = u32::try_from(i).map_err(|_| refuse("more than 2^32 lines".into()))?;
            vocabulary.push(line.trim_end(), id).map_err(|e| refuse(e.into()))?;
        }
        Ok(vocabulary)
    }

    pub(super) fn from_map(map: &HashMap<String, u32>) -> std::result::Result<Self, &'static str> {
        let mut vocabulary = Self::default();
        map.iter().try_for_each(|(token, &id)| vocabulary.push(token, id))?;
        Ok(vocabulary)
    }

    /// How many, counting those twice that are there twice.
    pub(super) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Token number `i`, and its id.
    pub(super) fn get(&self, i: usize) -> (&str, u32) {
        let Place { start, len, id } = self.tokens[i];
        (&self.text[start as usize..(start + len) as usize], id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        (0..self.len()).map(|i| self.get(i))
    }

    fn push(&mut self, token: &str, id: u32) -> std::result::Result<(), &'static str> {
        let start = self.text.len();
        self.text.push_str(token);
        self.end(start, id)
    }

    /// What was put behind `start` is a token.
    fn end(&mut self, start: usize, id: u32) -> std::result::Result<(), &'static str> {
        let end = u32::try_from(self.text.len()).map_err(|_| "a vocabulary of more than 4 GiB")?;
        let start = start as u32; // below `end`
        self.tokens.push(Place { start, len: end - start, id });
        Ok(())
    }
}

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Map)
    }
}

struct Map;

impl<'de> Visitor<'de> for Map {
    type Value = Vocabulary;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Vocabulary, A::Error> {
        let mut vocabulary = Vocabulary::default();
        loop {
            let start = vocabulary.text.len();
            match map.next_key_seed(Key(&mut vocabulary.text))? {
                Some(()) => vocabulary.end(start, map.next_value()?).map_err(de::Error::custom)?,
                None => return Ok(vocabulary),
            }
        }
    }
}

/// Puts a key behind a text, without a string of its own.
struct Key<'a>(&'a mut String);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> std::result::Result<(), E> {
        self.0.push_str(key);
        Ok(())
    }
}
