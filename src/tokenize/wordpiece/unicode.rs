//! What the BERT tokenizer asks of a character, in one byte: the answers of the crates that the reference asks.
//!
//! Those crates search sorted tables, a dozen for each character. Here a page of 256 characters is asked once, when the
//! first of them is met, and kept for the life of the process. Knows no flags of a tokenizer.

use std::sync::OnceLock;
use unicode_categories::UnicodeCategories;
use unicode_normalization_alignments::char::{canonical_combining_class, decompose_canonical};

const PAGES: usize = (char::MAX as usize >> 8) + 1;

/// A page is made once, by whichever thread comes first; then it is read without a lock.
static TABLE: [OnceLock<Box<[Properties; 256]>>; PAGES] = [const { OnceLock::new() }; PAGES];

/// What is true of a character. Most letters have none of these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Properties(u8);

impl Properties {
    /// Cleaning drops it.
    pub(super) const DROPPED: Self = Self(1);
    pub(super) const WHITESPACE: Self = Self(1 << 1);
    pub(super) const PUNCTUATION: Self = Self(1 << 2);
    /// A word of its own where the tokenizer is told so.
    pub(super) const CHINESE: Self = Self(1 << 3);
    /// NFD makes something else of it.
    pub(super) const DECOMPOSES: Self = Self(1 << 4);
    /// Its canonical combining class is not 0: NFD may move it.
    pub(super) const MOVES: Self = Self(1 << 5);
    /// Stripping of accents drops it.
    pub(super) const ACCENT: Self = Self(1 << 6);
    /// Lower case is something else.
    pub(super) const UPPERCASE: Self = Self(1 << 7);

    pub(super) fn of(c: char) -> Self {
        let code = c as usize;
        TABLE[code >> 8].get_or_init(|| page(code >> 8))[code & 255]
    }

    pub(super) fn none(self) -> bool {
        self.0 == 0
    }

    /// Whether it has this property, or one of these.
    pub(super) fn has(self, property: Self) -> bool {
        self.0 & property.0 != 0
    }

    pub(super) fn combining_class(self, c: char) -> u8 {
        if self.has(Self::MOVES) { canonical_combining_class(c) } else { 0 }
    }

    fn ask(c: char) -> Self {
        let mut decomposes = false;
        decompose_canonical(c, |part| decomposes |= part != c);
        let uppercase = !c.to_lowercase().eq([c]);
        let all = [
            (Self::DROPPED, is_dropped(c)),
            (Self::WHITESPACE, c.is_whitespace()),
            (Self::PUNCTUATION, c.is_ascii_punctuation() || c.is_punctuation()),
            (Self::CHINESE, is_chinese(c)),
            (Self::DECOMPOSES, decomposes),
            (Self::MOVES, canonical_combining_class(c) != 0),
            (Self::ACCENT, c.is_mark_nonspacing()),
            (Self::UPPERCASE, uppercase),
        ];
        Self(all.iter().fold(0, |bits, (property, has)| bits | if *has { property.0 } else { 0 }))
    }
}

fn page(number: usize) -> Box<[Properties; 256]> {
    let of = |low: usize| char::from_u32((number << 8 | low) as u32).map_or(Properties(0), Properties::ask);
    Box::new(std::array::from_fn(of))
}

/// Control, format and private characters, but for those that count as white space; and two that stand for nothing.
fn is_dropped(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        _ => c.is_other(),
    }
}

/// The blocks of CJK ideographs that the reference names: it leaves a gap below 2B920, where extension E begins at 2B820.
fn is_chinese(c: char) -> bool {
    matches!(
        u32::from(c),
        0x4E00..=0x9FFF
            | 0x3400..=0x4DBF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F
            | 0x2B920..=0x2CEAF
            | 0xF900..=0xFAFF
            | 0x2F800..=0x2FA1F
    )
}
