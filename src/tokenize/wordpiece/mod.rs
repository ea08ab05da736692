//! The tokenizer of the BERT kind, in place of the crate's: BERT's normalisation, words apart at white space and
//! punctuation, each cut into the longest pieces of the vocabulary.
//!
//! The crate keeps for each character where it came from, in strings of their own for each word; here a text is read
//! once, its words are put together in one small buffer, and nothing is allocated. ASCII goes by tables; other
//! characters take the same steps one by one. Ids are the crate's for every text, which the tests hold it to; what cannot
//! be had exactly (`None` where it is made) is left to the crate. Knows no files.

use super::config::AddedToken;
use super::text::{self, PIECE_BYTES, Tokens};
use super::vocabulary::Vocabulary;
use added::{AddedTokens, Part, Patterns};
use pieces::{PADDING, Pieces};
use std::collections::HashSet;
use std::sync::Arc;
use unicode::Properties;

mod added;
mod normalize;
mod pieces;
#[cfg(test)]
mod tests;
mod unicode;

pub(super) use normalize::Normalizer;

/// Characters of the longest word that is not `[UNK]` whatever is in it, at most: the buffer of a word is as long. BERT's
/// own number is 100.
const MOST_CHARS: usize = 4096;

/// What it is made of.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) normalizer: Normalizer,
    pub(super) unk: String,
    /// In front of a piece that does not begin a word.
    pub(super) prefix: String,
    /// Longer words are unknown.
    pub(super) max_chars: usize,
}

/// Text to ids.
pub(super) struct WordPiece {
    pieces: Pieces,
    normalizer: Normalizer,
    unk: u32,
    prefix: String,
    max_chars: usize,
    added: AddedTokens,
    /// Found in the text as it is.
    raw: Patterns,
    /// Found in the text behind its normalisation.
    normalized: Patterns,
    /// Whether a text may be cut before a space without a change of its tokens.
    cut_at_spaces: bool,
    /// Of a byte that is part of a word and begins no added token, that byte in lower case if that is asked for; else 0.
    plain: [u8; 256],
    ascii: [Ascii; 128],
}

/// What an ASCII character is to the tokenizer.
#[derive(Debug, Clone, Copy)]
enum Ascii {
    /// Part of a word, as this byte.
    Letter(u8),
    Space,
    /// A word of its own, with this id.
    Punctuation(u32),
    Dropped,
}

/// Memory that one text after the other is tokenised in.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// The prefix's place, a word, and padding.
    word: Vec<u8>,
    /// Pieces of a word.
    pieces: Vec<u32>,
    run: normalize::Run,
    normalized: String,
}

impl Scratch {
    /// Gives memory back of which there is more than this.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        self.run.shrink_to(bytes / size_of::<(u8, char)>());
        self.normalized.shrink_to(bytes);
    }
}

impl WordPiece {
    /// Without added tokens.
    pub(super) fn new(parts: Parts) -> Option<Self> {
        let Parts { vocabulary, normalizer, unk, prefix, max_chars } = parts;
        if max_chars == 0 || max_chars > MOST_CHARS {
            return None;
        }
        let pieces = Pieces::new(vocabulary)?;
        let unk = pieces.id(&unk)?;
        let mut made = Self {
            pieces,
            normalizer,
            unk,
            prefix,
            max_chars,
            added: AddedTokens::default(),
            raw: Patterns::default(),
            normalized: Patterns::default(),
            cut_at_spaces: true,
            plain: [0; 256],
            ascii: [Ascii::Dropped; 128],
        };
        made.ascii = std::array::from_fn(|code| made.ask(code as u8));
        made.index();
        Some(made)
    }

    /// The id of a token of the vocabulary, added ones left out.
    pub(super) fn vocabulary_id(&self, token: &str) -> Option<u32> {
        self.pieces.id(token)
    }

    /// The added token of an id.
    pub(super) fn added(&self, id: u32) -> Option<&AddedToken> {
        self.added.get(id)
    }

    pub(super) fn added_id(&self, content: &str) -> Option<u32> {
        self.added.id(content)
    }

    pub(super) fn added_ids(&self) -> impl Iterator<Item = u32> {
        self.added.ids()
    }

    /// The highest id of the vocabulary.
    pub(super) fn highest_id(&self) -> u32 {
        self.pieces.ids().fold(0, u32::max)
    }

    /// The token of an id.
    pub(super) fn token(&self, id: u32) -> Option<String> {
        let of_vocabulary = || self.pieces.vocabulary().iter().find(|t| t.1 == id).map(|t| t.0.to_owned());
        self.added.get(id).map(|token| token.content.clone()).or_else(of_vocabulary)
    }

    /// Adds a token, or changes its flags; [`find_added`](Self::find_added) makes it be found.
    pub(super) fn add(&mut self, token: &AddedToken) {
        self.added.add(token, self.pieces.id(&token.content), self.pieces.count());
    }

    /// Takes added tokens over from the crate; `special`: those that are so.
    pub(super) fn set_added(&mut self, tokens: Vec<(u32, AddedToken)>, special: HashSet<String>) {
        self.added = AddedTokens::given(tokens, special);
    }

    /// Has added tokens found in texts, special ones unless they are to be split like other text.
    pub(super) fn find_added(mut self, split_special_tokens: bool) -> Option<Self> {
        let normalize = |content: &str| {
            let (mut run, mut out) = (Vec::new(), String::new());
            self.normalize(content, &mut run, |c| out.push(c));
            out
        };
        (self.raw, self.normalized) = self.added.patterns(split_special_tokens, normalize)?;
        self.cut_at_spaces = text::parts_at_spaces(self.added.tokens().map(|token| &token.content[..]));
        self.index();
        Some(self)
    }

    /// Gives the ids of a text to `out`.
    pub(super) fn encode(&self, text: &str, scratch: &mut Scratch, out: &mut Tokens<'_>) {
        let Scratch { word, pieces, run, normalized } = scratch;
        word.resize(self.prefix.len() + 4 * self.max_chars + PADDING, 0);
        run.clear();
        let mut words = Words { of: self, word, bytes: 0, chars: 0, pieces, out };
        if self.normalized.is_empty() {
            self.read(text, run, &mut words);
            return;
        }
        for piece in text::pieces(text, if self.cut_at_spaces { PIECE_BYTES } else { usize::MAX }) {
            self.raw.split(piece, |part| match part {
                Part::Token(id) => words.out.push(id),
                Part::Text(text) => {
                    normalized.clear();
                    self.normalize(text, run, |c| normalized.push(c));
                    self.normalized.split(normalized, |part| match part {
                        Part::Token(id) => words.out.push(id),
                        Part::Text(text) => {
                            text.chars().for_each(|c| words.put(c));
                            words.end();
                        }
                    });
                }
            });
        }
    }

    fn normalize(&self, text: &str, run: &mut normalize::Run, mut put: impl FnMut(char)) {
        text.chars().for_each(|c| self.normalizer.push(c, run, &mut put));
        self.normalizer.finish(run, &mut put);
    }

    /// Reads a text in which added tokens are found as it is: no string is made of it.
    fn read(&self, text: &str, run: &mut normalize::Run, words: &mut Words<'_, '_>) {
        let bytes = text.as_bytes();
        // nothing is looked for in front of `looked_for`
        let (mut at, mut looked_for) = (0, 0);
        loop {
            if run.is_empty() {
                at += words.put_plain(&bytes[at..]);
            }
            let Some(&byte) = bytes.get(at) else { break };
            if self.raw.begin_with(byte)
                && at >= looked_for
                && let Some((end, wanted)) = self.raw.at(text, at)
            {
                looked_for = end;
                if let Some(found) = wanted {
                    // white space that it may take along would be dropped all the same
                    self.normalizer.finish(run, &mut |c| words.put(c));
                    words.end();
                    words.out.push(found.id);
                    at = end;
                    continue;
                }
            }
            if byte.is_ascii() && run.is_empty() {
                words.put_ascii(self.ascii[usize::from(byte)]);
                at += 1;
                continue;
            }
            let Some(c) = text[at..].chars().next() else { break };
            if run.is_empty() && Properties::of(c).none() {
                words.put_letter(c);
            } else {
                self.normalizer.push(c, run, &mut |c| words.put(c));
            }
            at += c.len_utf8();
        }
        self.normalizer.finish(run, &mut |c| words.put(c));
        words.end();
    }

    /// What the steps of the normalisation, and the splitting, make of an ASCII character.
    fn ask(&self, code: u8) -> Ascii {
        let mut becomes = None;
        self.normalize(char::from(code).encode_utf8(&mut [0; 4]), &mut Vec::new(), |c| becomes = Some(c));
        match becomes {
            None => Ascii::Dropped,
            Some(c) if Properties::of(c).has(Properties::WHITESPACE) => Ascii::Space,
            Some(c) if Properties::of(c).has(Properties::PUNCTUATION) => {
                Ascii::Punctuation(self.pieces.id(c.encode_utf8(&mut [0; 4])).unwrap_or(self.unk))
            }
            Some(c) => Ascii::Letter(u8::try_from(c).expect("of ASCII the lower case is ASCII")),
        }
    }

    fn index(&mut self) {
        for (code, ascii) in self.ascii.iter().enumerate() {
            self.plain[code] = match ascii {
                Ascii::Letter(byte) if !self.raw.begin_with(code as u8) => *byte,
                Ascii::Letter(_) | Ascii::Space | Ascii::Punctuation(_) | Ascii::Dropped => 0,
            };
        }
    }
}

impl std::fmt::Debug for WordPiece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WordPiece")
            .field("pieces", &self.pieces.count())
            .field("normalizer", &self.normalizer)
            .field("added", &self.added)
            .finish_non_exhaustive()
    }
}

/// Puts words together from normalised characters, and cuts them into pieces.
struct Words<'a, 'o> {
    of: &'a WordPiece,
    /// The word is `word[prefix..][..bytes]`, unless it has more than `max_chars`.
    word: &'a mut [u8],
    bytes: usize,
    chars: usize,
    pieces: &'a mut Vec<u32>,
    out: &'a mut Tokens<'o>,
}

impl Words<'_, '_> {
    fn put(&mut self, c: char) {
        let properties = Properties::of(c);
        if properties.has(Properties::WHITESPACE) {
            self.end();
        } else if properties.has(Properties::PUNCTUATION) {
            self.end();
            self.put_letter(c);
            self.end();
        } else {
            self.put_letter(c);
        }
    }

    fn put_ascii(&mut self, ascii: Ascii) {
        match ascii {
            Ascii::Letter(byte) => self.put_letter(char::from(byte)),
            Ascii::Space => self.end(),
            Ascii::Punctuation(id) => {
                self.end();
                self.out.push(id);
            }
            Ascii::Dropped => {}
        }
    }

    fn put_letter(&mut self, c: char) {
        self.chars += 1;
        if self.chars <= self.of.max_chars {
            let start = self.of.prefix.len() + self.bytes;
            self.bytes += c.encode_utf8(&mut self.word[start..]).len();
        }
    }

    /// Puts the plain bytes that a text begins with; gives how many those are.
    #[inline]
    fn put_plain(&mut self, text: &[u8]) -> usize {
        let plain = &self.of.plain;
        let end = self.word.len() - PADDING;
        let room = &mut self.word[self.of.prefix.len() + self.bytes..end];
        let mut count = 0;
        for (place, &byte) in room.iter_mut().zip(text) {
            let byte = plain[usize::from(byte)];
            if byte == 0 {
                break;
            }
            *place = byte;
            count += 1;
        }
        self.bytes += count;
        if count == room.len() {
            // too long for any vocabulary: it only has to be read to its end
            count += text[count..].iter().take_while(|&&byte| plain[usize::from(byte)] != 0).count();
        }
        self.chars += count;
        count
    }

    /// Ends a word, if there is one.
    fn end(&mut self) {
        if self.chars == 0 {
            return;
        }
        let Self { of, word, out, .. } = self;
        let start = of.prefix.len();
        let end = start + self.bytes;
        if self.chars > of.max_chars {
            out.push(of.unk);
        } else if let Some(id) = of.pieces.id_at(word, start, end) {
            out.push(id);
        } else if cut(of, word, end, self.pieces) {
            self.pieces.iter().for_each(|&id| out.push(id));
        } else {
            out.push(of.unk);
        }
        (self.bytes, self.chars) = (0, 0);
    }
}

/// Cuts a word that is no piece into the longest pieces; false if a part of it begins with none. The word begins behind
/// the prefix's place, and is overwritten.
fn cut(of: &WordPiece, word: &mut [u8], end: usize, pieces: &mut Vec<u32>) -> bool {
    pieces.clear();
    let prefix = of.prefix.as_bytes();
    let mut start = prefix.len();
    // of the word, `start..end` is left; the look-up begins at `from`, where the prefix may stand
    let mut from = start;
    while start < end {
        let mut stop = end.min(from + of.pieces.longest_bytes());
        if stop == end && pieces.is_empty() {
            stop -= 1; // the word is none
        }
        let id = loop {
            if stop <= start {
                return false;
            }
            // not within a character
            if (stop == end || word[stop] & 0xc0 != 0x80)
                && let Some(id) = of.pieces.id_at(word, from, stop)
            {
                break id;
            }
            stop -= 1;
        };
        pieces.push(id);
        start = stop;
        // what was there is cut already
        from = start - prefix.len();
        word[from..start].copy_from_slice(prefix);
    }
    true
}
