//! A window of texts, tokenised: in units that threads claim, and in memory that is used again.

use super::run::Sequences;
use super::vectors::TokenCount;
use super::{Embedder, row_bytes};
use crate::error::{Error, Result};
use crate::tokenize::Scratch;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Text of a unit: some 200 tokens, which take ten microseconds, so that claiming it costs little beside and the last unit
/// is not waited for.
const UNIT_BYTES: usize = 1024;

/// Memory of windows that nobody has at the moment.
#[derive(Debug, Default)]
pub(super) struct SpareWindows(Mutex<Vec<Memory>>);

/// The sequences of a window's texts. Dropped, it leaves its memory to another.
pub(super) struct Texts<'e> {
    memory: Memory,
    spares: &'e SpareWindows,
}

#[derive(Debug, Default)]
struct Memory {
    /// Of which the first ones are in use.
    units: Vec<Unit>,
    /// Of each text, its unit and where its ids are there.
    rows: Vec<(usize, Range<usize>)>,
    counts: Vec<TokenCount>,
}

/// Texts that one thread tokenises. All that grows is the unit's own: what a text takes does not hang on which thread comes
/// by, so that a call that repeats finds everything there.
#[derive(Debug, Default)]
struct Unit {
    texts: Range<usize>,
    /// Of all texts, end to end; likewise the types.
    ids: Vec<u32>,
    type_ids: Vec<u32>,
    /// Where each text's end, and how many tokens it had before it was cut.
    ends: Vec<(usize, usize)>,
    scratch: Scratch,
    /// Of the text behind those that went well.
    error: Option<Error>,
}

impl<'e> Texts<'e> {
    /// Tokenises the texts.
    ///
    /// # Errors
    /// [`Error::Row`] with the first text that the tokenizer refuses.
    pub(super) fn tokenize<S: AsRef<str> + Sync>(embedder: &'e Embedder, texts: &[S]) -> Result<Self> {
        let spares = &embedder.shared.spare_windows;
        let mut made = Self { memory: spares.take(), spares };
        let Memory { units, rows, counts } = &mut made.memory;
        let units = Unit::cut(texts, units);
        embedder.shared.threads.for_each_mut(units, |_, unit| unit.tokenize(embedder, texts));
        rows.clear();
        counts.clear();
        for (number, unit) in units.iter_mut().enumerate() {
            let mut start = 0;
            for &(end, total) in &unit.ends {
                rows.push((number, start..end));
                counts.push(TokenCount { used: end - start, total });
                start = end;
            }
            if let Some(error) = unit.error.take() {
                return Err(Error::Row { row: rows.len(), message: error.to_string() });
            }
        }
        Ok(made)
    }

    pub(super) fn counts(&self) -> &[TokenCount] {
        &self.memory.counts
    }
}

impl Sequences for Texts<'_> {
    fn count(&self) -> usize {
        self.memory.rows.len()
    }

    fn get(&self, i: usize) -> (&[u32], &[u32]) {
        let (unit, place) = &self.memory.rows[i];
        let Unit { ids, type_ids, .. } = &self.memory.units[*unit];
        (&ids[place.clone()], &type_ids[place.clone()])
    }
}

impl Drop for Texts<'_> {
    fn drop(&mut self) {
        self.spares.lock().push(std::mem::take(&mut self.memory));
    }
}

impl SpareWindows {
    fn take(&self) -> Memory {
        self.lock().pop().unwrap_or_default()
    }

    /// A push or a pop leaves the list whole.
    fn lock(&self) -> MutexGuard<'_, Vec<Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unit {
    /// Deals the texts out, in order; gives the units that have some.
    fn cut<'u, S: AsRef<str>>(texts: &[S], units: &'u mut Vec<Self>) -> &'u mut [Self] {
        let (mut used, mut first, mut bytes) = (0, 0, 0);
        for (i, text) in texts.iter().enumerate() {
            bytes += row_bytes(text.as_ref());
            if bytes >= UNIT_BYTES || i + 1 == texts.len() {
                if used == units.len() {
                    units.push(Self::default());
                }
                units[used].texts = first..i + 1;
                (used, first, bytes) = (used + 1, i + 1, 0);
            }
        }
        &mut units[..used]
    }

    fn tokenize<S: AsRef<str>>(&mut self, embedder: &Embedder, texts: &[S]) {
        let Self { ids, type_ids, ends, scratch, error, .. } = self;
        ids.clear();
        type_ids.clear();
        ends.clear();
        *error = None;
        for text in &texts[self.texts.clone()] {
            let (prompt, most) = (&embedder.prompt, embedder.max_seq_length);
            match embedder.shared.tokenizer.encode_into(prompt, text.as_ref(), most, scratch, ids, type_ids) {
                Ok(total) => ends.push((ids.len(), total)),
                Err(refused) => {
                    *error = Some(refused);
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn prop_units_hold_each_text_once_in_order(
            lens in prop::collection::vec(0_usize..2000, 0..100),
            before in 0_usize..5,
        ) {
            let texts: Vec<String> = lens.iter().map(|&len| "x".repeat(len)).collect();
            let mut units: Vec<Unit> = (0..before).map(|_| Unit::default()).collect();
            let mut next = 0;
            for unit in Unit::cut(&texts, &mut units) {
                prop_assert_eq!(unit.texts.start, next);
                prop_assert!(unit.texts.end > next);
                // but for its last text it is below the mark
                let bytes: usize = texts[next..unit.texts.end - 1].iter().map(|t| row_bytes(t)).sum();
                prop_assert!(bytes < UNIT_BYTES);
                next = unit.texts.end;
            }
            prop_assert_eq!(next, texts.len());
        }
    }
}
