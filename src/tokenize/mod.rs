//! Text to token ids, as the reference's tokenizer does it.
//!
//! Knows tokenizer files and the sentence-transformers truncation rule; knows nothing of weights or batches.

use crate::error::{Error, Result};
use crate::model::TokenizerDesc;

/// The token ids of one text, special tokens included, cut to the limit. Never padded.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// `[seqlen]`
    pub ids: Vec<u32>,
    /// `[seqlen]`
    pub type_ids: Vec<u32>,
    /// Tokens of the whole text, special tokens included; more than `ids.len()` if it was cut.
    pub total_tokens: usize,
}

impl Encoding {
    /// Whether the text was longer than the limit.
    pub fn truncated(&self) -> bool {
        self.total_tokens > self.ids.len()
    }
}

/// A model's tokenizer. Shared by threads.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Builds the tokenizer from `tokenizer.json` or `vocab.txt`, with what `tokenizer_config.json` overrides.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Config`] or [`Error::Tokenizer`], naming the file.
    pub fn load(desc: &TokenizerDesc) -> Result<Self> {
        Err(Error::unsupported(&desc.dir, "nothing yet"))
    }

    /// Special tokens that every text gets: 2 for BERT (`[CLS]`, `[SEP]`).
    pub fn special_tokens(&self) -> usize {
        2
    }

    /// Encodes `prompt` + `text` and cuts the result to `max_seq_length` tokens, special tokens included.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses the text.
    pub fn encode(&self, prompt: &str, text: &str, max_seq_length: usize) -> Result<Encoding> {
        let _ = (prompt, text, max_seq_length);
        Ok(Encoding::default())
    }
}
