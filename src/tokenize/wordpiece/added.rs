//! Added tokens: those that are found in a text before it is cut into words, special ones among them.
//!
//! What is found where is the crate's rule: at each place the longest token that begins there, from left to right; a token
//! that is found and not wanted (not a word of its own, or special where those are not looked for) is text like any
//! other, and nothing is looked for within it.

use crate::tokenize::config::AddedToken;
use std::collections::{BTreeMap, HashMap, HashSet};

/// Tokens with the same first byte; with more, the crate's automaton is the better way.
const MOST_ALIKE: usize = 256;

/// What is known of an added token when it is found.
#[derive(Debug, Clone)]
pub(super) struct Found {
    pub(super) id: u32,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
    /// Found, and not wanted.
    ignored: bool,
}

/// Patterns to find in a text.
#[derive(Debug, Default)]
pub(super) struct Patterns {
    /// Those that begin with each byte, longest first; none at all if there are none.
    by_first_byte: Vec<Vec<(Box<str>, Found)>>,
}

impl Patterns {
    /// `None` where what the crate does is nothing that anyone asked for: with two alike, an empty one, or one that begins
    /// or ends with white space beside one that takes white space along; and with very many.
    pub(super) fn new(patterns: impl IntoIterator<Item = (String, Found)>) -> Option<Self> {
        let mut by_first_byte = vec![Vec::<(Box<str>, Found)>::new(); 256];
        let (mut strips, mut spaces) = (false, false);
        for (text, found) in patterns {
            strips |= found.lstrip || found.rstrip;
            spaces |= text.trim() != text;
            let alike = &mut by_first_byte[usize::from(*text.as_bytes().first()?)];
            if alike.len() == MOST_ALIKE || alike.iter().any(|(known, _)| **known == text) {
                return None;
            }
            let at = alike.partition_point(|(known, _)| known.len() >= text.len());
            alike.insert(at, (text.into(), found));
        }
        if strips && spaces {
            return None;
        }
        let any = by_first_byte.iter().any(|alike| !alike.is_empty());
        Some(if any { Self { by_first_byte } } else { Self::default() })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_first_byte.is_empty()
    }

    pub(super) fn begin_with(&self, byte: u8) -> bool {
        self.by_first_byte.get(usize::from(byte)).is_some_and(|alike| !alike.is_empty())
    }

    /// What is found at `at`: where it ends, and the token if it is wanted there.
    pub(super) fn at(&self, text: &str, at: usize) -> Option<(usize, Option<&Found>)> {
        let rest = &text.as_bytes()[at..];
        let alike = &self.by_first_byte[usize::from(*rest.first()?)];
        let (token, found) = alike.iter().find(|(token, _)| rest.starts_with(token.as_bytes()))?;
        let end = at + token.len();
        let is_word = |c: Option<char>| c.is_some_and(regex_syntax::is_word_character);
        let within_word = || is_word(text[..at].chars().next_back()) || is_word(text[end..].chars().next());
        let ignored = found.ignored || found.single_word && within_word();
        Some((end, (!ignored).then_some(found)))
    }

    /// The parts of a text in order: tokens, and what lies between them.
    pub(super) fn split<'t>(&self, text: &'t str, mut part: impl FnMut(Part<'t>)) {
        let (mut done, mut at) = (0, 0);
        while !self.is_empty() && at < text.len() {
            let Some((end, wanted)) = self.at(text, at) else {
                at += 1;
                continue;
            };
            if let Some(found) = wanted {
                let begin = if found.lstrip { text[..at].trim_end().len().max(done) } else { at };
                if done < begin {
                    part(Part::Text(&text[done..begin]));
                }
                part(Part::Token(found.id));
                done = if found.rstrip { text.len() - text[end..].trim_start().len() } else { end };
            }
            at = end;
        }
        if done < text.len() {
            part(Part::Text(&text[done..]));
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part<'t> {
    Text(&'t str),
    /// Its id.
    Token(u32),
}

/// The added tokens of a tokenizer, with the ids that the crate gives them.
#[derive(Debug, Default)]
pub(super) struct AddedTokens {
    ids: HashMap<String, u32>,
    by_id: BTreeMap<u32, AddedToken>,
    /// Contents that were special once; they stay so.
    special: HashSet<String>,
}

impl AddedTokens {
    /// What the crate made of them.
    pub(super) fn given(
        tokens: impl IntoIterator<Item = (u32, AddedToken)>,
        special: HashSet<String>,
    ) -> Self {
        let by_id: BTreeMap<u32, AddedToken> = tokens.into_iter().collect();
        let ids = by_id.iter().map(|(&id, token)| (token.content.clone(), id)).collect();
        Self { ids, by_id, special }
    }

    pub(super) fn id(&self, content: &str) -> Option<u32> {
        self.ids.get(content).copied()
    }

    pub(super) fn get(&self, id: u32) -> Option<&AddedToken> {
        self.by_id.get(&id)
    }

    pub(super) fn tokens(&self) -> impl Iterator<Item = &AddedToken> {
        self.by_id.values()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        self.by_id.keys().copied()
    }

    /// Adds a token, or changes the flags of one that is there. A token of the vocabulary keeps its id; others are counted
    /// on from the vocabulary's size and from the highest that has been given.
    pub(super) fn add(&mut self, token: &AddedToken, of_vocabulary: Option<u32>, vocabulary_size: usize) {
        if token.content.is_empty() {
            return;
        }
        let size = vocabulary_size as u32;
        let next = match self.by_id.keys().next_back() {
            // the last id that there can be is no model's: whoever has it is refused
            Some(&highest) if highest >= size => highest.saturating_add(1),
            _ => size,
        };
        let id = self.id(&token.content).or(of_vocabulary).unwrap_or(next);
        self.ids.insert(token.content.clone(), id);
        if token.special {
            self.special.insert(token.content.clone());
        }
        self.by_id.insert(id, token.clone());
    }

    /// Patterns of the text as it is, and of the text as `normalize` makes it.
    pub(super) fn patterns(
        &self,
        split_special_tokens: bool,
        normalize: impl Fn(&str) -> String,
    ) -> Option<(Patterns, Patterns)> {
        if self.ids.len() != self.by_id.len() {
            return None; // two with one id: the crate remembers the earlier one's normal form
        }
        let (normalized, raw): (Vec<_>, Vec<_>) = self.by_id.iter().partition(|(_, token)| token.normalized);
        let found = |id: u32, token: &AddedToken| Found {
            id,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            single_word: token.single_word,
            ignored: split_special_tokens && self.special.contains(&token.content),
        };
        let raw = Patterns::new(raw.into_iter().map(|(&id, t)| (t.content.clone(), found(id, t))))?;
        let normalized = normalized.into_iter().map(|(&id, t)| (normalize(&t.content), found(id, t)));
        Some((raw, Patterns::new(normalized)?))
    }
}
