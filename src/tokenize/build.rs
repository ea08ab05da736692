//! Builds the tokenizer that the files describe, and settles who tokenises: our own code wherever it gives the crate's ids,
//! which is decided here and once; else the crate. Knows nothing of files.

use super::config::{AddedToken, Bert, Kind, Recipe};
use super::text::TextTokenizer;
use super::wordpiece::{Normalizer, Parts, WordPiece};
use super::{PairTemplate, Template, hf};
use crate::error::{Error, Result};

/// The tokenizer, and what it puts around a text and two texts, or why it has no form for two.
pub(super) type Built = (TextTokenizer, Template, std::result::Result<PairTemplate, String>);

/// What takes added tokens.
pub(super) trait TakesTokens {
    fn is_added(&self, content: &str) -> bool;
    fn add(&mut self, token: &AddedToken) -> std::result::Result<(), String>;
    /// Of an added token, or of one of the vocabulary.
    fn id(&self, content: &str) -> Option<u32>;
    /// Of the vocabulary alone.
    fn vocabulary_id(&self, content: &str) -> Option<u32>;
}

impl TakesTokens for WordPiece {
    fn is_added(&self, content: &str) -> bool {
        self.added_id(content).is_some()
    }

    fn add(&mut self, token: &AddedToken) -> std::result::Result<(), String> {
        WordPiece::add(self, token);
        Ok(())
    }

    fn id(&self, content: &str) -> Option<u32> {
        self.added_id(content).or_else(|| self.vocabulary_id(content))
    }

    fn vocabulary_id(&self, content: &str) -> Option<u32> {
        WordPiece::vocabulary_id(self, content)
    }
}

/// Builds what the files describe. `lowercase_first` is the `do_lower_case` of the transformer module, which
/// comes before the tokenizer's own normalisation. Every id must be below `vocab_size`.
pub(super) fn build(recipe: &Recipe, lowercase_first: bool, vocab_size: usize) -> Result<Built> {
    if let Kind::Bert(bert) = &recipe.kind
        && let Some(own) = own(recipe, bert, lowercase_first)?
    {
        let (template, pair) = around(recipe, &own)?;
        let highest = own.added_ids().chain(specials(&template, &pair)).chain([own.highest_id()]).max();
        check_highest(recipe, highest, vocab_size, |id| own.token(id))?;
        return Ok((TextTokenizer::WordPiece(Box::new(own)), template, pair));
    }
    hf::build(recipe, lowercase_first, vocab_size)
}

/// Our own tokenizer of a recipe of the BERT kind.
fn own(recipe: &Recipe, bert: &Bert, lowercase_first: bool) -> Result<Option<WordPiece>> {
    let parts = Parts {
        vocabulary: bert.vocabulary.clone(),
        normalizer: Normalizer {
            lowercase_first,
            clean_text: true,
            chinese_chars: bert.chinese_chars,
            strip_accents: bert.strip_accents.unwrap_or(bert.lowercase),
            lowercase: bert.lowercase,
        },
        unk: bert.unk.clone(),
        // what the crate has where transformers says nothing
        prefix: "##".into(),
        max_chars: 100,
    };
    let Some(mut own) = WordPiece::new(parts) else { return Ok(None) };
    add_tokens(recipe, &mut own)?;
    Ok(own.find_added(recipe.split_special_tokens))
}

/// Adds the recipe's tokens.
pub(super) fn add_tokens(recipe: &Recipe, to: &mut impl TakesTokens) -> Result<()> {
    for token in &recipe.added {
        // without an id it is no more than a name: flags of a token that is there stay
        if to.is_added(&token.content) && token.id.is_none() {
            continue;
        }
        let content = &token.content;
        to.add(token).map_err(|e| fail(recipe, format!("added token '{content}': {e}")))?;
        let found = to.id(content);
        if token.id.is_some() && found != token.id {
            let [declared, found] = [token.id, found].map(|id| id.map_or("none".into(), |id| id.to_string()));
            let message = format!(
                "added token '{content}' is declared with id {declared}, and gets {found} behind the vocabulary \
                 (added_tokens, added_tokens_decoder)"
            );
            return Err(fail(recipe, message));
        }
    }
    Ok(())
}

/// The templates of a recipe whose class says them.
///
/// # Panics
/// If it does not.
pub(super) fn around(
    recipe: &Recipe,
    tokens: &impl TakesTokens,
) -> Result<(Template, std::result::Result<PairTemplate, String>)> {
    let (before, behind) = recipe.around.as_ref().expect("a class that says what is around a text");
    let id = |content: &str| {
        // a name alone is not enough: it would get an id that the model never saw in training
        let declared = recipe.added.iter().find(|t| t.content == content).and_then(|t| t.id);
        let id = tokens.vocabulary_id(content).or(declared);
        let missing = || fail(recipe, format!("special token '{content}' is not in the vocabulary"));
        id.map(|id| (id, 0)).ok_or_else(missing)
    };
    let (before, behind) = (id(before)?, id(behind)?);
    let second_type = u32::from(recipe.pair_types);
    let pair = PairTemplate {
        before: vec![before],
        first_type: 0,
        between: vec![behind; recipe.separators],
        second_type,
        behind: vec![(behind.0, second_type)],
    };
    Ok((Template { prefix: vec![before], type_id: 0, suffix: vec![behind] }, Ok(pair)))
}

/// The ids of all special tokens around texts.
pub(super) fn specials<'a>(
    template: &'a Template,
    pair: &'a std::result::Result<PairTemplate, String>,
) -> impl Iterator<Item = u32> + 'a {
    let of_one = template.prefix.iter().chain(&template.suffix);
    let of_pair = pair.iter().flat_map(|p| p.before.iter().chain(&p.between).chain(&p.behind));
    of_one.chain(of_pair).map(|&(id, _)| id)
}

/// Refuses a tokenizer whose highest id has no embedding; `token` says which token it is.
pub(super) fn check_highest(
    recipe: &Recipe,
    highest: Option<u32>,
    vocab_size: usize,
    token: impl Fn(u32) -> Option<String>,
) -> Result<()> {
    match highest {
        Some(id) if id as usize >= vocab_size => {
            let token = token(id).unwrap_or_default();
            let message = format!(
                "token '{token}' has id {id}, but the model has {vocab_size} rows of word embeddings \
                 (vocab_size in config.json)"
            );
            Err(fail(recipe, message))
        }
        Some(_) => Ok(()),
        None => Err(fail(recipe, "the vocabulary is empty".into())),
    }
}

pub(super) fn fail(recipe: &Recipe, message: String) -> Error {
    Error::Tokenizer { path: recipe.path.clone(), message }
}
