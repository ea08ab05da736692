//! Text to ids, without special tokens around it: by our own tokenizer where it gives the crate's ids, else by the crate.

use super::{Side, hf, wordpiece};
use crate::error::Result;

/// Memory that is kept from one text to the next; what a longer one takes beyond goes back.
const KEPT_BYTES: usize = 1 << 17;
/// Where a text is read in pieces, of about this size: the crate takes 100 to 450 bytes of memory for a byte of text.
pub(super) const PIECE_BYTES: usize = 1 << 16;

/// Text to ids.
#[derive(Debug)]
pub(super) enum TextTokenizer {
    WordPiece(Box<wordpiece::WordPiece>),
    Crate(Box<hf::Tokenizer>),
}

/// Memory that texts are tokenised in, one after the other: with it a text as long as those before it takes no other.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// A prompt and a text.
    joined: String,
    words: wordpiece::Scratch,
}

impl TextTokenizer {
    /// Whether an id is that of a special token.
    pub(super) fn is_special(&self, id: u32) -> bool {
        match self {
            Self::WordPiece(own) => own.added(id).is_some_and(|token| token.special),
            Self::Crate(inner) => inner.is_special(id),
        }
    }

    /// Gives the ids of `prompt` + `text` to `out`.
    pub(super) fn encode(
        &self,
        prompt: &str,
        text: &str,
        scratch: &mut Scratch,
        out: &mut Tokens<'_>,
    ) -> Result<()> {
        let Scratch { joined, words } = scratch;
        let text = if prompt.is_empty() {
            text
        } else {
            joined.clear();
            joined.push_str(prompt);
            joined.push_str(text);
            &*joined
        };
        match self {
            Self::WordPiece(own) => own.encode(text, words, out),
            Self::Crate(inner) => inner.encode(text, out)?,
        }
        joined.shrink_to(KEPT_BYTES);
        words.shrink_to(KEPT_BYTES);
        Ok(())
    }
}

/// Where the ids of a text go, of which so many are kept, at the one end or the other; all are counted.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    ids: &'a mut Vec<u32>,
    /// Where the text's own begin.
    start: usize,
    keep: usize,
    cut: Side,
    total: usize,
}

impl<'a> Tokens<'a> {
    /// Puts ids behind those that are there.
    pub(super) fn new(ids: &'a mut Vec<u32>, keep: usize, cut: Side) -> Self {
        Self { start: ids.len(), ids, keep, cut, total: 0 }
    }

    #[inline]
    pub(super) fn push(&mut self, id: u32) {
        self.total += 1;
        match self.cut {
            Side::Right if self.total > self.keep => {}
            Side::Right => self.ids.push(id),
            Side::Left => {
                self.ids.push(id);
                // now and then, so that each id is moved once at most on the average
                if self.ids.len() - self.start > self.keep.saturating_mul(2) {
                    self.drop_left();
                }
            }
        }
    }

    /// How many tokens there were; of those, what is kept is in its place.
    pub(super) fn finish(mut self) -> usize {
        if self.cut == Side::Left {
            self.drop_left();
        }
        self.total
    }

    fn drop_left(&mut self) {
        let surplus = (self.ids.len() - self.start).saturating_sub(self.keep);
        self.ids.drain(self.start..self.start + surplus);
    }
}

/// Cuts a text into pieces of at least `bytes` bytes, but for the last; each cut is before a space or newline.
pub(super) fn pieces(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let least = bytes.max(1); // a piece may start with a space, and must not be empty
        let end = match rest.as_bytes().get(least..) {
            None => rest.len(),
            Some(tail) => {
                tail.iter().position(|b| matches!(b, b' ' | b'\n')).map_or(rest.len(), |i| least + i)
            }
        };
        let (piece, tail) = rest.split_at(end);
        rest = tail;
        (!piece.is_empty()).then_some(piece)
    })
}

/// Whether a space always parts the tokens of a BERT tokenizer that has these added tokens, and the parts know nothing of
/// each other.
///
/// BERT's normalisation maps characters one by one, but for the order of combining marks, which does not cross
/// a space; its pre-tokenizer drops spaces and splits there. An added token must not reach across: those with a
/// space in them would, and so would those that are normalised to something with spaces (CJK).
pub(super) fn parts_at_spaces<'a>(mut added: impl Iterator<Item = &'a str>) -> bool {
    added.all(|content| content.bytes().all(|b| b.is_ascii_graphic()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::config;

    #[test]
    fn pieces_are_the_text() {
        for text in config::fixture_texts() {
            for bytes in [0, 1, 2, 7, 100, usize::MAX] {
                assert_eq!(pieces(&text, bytes).collect::<String>(), text);
                assert!(pieces(&text, bytes).skip(1).all(|p| p.starts_with([' ', '\n'])));
            }
        }
        assert_eq!(pieces("  a b", 0).collect::<Vec<_>>(), [" ", " a", " b"]);
        assert_eq!(pieces("", 0).count(), 0);
    }

    #[test]
    fn added_tokens_with_spaces_forbid_pieces() {
        assert!(parts_at_spaces(["[SEP]", "<new>"].into_iter()));
        for content in ["new york", "中", "a\u{a0}b"] {
            assert!(!parts_at_spaces([content].into_iter()), "{content}");
        }
    }

    #[test]
    fn tokens_keeps_one_end_and_counts_all() {
        for n in 0..40 {
            for keep in (0..10).chain([usize::MAX]) {
                for cut in [Side::Left, Side::Right] {
                    let mut ids = vec![100, 101];
                    let mut tokens = Tokens::new(&mut ids, keep, cut);
                    (0..n).for_each(|id| tokens.push(id));
                    assert!(tokens.ids.len() - 2 <= keep.saturating_mul(2), "bounded");
                    assert_eq!(tokens.finish(), n as usize);
                    let kept = keep.min(n as usize) as u32;
                    let want = if cut == Side::Left { n - kept..n } else { 0..kept };
                    assert_eq!(ids, [100, 101].into_iter().chain(want).collect::<Vec<_>>());
                }
            }
        }
    }
}
