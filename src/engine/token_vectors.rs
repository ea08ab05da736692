//! One vector for each token, before pooling: for late interaction, or a pooling of the caller's own.

use super::Embedder;
use super::vectors::TokenCount;
use crate::error::{Error, Result};

/// Token vectors of several texts, end to end; special tokens and prompt included, no padding.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenVectors {
    data: Vec<f32>,
    dim: usize,
    /// In vectors, `[len + 1]`.
    offsets: Vec<usize>,
    tokens: Vec<TokenCount>,
}

impl Embedder {
    /// The vectors of each text's tokens, as the encoder gives them: what sentence-transformers returns for
    /// `output_value="token_embeddings"`. Neither the pooling nor a module behind it, a truncated dimension or
    /// normalisation changes them; a prompt and the length limit do, as they change the tokens.
    ///
    /// A text's vectors do not depend, to the bit, on the texts beside it; on a GPU only where
    /// [`batch_invariant`](crate::Options::batch_invariant) asks for that.
    ///
    /// ```no_run
    /// # let embedder = berthier::Embedder::load(berthier::Options::new("model"))?;
    /// let vectors = embedder.embed_tokens(&["late interaction", "compares tokens"])?;
    /// assert_eq!(vectors.matrix(0).len(), vectors.tokens()[0].used * vectors.dim());
    /// # Ok::<(), berthier::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if a device does not give them; [`Error::Row`], [`Error::NonFinite`] and
    /// [`Error::DeviceLost`] as [`embed_into`](Self::embed_into).
    pub fn embed_tokens<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<TokenVectors> {
        if !self.shared.token_vectors {
            let message =
                format!("{} gives sentence vectors only (--device cpu gives both)", self.device_name());
            return Err(Error::InvalidOption { name: "token_embeddings", message });
        }
        let dim = self.token_dim();
        let (mut data, mut offsets) = (Vec::new(), vec![0]);
        let mut tokens = Vec::with_capacity(texts.len());
        let mut first = 0;
        while first < texts.len() {
            let window = &texts[first..first + self.window_len(&texts[first..])];
            let encodings = self.tokenize(window).map_err(|e| e.with_first_row(first))?;
            let mut ends = vec![0];
            for encoding in &encodings {
                let used = encoding.ids.len();
                ends.push(ends[ends.len() - 1] + used);
                offsets.push(offsets[offsets.len() - 1] + used);
                tokens.push(TokenCount { used, total: encoding.total_tokens });
            }
            let begin = data.len();
            data.resize(begin + ends[window.len()] * dim, 0.0);
            self.run_tokens(encodings, &ends, &mut data[begin..]).map_err(|e| e.with_first_row(first))?;
            first += window.len();
        }
        Ok(TokenVectors { data, dim, offsets, tokens })
    }

    /// Floats of a token's vector.
    pub fn token_dim(&self) -> usize {
        self.shared.desc.hidden_size
    }
}

impl TokenVectors {
    /// Number of texts.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Floats of one vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The vectors of text `i`, `[tokens()[i].used, dim]` row-major.
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn matrix(&self, i: usize) -> &[f32] {
        &self.data[self.offsets[i] * self.dim..self.offsets[i + 1] * self.dim]
    }

    /// The texts' vectors in order.
    pub fn matrices(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        (0..self.len()).map(|i| self.matrix(i))
    }

    /// Where each text's vectors begin, counted in vectors, and the number of all: `[len + 1]`.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// All vectors end to end, `[offsets().last(), dim]` row-major.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// All vectors end to end, without a copy.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// Token counts of each text.
    pub fn tokens(&self) -> &[TokenCount] {
        &self.tokens
    }
}
