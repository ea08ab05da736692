//! What comes out: vectors and token counts of several texts.

/// How many tokens a row has, and how many of them were computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenCount {
    /// Tokens that went through the model, special tokens included.
    pub used: usize,
    /// Tokens of the whole text, special tokens included.
    pub total: usize,
}

impl TokenCount {
    /// Whether the text was longer than the limit and its end is not in the vector.
    pub fn truncated(&self) -> bool {
        self.used < self.total
    }
}

/// Vectors of several texts in one buffer, `[len, dim]` row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Embeddings {
    pub(super) data: Vec<f32>,
    pub(super) dim: usize,
    pub(super) tokens: Vec<TokenCount>,
}

impl Embeddings {
    /// Number of rows.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Floats of one row.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The vector of text `i`.
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.dim..(i + 1) * self.dim]
    }

    /// The vectors in order.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.data.chunks_exact(self.dim)
    }

    /// All vectors end to end.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// All vectors end to end, without a copy.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// Token counts of each row.
    pub fn tokens(&self) -> &[TokenCount] {
        &self.tokens
    }

    /// The rows whose text was cut.
    pub fn truncated(&self) -> impl Iterator<Item = usize> {
        self.tokens.iter().enumerate().filter(|(_, t)| t.truncated()).map(|(i, _)| i)
    }
}
