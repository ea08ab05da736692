//! Two texts as one sequence, for models that score pairs.

use super::{Encoding, Scratch, Side, Tokenizer, Tokens};
use crate::error::{Error, Result};

/// The special tokens around and between two texts, as (id, type).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PairTemplate {
    pub(super) before: Vec<(u32, u32)>,
    /// Type of the first text's own tokens.
    pub(super) first_type: u32,
    pub(super) between: Vec<(u32, u32)>,
    pub(super) second_type: u32,
    pub(super) behind: Vec<(u32, u32)>,
}

impl PairTemplate {
    /// For tokenizers whose token types do not go into the model.
    pub(super) fn without_types(mut self) -> Self {
        let special = self.before.iter_mut().chain(&mut self.between).chain(&mut self.behind);
        special.for_each(|t| t.1 = 0);
        Self { first_type: 0, second_type: 0, ..self }
    }
}

impl Tokenizer {
    /// Drops token types of pairs, for a model that has none.
    pub(crate) fn without_pair_types(self) -> Self {
        Self { pair: self.pair.map(PairTemplate::without_types), ..self }
    }

    /// Special tokens that every pair gets: 3 for BERT (`[CLS] A [SEP] B [SEP]`).
    ///
    /// # Errors
    /// As [`encode_pair`](Self::encode_pair).
    pub fn pair_special_tokens(&self) -> Result<usize> {
        self.pair_template().map(|t| t.before.len() + t.between.len() + t.behind.len())
    }

    /// The highest token type that the encoding of a pair has.
    ///
    /// # Errors
    /// As [`encode_pair`](Self::encode_pair).
    pub fn highest_pair_type_id(&self) -> Result<u32> {
        let PairTemplate { before, first_type, between, second_type, behind } = self.pair_template()?;
        let special = before.iter().chain(between).chain(behind).map(|t| t.1);
        Ok(special.fold(*first_type.max(second_type), u32::max))
    }

    /// Encodes two texts as one sequence of at most `max_seq_length` tokens, special tokens included. Of a pair that is
    /// longer, the longer text is cut to what the shorter leaves, and both to half where both are longer than that
    /// (`longest_first`, as the tokenizers crate does it).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses a text, or has no form for pairs.
    pub fn encode_pair(&self, first: &str, second: &str, max_seq_length: usize) -> Result<Encoding> {
        let template = self.pair_template()?;
        let specials = template.before.len() + template.between.len() + template.behind.len();
        let room = max_seq_length.saturating_sub(specials);
        let mut scratch = Scratch::default();
        let mut of = |text: &str| -> Result<_> {
            let mut ids = Vec::new();
            let mut tokens = Tokens::new(&mut ids, room, self.cut);
            self.text.encode("", text, &mut scratch, &mut tokens)?;
            Ok((tokens.finish(), ids))
        };
        let ((first_tokens, first), (second_tokens, second)) = (of(first)?, of(second)?);
        let total_tokens = first_tokens + second_tokens + specials;
        let (keep_first, keep_second) = longest_first(first_tokens, second_tokens, room);
        let cut = |ids: Vec<u32>, keep: usize| match self.cut {
            Side::Right => ids[..keep].to_vec(),
            Side::Left => ids[ids.len() - keep..].to_vec(),
        };

        let seqlen = keep_first + keep_second + specials;
        let (mut ids, mut type_ids) = (Vec::with_capacity(seqlen), Vec::with_capacity(seqlen));
        let mut text = |text: Vec<u32>, type_id: u32, behind: &[(u32, u32)]| {
            type_ids.extend(std::iter::repeat_n(type_id, text.len()));
            type_ids.extend(behind.iter().map(|t| t.1));
            ids.extend(text);
            ids.extend(behind.iter().map(|t| t.0));
        };
        text(Vec::new(), 0, &template.before);
        text(cut(first, keep_first), template.first_type, &template.between);
        text(cut(second, keep_second), template.second_type, &template.behind);
        Ok(Encoding { ids, type_ids, total_tokens })
    }

    fn pair_template(&self) -> Result<&PairTemplate> {
        let path = || self.dir.join("tokenizer.json");
        self.pair.as_ref().map_err(|why| Error::Tokenizer { path: path(), message: why.clone() })
    }
}

/// How many tokens of each of two texts are kept where there is room for so many of both.
fn longest_first(first: usize, second: usize, room: usize) -> (usize, usize) {
    if first + second <= room {
        return (first, second);
    }
    let short = first.min(second);
    let (short, long) = if 2 * short <= room { (short, room - short) } else { (room / 2, room - room / 2) };
    if first <= second { (short, long) } else { (long, short) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::utils::truncation::{TruncationParams, truncate_encodings};

    #[test]
    fn longest_first_matches_the_crate() {
        let encoding = |n: usize| {
            let tokens = (0..n).map(|i| tokenizers::Token::new(i as u32, String::new(), (0, 0))).collect();
            tokenizers::Encoding::from_tokens(tokens, 0)
        };
        for first in 0..12 {
            for second in 0..12 {
                for room in 0..26 {
                    let params = TruncationParams { max_length: room, ..TruncationParams::default() };
                    let cut = truncate_encodings(encoding(first), Some(encoding(second)), &params).unwrap();
                    let want = (cut.0.get_ids().len(), cut.1.unwrap().get_ids().len());
                    assert_eq!(longest_first(first, second, room), want, "{first} {second} {room}");
                }
            }
        }
    }
}
