//! Builds the tokenizer with the `tokenizers` crate.
//!
//! The crate's own truncation, padding and special-token template are taken off: cutting and the template are
//! done by [`Tokenizer`](super::Tokenizer), which must count the tokens before the cut. Knows the crate; knows
//! nothing of files.

use super::build::{self, Built, TakesTokens};
use super::config::{AddedToken, Bert, Kind, Recipe};
use super::text::{PIECE_BYTES, TextTokenizer, Tokens, parts_at_spaces, pieces};
use super::vocabulary::Vocabulary;
use super::wordpiece::{Normalizer, Parts, WordPiece};
use super::{PairTemplate, Template};
use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokenizers::models::ModelWrapper;
use tokenizers::models::wordpiece::WordPiece as Model;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NormalizerWrapper, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// Text to ids, without special tokens around it.
#[derive(Debug)]
pub(super) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// Whether a text may be cut before a space without a change of its tokens.
    cut_at_spaces: bool,
}

impl Tokenizer {
    /// Whether an id is that of a special token.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// Gives the ids of a text to `out`.
    pub(super) fn encode(&self, text: &str, out: &mut Tokens<'_>) -> Result<()> {
        self.encode_in_pieces(text, if self.cut_at_spaces { PIECE_BYTES } else { usize::MAX }, out)
    }

    fn encode_in_pieces(&self, text: &str, bytes: usize, out: &mut Tokens<'_>) -> Result<()> {
        for piece in pieces(text, bytes) {
            // the fast form: no offsets into the text
            let tokens = guarded(&self.path, || {
                self.inner.encode_fast(piece, false).map_err(|e| refused(&self.path, e))
            })?;
            tokens.get_ids().iter().for_each(|&id| out.push(id));
        }
        Ok(())
    }
}

/// Calls what calls the crate, which panics at some files that are wrong: an error like any other.
fn guarded<T>(path: &Path, f: impl FnOnce() -> Result<T>) -> Result<T> {
    // nothing that a panic may leave half done is used again: a tokenizer that is being built is dropped, and a
    // built one is only read, but for its cache of words, which it does without where that is locked
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let message = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("no message");
        Err(Error::Tokenizer {
            path: path.into(),
            message: format!("the tokenizer cannot work with it: {message}"),
        })
    })
}

/// As [`build::build`]; what the crate builds and our own code covers goes to that.
pub(super) fn build(recipe: &Recipe, lowercase_first: bool, vocab_size: usize) -> Result<Built> {
    // the crate panics at some files that are wrong
    guarded(&recipe.path, || build_unguarded(recipe, lowercase_first, vocab_size))
}

fn build_unguarded(recipe: &Recipe, lowercase_first: bool, vocab_size: usize) -> Result<Built> {
    let path = &recipe.path;
    let fail = |message| build::fail(recipe, message);
    let mut inner = crate_tokenizer(recipe, lowercase_first)?;

    let (template, pair) = match recipe.around {
        Some(_) => build::around(recipe, &inner)?,
        None => {
            let (template, pair) = (template(&inner).map_err(fail)?, pair_template(&inner));
            match recipe.types {
                true => (template, pair),
                false => (template.without_types(), pair.map(PairTemplate::without_types)),
            }
        }
    };
    inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    let highest = inner.get_vocab(true).into_values().chain(build::specials(&template, &pair)).max();
    build::check_highest(recipe, highest, vocab_size, |id| inner.id_to_token(id))?;

    let text = match own(&inner) {
        Some(own) => TextTokenizer::WordPiece(Box::new(own)),
        None => {
            let is_bert = matches!(recipe.kind, Kind::Bert(_));
            let cut_at_spaces = is_bert && parts_at_spaces(recipe.added.iter().map(|t| &t.content[..]));
            TextTokenizer::Crate(Box::new(Tokenizer { inner, path: path.clone(), cut_at_spaces }))
        }
    };
    Ok((text, template, pair))
}

/// The crate's tokenizer of a recipe, its post-processor still with it.
pub(super) fn crate_tokenizer(recipe: &Recipe, lowercase_first: bool) -> Result<tokenizers::Tokenizer> {
    let path = &recipe.path;
    let mut inner = match &recipe.kind {
        Kind::Json(json) => tokenizers::Tokenizer::from_bytes(json).map_err(|e| refused(path, e))?,
        Kind::Bert(bert) => bert_tokenizer(bert).map_err(|message| build::fail(recipe, message))?,
    };
    inner.with_truncation(None).map_err(|e| refused(path, e))?;
    inner.with_padding(None);
    if lowercase_first {
        let normalizer = lowercased(inner.get_normalizer().cloned());
        inner.with_normalizer(normalizer).map_err(|e| refused(path, e))?;
    }
    build::add_tokens(recipe, &mut inner)?;
    inner.set_encode_special_tokens(recipe.split_special_tokens);
    Ok(inner)
}

impl TakesTokens for tokenizers::Tokenizer {
    fn is_added(&self, content: &str) -> bool {
        self.get_added_vocabulary().get_vocab().contains_key(content)
    }

    fn add(&mut self, token: &AddedToken) -> std::result::Result<(), String> {
        let new = tokenizers::AddedToken::from(token.content.as_str(), token.special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized);
        self.add_tokens([new]).map(drop).map_err(|e| e.to_string())
    }

    fn id(&self, content: &str) -> Option<u32> {
        self.token_to_id(content)
    }

    fn vocabulary_id(&self, content: &str) -> Option<u32> {
        tokenizers::Model::token_to_id(self.get_model(), content)
    }
}

/// Our own form of a tokenizer that is of the BERT kind in all its parts.
pub(super) fn own(inner: &tokenizers::Tokenizer) -> Option<WordPiece> {
    let normalizer = inner.get_normalizer()?;
    let normalizers = if let NormalizerWrapper::Sequence(sequence) = normalizer {
        sequence.as_ref()
    } else {
        std::slice::from_ref(normalizer)
    };
    let (lowercase_first, bert) = match normalizers {
        [NormalizerWrapper::BertNormalizer(bert)] => (false, bert),
        [NormalizerWrapper::Lowercase(_), NormalizerWrapper::BertNormalizer(bert)] => (true, bert),
        _ => return None,
    };
    let Some(PreTokenizerWrapper::BertPreTokenizer(_)) = inner.get_pre_tokenizer() else { return None };
    let ModelWrapper::WordPiece(model) = inner.get_model() else { return None };
    let parts = Parts {
        vocabulary: Arc::new(Vocabulary::from_map(&tokenizers::Model::get_vocab(model)).ok()?),
        normalizer: Normalizer {
            lowercase_first,
            clean_text: bert.clean_text,
            chinese_chars: bert.handle_chinese_chars,
            strip_accents: bert.strip_accents.unwrap_or(bert.lowercase),
            lowercase: bert.lowercase,
        },
        unk: model.unk_token.clone(),
        prefix: model.continuing_subword_prefix.clone(),
        max_chars: model.max_input_chars_per_word,
    };
    let added = inner.get_added_vocabulary();
    let tokens: Vec<_> = inner
        .get_added_tokens_decoder()
        .into_iter()
        .map(|(id, t)| {
            let token = AddedToken {
                id: Some(id),
                content: t.content,
                single_word: t.single_word,
                lstrip: t.lstrip,
                rstrip: t.rstrip,
                normalized: t.normalized,
                special: t.special,
            };
            (id, token)
        })
        .collect();
    if tokens.len() != added.get_vocab().len() {
        return None; // two with one id
    }
    let special =
        tokens.iter().map(|(_, t)| &t.content).filter(|c| added.is_special_token(c)).cloned().collect();
    let mut own = WordPiece::new(parts)?;
    own.set_added(tokens, special);
    own.find_added(added.get_encode_special_tokens())
}

/// The tokenizer that transformers builds for the BERT classes, without added tokens.
fn bert_tokenizer(bert: &Bert) -> std::result::Result<tokenizers::Tokenizer, String> {
    if bert.vocabulary.iter().all(|(token, _)| token != bert.unk) {
        return Err(format!("special token '{}' is not in the vocabulary", bert.unk));
    }
    // the crate does not export the type of its map: an empty one comes from here
    let mut vocab = Model::read_bytes(b"").map_err(|e| e.to_string())?;
    vocab.extend(bert.vocabulary.iter().map(|(token, id)| (token.to_owned(), id)));
    let model =
        Model::builder().vocab(vocab).unk_token(bert.unk.clone()).build().map_err(|e| e.to_string())?;
    let normalizer = BertNormalizer::new(true, bert.chinese_chars, bert.strip_accents, bert.lowercase);
    let mut inner = tokenizers::Tokenizer::new(model);
    inner.with_normalizer(Some(normalizer)).map_err(|e| e.to_string())?;
    inner.with_pre_tokenizer(Some(BertPreTokenizer));
    Ok(inner)
}

/// As sentence-transformers does it: in front of everything, unless there is a plain lower-casing already.
/// That of a BERT normalizer does not count; lower-casing twice changes nothing.
fn lowercased(normalizer: Option<NormalizerWrapper>) -> Option<NormalizerWrapper> {
    let is_lowercase = |n: &NormalizerWrapper| matches!(n, NormalizerWrapper::Lowercase(_));
    let rest = match normalizer {
        None => vec![],
        Some(NormalizerWrapper::Sequence(sequence)) => sequence.as_ref().to_vec(),
        Some(one) => vec![one],
    };
    let mut all = vec![];
    if !rest.iter().any(is_lowercase) {
        all.push(NormalizerWrapper::Lowercase(Lowercase));
    }
    all.extend(rest);
    Some(NormalizerWrapper::Sequence(Sequence::new(all)))
}

/// What the post-processor puts around a text, learnt from a text of one token.
fn template(inner: &tokenizers::Tokenizer) -> std::result::Result<Template, String> {
    let token = tokenizers::Token::new(0, String::new(), (0, 0));
    let probe = tokenizers::Encoding::from_tokens(vec![token], 0);
    let around = inner.post_process(probe, None, true).map_err(|e| e.to_string())?;
    let tokens: Vec<(u32, u32)> =
        around.get_ids().iter().copied().zip(around.get_type_ids().iter().copied()).collect();
    let own: Vec<usize> = (0..tokens.len()).filter(|&i| around.get_special_tokens_mask()[i] == 0).collect();
    let [at] = own[..] else {
        return Err(format!("the post_processor puts a text's tokens in {} times, not once", own.len()));
    };
    Ok(Template { prefix: tokens[..at].to_vec(), type_id: tokens[at].1, suffix: tokens[at + 1..].to_vec() })
}

/// What the post-processor puts around two texts, learnt from texts of one token each.
fn pair_template(inner: &tokenizers::Tokenizer) -> std::result::Result<PairTemplate, String> {
    let probe = |id, type_id| {
        let token = tokenizers::Token::new(id, String::new(), (0, 0));
        tokenizers::Encoding::from_tokens(vec![token], type_id)
    };
    let around = inner.post_process(probe(0, 0), Some(probe(1, 0)), true).map_err(|e| e.to_string())?;
    let tokens: Vec<(u32, u32)> =
        around.get_ids().iter().copied().zip(around.get_type_ids().iter().copied()).collect();
    let own: Vec<usize> = (0..tokens.len()).filter(|&i| around.get_special_tokens_mask()[i] == 0).collect();
    match own[..] {
        [a, b] if (tokens[a].0, tokens[b].0) == (0, 1) => Ok(PairTemplate {
            before: tokens[..a].to_vec(),
            first_type: tokens[a].1,
            between: tokens[a + 1..b].to_vec(),
            second_type: tokens[b].1,
            behind: tokens[b + 1..].to_vec(),
        }),
        _ => Err("the post_processor does not put a pair's texts in once each, in their order".into()),
    }
}

fn refused(path: &Path, e: tokenizers::Error) -> Error {
    Error::Tokenizer { path: path.into(), message: e.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenize::{Side, config};

    fn tokenizer(name: &str) -> Tokenizer {
        let recipe = config::read(&config::fixtures().join("tokenizers").join(name)).unwrap();
        let inner = crate_tokenizer(&recipe, false).unwrap();
        Tokenizer { inner, path: recipe.path, cut_at_spaces: true }
    }

    #[test]
    fn ids_in_pieces_match_whole() {
        let variants = ["plain", "config-cased", "config-keeps-accents", "config-no-chinese", "added-tokens"];
        for name in variants {
            let tokenizer = tokenizer(name);
            let ids = |text: &str, bytes: usize| {
                let mut ids = Vec::new();
                let mut tokens = Tokens::new(&mut ids, usize::MAX, Side::Right);
                tokenizer.encode_in_pieces(text, bytes, &mut tokens).unwrap();
                ids
            };
            for text in config::fixture_texts() {
                let whole = ids(&text, usize::MAX);
                for bytes in [0, 100] {
                    assert!(ids(&text, bytes) == whole, "{name}: {bytes}: {text:.200?}");
                }
            }
        }
    }
}
