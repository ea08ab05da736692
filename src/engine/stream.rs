//! A stream of texts, embedded a block at a time.

use super::vectors::Embeddings;
use super::{Embedder, row_bytes};
use crate::error::Result;

/// The first block of a stream: some 20 sentences.
const FIRST_BLOCK_BYTES: usize = 2048;

/// Blocks of vectors of a stream of texts; see [`Embedder::stream`].
#[derive(Debug)]
pub struct Stream<'e, I: Iterator> {
    embedder: &'e Embedder,
    texts: I,
    block: Vec<I::Item>,
    rows: usize,
    bytes: usize,
}

impl<'e, I: Iterator> Stream<'e, I> {
    pub(super) fn new(embedder: &'e Embedder, texts: I) -> Self {
        Self { embedder, texts, block: Vec::new(), rows: 0, bytes: FIRST_BLOCK_BYTES }
    }
}

impl<I> Iterator for Stream<'_, I>
where
    I: Iterator,
    I::Item: AsRef<str> + Sync,
{
    type Item = Result<Embeddings>;

    fn next(&mut self) -> Option<Self::Item> {
        self.block.clear();
        let mut bytes = 0;
        while bytes < self.bytes
            && let Some(text) = self.texts.next()
        {
            bytes += row_bytes(text.as_ref());
            self.block.push(text);
        }
        if self.block.is_empty() {
            return None;
        }
        self.bytes = (self.bytes * 2).min(self.embedder.window_bytes());
        let first = self.rows;
        self.rows += self.block.len();
        Some(self.embedder.embed(&self.block).map_err(|e| e.with_first_row(first)))
    }
}
