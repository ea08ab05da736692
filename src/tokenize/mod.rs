//! Text to token ids, as the reference's tokenizer does it.
//!
//! Knows tokenizer files and the sentence-transformers truncation rule; knows nothing of weights or batches.
//!
//! `tokenizer.json` alone is not the truth: for the tokenizers of the BERT kind, `tokenizer_config.json` says
//! how text is normalised, and special tokens come from up to four files. `config` reads the files and settles
//! which of them wins, `build` makes the tokenizer of that: `wordpiece`, which is our own, where that gives the ids of
//! the `tokenizers` crate, and else the crate, which `hf` knows.

mod build;
mod class;
mod config;
mod hf;
mod pair;
mod text;
mod vocabulary;
mod wordpiece;

use crate::error::Result;
use crate::model::TokenizerDesc;
use pair::PairTemplate;
use std::path::PathBuf;
use text::{TextTokenizer, Tokens};

pub(crate) use text::Scratch;

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
pub struct Tokenizer {
    text: TextTokenizer,
    template: Template,
    /// Or why there is none.
    pair: std::result::Result<PairTemplate, String>,
    dir: PathBuf,
    cut: Side,
}

/// The special tokens around a text, as (id, type).
#[derive(Debug, Clone, PartialEq, Eq)]
struct Template {
    prefix: Vec<(u32, u32)>,
    /// Type of the text's own tokens.
    type_id: u32,
    suffix: Vec<(u32, u32)>,
}

impl Template {
    /// For tokenizers whose token types do not go into the model.
    fn without_types(mut self) -> Self {
        self.prefix.iter_mut().chain(&mut self.suffix).for_each(|t| t.1 = 0);
        Self { type_id: 0, ..self }
    }
}

/// The end of a long text at which tokens are dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Left,
    Right,
}

impl Tokenizer {
    /// Builds the tokenizer from `tokenizer.json` or `vocab.txt`, with what `tokenizer_config.json` overrides.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Io`], [`Error::Config`] or [`Error::Tokenizer`], naming the file;
    /// [`Error::Unsupported`] for tokenizer classes that transformers rebuilds in a way not written here yet.
    ///
    /// [`Error::MissingFile`]: crate::Error::MissingFile
    /// [`Error::Io`]: crate::Error::Io
    /// [`Error::Config`]: crate::Error::Config
    /// [`Error::Tokenizer`]: crate::Error::Tokenizer
    /// [`Error::Unsupported`]: crate::Error::Unsupported
    pub fn load(desc: &TokenizerDesc) -> Result<Self> {
        let recipe = config::read(&desc.dir)?;
        let cut = recipe.cut;
        let (text, template, pair) = build::build(&recipe, desc.do_lower_case, desc.vocab_size)?;
        Ok(Self { text, template, pair, dir: desc.dir.clone(), cut })
    }

    /// Special tokens that every text gets: 2 for BERT (`[CLS]`, `[SEP]`).
    pub fn special_tokens(&self) -> usize {
        self.template.prefix.len() + self.template.suffix.len()
    }

    /// The highest token type that an encoding has.
    pub fn highest_type_id(&self) -> u32 {
        let Template { prefix, type_id, suffix } = &self.template;
        prefix.iter().chain(suffix).map(|t| t.1).fold(*type_id, u32::max)
    }

    /// Tokens of a prompt alone, as many as a pooling that leaves prompts out passes over: with the special
    /// tokens before it, without the one behind it (rule 46).
    ///
    /// # Errors
    /// As [`encode`](Self::encode).
    pub fn prompt_tokens(&self, prompt: &str, max_seq_length: usize) -> Result<usize> {
        let ids = self.encode("", prompt, max_seq_length)?.ids;
        // the last token is not counted if it is a special one, be it that of the template or the prompt's own
        let special =
            ids.last().is_some_and(|&id| !self.template.suffix.is_empty() || self.text.is_special(id));
        Ok(ids.len() - usize::from(special))
    }

    /// Encodes `prompt` + `text` and cuts the result to `max_seq_length` tokens, special tokens included.
    ///
    /// The whole text is tokenised and its tokens are cut, as the reference does it: a cut in the characters
    /// would not give the same tokens. A limit below [`special_tokens`](Self::special_tokens) leaves those.
    ///
    /// # Errors
    /// [`Error::Tokenizer`](crate::Error::Tokenizer) if the tokenizer refuses the text.
    pub fn encode(&self, prompt: &str, text: &str, max_seq_length: usize) -> Result<Encoding> {
        // most texts have fewer
        let guess = max_seq_length.min(self.special_tokens() + (prompt.len() + text.len()) / 3);
        let [ids, type_ids] = [(); 2].map(|()| Vec::with_capacity(guess));
        let mut encoding = Encoding { ids, type_ids, total_tokens: 0 };
        let Encoding { ids, type_ids, .. } = &mut encoding;
        encoding.total_tokens =
            self.encode_into(prompt, text, max_seq_length, &mut Scratch::default(), ids, type_ids)?;
        Ok(encoding)
    }

    /// As [`encode`](Self::encode), behind what `ids` and `type_ids` hold; gives the tokens of the whole text. With the
    /// memory of texts as long before it, our own tokenizer takes no other. Behind an error it is not said what was put there.
    pub(crate) fn encode_into(
        &self,
        prompt: &str,
        text: &str,
        max_seq_length: usize,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
        type_ids: &mut Vec<u32>,
    ) -> Result<usize> {
        let Template { prefix, type_id, suffix } = &self.template;
        let keep = max_seq_length.saturating_sub(self.special_tokens());
        ids.extend(prefix.iter().map(|t| t.0));
        let start = ids.len();
        let mut tokens = Tokens::new(ids, keep, self.cut);
        self.text.encode(prompt, text, scratch, &mut tokens)?;
        let total = tokens.finish();
        let kept = ids.len() - start;
        ids.extend(suffix.iter().map(|t| t.0));
        type_ids.extend(prefix.iter().map(|t| t.1));
        type_ids.extend(std::iter::repeat_n(*type_id, kept));
        type_ids.extend(suffix.iter().map(|t| t.1));
        Ok(total + self.special_tokens())
    }
}
