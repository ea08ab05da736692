//! BERT's normalisation, a character at a time: clean, set Chinese apart, strip accents, lower-case.
//!
//! Each step maps characters one by one, but for the order of combining marks, which NFD sorts within a run of them. So
//! nothing is held back but such runs. Knows nothing of words or ids.

use super::unicode::Properties;
use unicode_normalization_alignments::char::decompose_canonical;

/// What is done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::tokenize) struct Normalizer {
    /// Lower-case in front of everything, as well.
    pub(in crate::tokenize) lowercase_first: bool,
    pub(in crate::tokenize) clean_text: bool,
    pub(in crate::tokenize) chinese_chars: bool,
    pub(in crate::tokenize) strip_accents: bool,
    pub(in crate::tokenize) lowercase: bool,
}

/// Combining marks that may still move, with their classes.
pub(super) type Run = Vec<(u8, char)>;

impl Normalizer {
    /// Gives what becomes of a character, and of those held back before it, to `put`.
    pub(super) fn push(&self, c: char, run: &mut Run, put: &mut impl FnMut(char)) {
        if self.lowercase_first && Properties::of(c).has(Properties::UPPERCASE) {
            c.to_lowercase().for_each(|c| self.clean(c, run, put));
        } else {
            self.clean(c, run, put);
        }
    }

    /// Gives what was held back to `put`: behind it is the end of a text, or something that is not normalised.
    pub(super) fn finish(&self, run: &mut Run, put: &mut impl FnMut(char)) {
        // stable, so that marks of a class keep their order; it takes memory from 21 on, which no language writes
        run.sort_by_key(|&(class, _)| class);
        run.drain(..).for_each(|(_, c)| self.lower(c, put));
    }

    fn clean(&self, c: char, run: &mut Run, put: &mut impl FnMut(char)) {
        let properties = Properties::of(c);
        if self.clean_text && properties.has(Properties::DROPPED) {
        } else if self.clean_text && properties.has(Properties::WHITESPACE) {
            self.strip(' ', run, put);
        } else if self.chinese_chars && properties.has(Properties::CHINESE) {
            self.strip(' ', run, put);
            self.strip(c, run, put);
            self.strip(' ', run, put);
        } else {
            self.strip(c, run, put);
        }
    }

    fn strip(&self, c: char, run: &mut Run, put: &mut impl FnMut(char)) {
        if !self.strip_accents {
            self.lower(c, put);
        } else if Properties::of(c).has(Properties::DECOMPOSES) {
            decompose_canonical(c, |part| self.order(part, run, put));
        } else {
            self.order(c, run, put);
        }
    }

    /// The second half of NFD, and the filter behind it.
    fn order(&self, c: char, run: &mut Run, put: &mut impl FnMut(char)) {
        let properties = Properties::of(c);
        let class = properties.combining_class(c);
        if class == 0 && !run.is_empty() {
            self.finish(run, put);
        }
        if properties.has(Properties::ACCENT) {
            return; // behind the lines above: one of class 0 ends a run, though it is dropped
        }
        if class == 0 {
            self.lower(c, put);
        } else {
            run.push((class, c));
        }
    }

    fn lower(&self, c: char, put: &mut impl FnMut(char)) {
        if self.lowercase && Properties::of(c).has(Properties::UPPERCASE) {
            c.to_lowercase().for_each(put);
        } else {
            put(c);
        }
    }
}
