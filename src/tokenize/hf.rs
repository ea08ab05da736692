//! Builds the tokenizer with the `tokenizers` crate.
//!
//! The crate's own truncation, padding and special-token template are taken off: cutting and the template are
//! done by [`Tokenizer`](super::Tokenizer), which must count the tokens before the cut. Knows the crate; knows
//! nothing of files.

use super::config::{AddedToken, Bert, Kind, Recipe};
use super::{PairTemplate, Template};
use crate::error::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use tokenizers::Model;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::{BertNormalizer, Lowercase, NormalizerWrapper, Sequence};
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;

/// Long texts are tokenised in pieces of about this size: the crate takes 100 to 450 bytes of memory for a byte
/// of text.
const PIECE_BYTES: usize = 1 << 16;

/// Text to ids, without special tokens around it and without a limit.
#[derive(Debug)]
pub(super) struct TextTokenizer {
    inner: tokenizers::Tokenizer,
    path: PathBuf,
    /// Whether a text may be cut before a space without a change of its tokens.
    cut_at_spaces: bool,
}

impl TextTokenizer {
    /// Whether an id is that of a special token.
    pub(super) fn is_special(&self, id: u32) -> bool {
        self.inner.get_added_tokens_decoder().get(&id).is_some_and(|t| t.special)
    }

    /// The ids of a whole text.
    pub(super) fn ids(&self, text: &str) -> Result<Vec<u32>> {
        self.ids_in_pieces(text, if self.cut_at_spaces { PIECE_BYTES } else { usize::MAX })
    }

    fn ids_in_pieces(&self, text: &str, bytes: usize) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for piece in pieces(text, bytes) {
            // the fast form: no offsets into the text
            let tokens = guarded(&self.path, || {
                self.inner.encode_fast(piece, false).map_err(|e| refused(&self.path, e))
            })?;
            ids.extend_from_slice(tokens.get_ids());
        }
        Ok(ids)
    }
}

/// Cuts a text into pieces of at least `bytes` bytes, but for the last; each cut is before a space or newline.
fn pieces(text: &str, bytes: usize) -> impl Iterator<Item = &str> {
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

/// Whether a space always parts tokens, and the parts know nothing of each other.
///
/// BERT's normalisation maps characters one by one, but for the order of combining marks, which does not cross
/// a space; its pre-tokenizer drops spaces and splits there. An added token must not reach across: those with a
/// space in them would, and so would those that are normalised to something with spaces (CJK).
fn parts_at_spaces(added: &[AddedToken]) -> bool {
    added.iter().all(|t| t.content.bytes().all(|b| b.is_ascii_graphic()))
}

/// The tokenizer, and what it puts around a text and two texts, or why it has no form for two.
type Built = (TextTokenizer, Template, std::result::Result<PairTemplate, String>);

/// Builds what the files describe. `lowercase_first` is the `do_lower_case` of the transformer module, which
/// comes before the tokenizer's own normalisation. Every id must be below `vocab_size`.
pub(super) fn build(recipe: Recipe, lowercase_first: bool, vocab_size: usize) -> Result<Built> {
    let path = recipe.path.clone();
    guarded(&path, || build_unguarded(recipe, lowercase_first, vocab_size))
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

fn build_unguarded(recipe: Recipe, lowercase_first: bool, vocab_size: usize) -> Result<Built> {
    let path = recipe.path;
    let fail = |message: String| Error::Tokenizer { path: path.clone(), message };

    let cut_at_spaces = match &recipe.kind {
        Kind::Json(_) => false,
        Kind::Bert(_) => parts_at_spaces(&recipe.added),
    };
    let highest_of_bert = match &recipe.kind {
        Kind::Json(_) => None,
        Kind::Bert(bert) => bert.vocab.values().copied().max(),
    };
    let mut inner = match recipe.kind {
        Kind::Json(json) => tokenizers::Tokenizer::from_bytes(json).map_err(|e| refused(&path, e))?,
        Kind::Bert(bert) => bert_tokenizer(bert).map_err(fail)?,
    };
    inner.with_truncation(None).map_err(|e| refused(&path, e))?;
    inner.with_padding(None);
    if lowercase_first {
        let normalizer = lowercased(inner.get_normalizer().cloned());
        inner.with_normalizer(normalizer).map_err(|e| refused(&path, e))?;
    }
    add_tokens(&mut inner, &recipe.added).map_err(fail)?;
    inner.set_encode_special_tokens(recipe.split_special_tokens);

    let (template, pair) = match recipe.around {
        Some((before, behind)) => {
            let id = |content: &str| {
                // a name alone is not enough: it would get an id that the model never saw in training
                let declared = recipe.added.iter().find(|t| t.content == content).and_then(|t| t.id);
                let id = inner.get_model().token_to_id(content).or(declared);
                let missing = || fail(format!("special token '{content}' is not in the vocabulary"));
                id.map(|id| (id, 0)).ok_or_else(missing)
            };
            let (before, behind) = (id(&before)?, id(&behind)?);
            let second_type = u32::from(recipe.pair_types);
            let pair = PairTemplate {
                before: vec![before],
                first_type: 0,
                between: vec![behind; recipe.separators],
                second_type,
                behind: vec![(behind.0, second_type)],
            };
            (Template { prefix: vec![before], type_id: 0, suffix: vec![behind] }, Ok(pair))
        }
        None => {
            let (template, pair) = (template(&inner).map_err(fail)?, pair_template(&inner));
            match recipe.types {
                true => (template, pair),
                false => (template.without_types(), pair.map(PairTemplate::without_types)),
            }
        }
    };
    inner.with_post_processor(None::<tokenizers::PostProcessorWrapper>);

    let specials = template.prefix.iter().chain(&template.suffix);
    let of_pair = pair.iter().flat_map(|p| p.before.iter().chain(&p.between).chain(&p.behind));
    let specials = specials.chain(of_pair).map(|&(id, _)| id);
    let highest = match highest_of_bert {
        // the crate gives its vocabulary as a copy, which takes longer than to read the file
        Some(highest) => {
            inner.get_added_tokens_decoder().keys().copied().chain(specials).chain([highest]).max()
        }
        None => inner.get_vocab(true).into_values().chain(specials).max(),
    };
    match highest {
        Some(id) if id as usize >= vocab_size => {
            let token = inner.id_to_token(id).unwrap_or_default();
            Err(fail(format!(
                "token '{token}' has id {id}, but the model has {vocab_size} rows of word embeddings \
                 (vocab_size in config.json)"
            )))
        }
        Some(_) => Ok((TextTokenizer { inner, path, cut_at_spaces }, template, pair)),
        None => Err(fail("the vocabulary is empty".into())),
    }
}

/// The tokenizer that transformers builds for the BERT classes, without added tokens.
fn bert_tokenizer(bert: Bert) -> std::result::Result<tokenizers::Tokenizer, String> {
    if !bert.vocab.contains_key(&bert.unk) {
        return Err(format!("special token '{}' is not in the vocabulary", bert.unk));
    }
    // the crate does not export the type of its map: an empty one comes from here
    let mut vocab = WordPiece::read_bytes(b"").map_err(|e| e.to_string())?;
    vocab.extend(bert.vocab);
    let model = WordPiece::builder().vocab(vocab).unk_token(bert.unk).build().map_err(|e| e.to_string())?;
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

fn add_tokens(inner: &mut tokenizers::Tokenizer, added: &[AddedToken]) -> std::result::Result<(), String> {
    for token in added {
        let known = inner.get_added_vocabulary().get_vocab().contains_key(&token.content);
        // without an id it is no more than a name: flags of a token that is there stay
        if known && token.id.is_none() {
            continue;
        }
        let content = &token.content;
        let new = tokenizers::AddedToken::from(content.as_str(), token.special)
            .single_word(token.single_word)
            .lstrip(token.lstrip)
            .rstrip(token.rstrip)
            .normalized(token.normalized);
        inner.add_tokens([new]).map_err(|e| format!("added token '{content}': {e}"))?;
        let found = inner.token_to_id(content);
        if token.id.is_some() && found != token.id {
            let [declared, found] = [token.id, found].map(|id| id.map_or("none".into(), |id| id.to_string()));
            return Err(format!(
                "added token '{content}' is declared with id {declared}, and gets {found} behind the vocabulary \
                 (added_tokens, added_tokens_decoder)"
            ));
        }
    }
    Ok(())
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
    use crate::tokenize::config;

    fn fixtures() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
    }

    #[test]
    fn pieces_are_the_text() {
        for text in config::fixture_texts(&fixtures()) {
            for bytes in [0, 1, 2, 7, 100, usize::MAX] {
                assert_eq!(pieces(&text, bytes).collect::<String>(), text);
                assert!(pieces(&text, bytes).skip(1).all(|p| p.starts_with([' ', '\n'])));
            }
        }
        assert_eq!(pieces("  a b", 0).collect::<Vec<_>>(), [" ", " a", " b"]);
        assert_eq!(pieces("", 0).count(), 0);
    }

    #[test]
    fn unchanged_files_are_not_cut() {
        let recipe = config::read(&fixtures().join("tokenizers/unchanged-fast")).unwrap();
        assert!(!build(recipe, false, 1000).unwrap().0.cut_at_spaces);
    }

    #[test]
    fn ids_in_pieces_match_whole() {
        let variants = ["plain", "config-cased", "config-keeps-accents", "config-no-chinese", "added-tokens"];
        for name in variants {
            let dir = fixtures().join("tokenizers").join(name);
            let (tokenizer, ..) = build(config::read(&dir).unwrap(), false, 1000).unwrap();
            assert!(tokenizer.cut_at_spaces, "{name}");
            for text in config::fixture_texts(&fixtures()) {
                let whole = tokenizer.ids_in_pieces(&text, usize::MAX).unwrap();
                for bytes in [0, 100] {
                    let pieces = tokenizer.ids_in_pieces(&text, bytes).unwrap();
                    assert!(pieces == whole, "{name}: {bytes}: {text:.200?}");
                }
            }
        }
    }

    #[test]
    fn added_tokens_with_spaces_forbid_pieces() {
        let token = |content: &str| AddedToken {
            id: None,
            content: content.into(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: true,
            special: false,
        };
        assert!(parts_at_spaces(&[token("[SEP]"), token("<new>")]));
        for content in ["new york", "中", "a\u{a0}b"] {
            assert!(!parts_at_spaces(&[token(content)]), "{content}");
        }
    }
}
