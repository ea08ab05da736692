//! Scores of text pairs: the same rooms, with two texts in one sequence and a head that scores behind the encoder.

use super::vectors::TokenCount;
use super::{Embedder, check_buffer, devices_of, row_bytes};
use crate::error::{Error, Result};
use crate::model::{self, ModelDesc, Scores as Choice};
use crate::options::{Normalize, Options, Prompt};
use crate::tokenize::Encoding;
use std::path::Path;

/// A loaded cross-encoder: pairs of texts in, scores out. `Send + Sync`; a clone shares the model.
///
/// A cross-encoder reads both texts at once, which ranks better than the vectors of an [`Embedder`] and costs a pass
/// through the model for each pair: the usual use is to rank again what a search has found.
///
/// ```no_run
/// use berthier::{CrossEncoder, Options};
///
/// let model = CrossEncoder::load(Options::new("path/to/ms-marco-MiniLM-L6-v2"))?;
/// for hit in model.rank("who wrote Faust?", &["Goethe did.", "Bread needs an hour."], Some(10))? {
///     println!("{} {}", hit.index, hit.score);
/// }
/// # Ok::<(), berthier::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct CrossEncoder {
    /// Its vectors are the scores.
    embedder: Embedder,
}

/// Scores of several pairs, `[len, labels]` row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    data: Vec<f32>,
    labels: usize,
    tokens: Vec<TokenCount>,
}

/// A document's place in a ranking.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ranked {
    /// Of the document in the caller's slice.
    pub index: usize,
    /// The higher, the better.
    pub score: f32,
}

impl CrossEncoder {
    /// Loads a cross-encoder: a sequence-classification checkpoint, in the layout of sentence-transformers 5 or that of
    /// transformers. Scores go through the function that the model's files name; else through the sigmoid if there is one
    /// label, and through none if there are several.
    ///
    /// # Errors
    /// As [`Embedder::load`]; [`Error::Unsupported`] for a sentence model; [`Error::InvalidOption`] for options that are
    /// about vectors (pooling, pooled layers, normalisation, dimensions) or prompts.
    pub fn load(options: Options) -> Result<Self> {
        Self::load_with(options, Choice::Model)
    }

    /// As [`load`](Self::load), with scores as the last product gives them.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_logits(options: Options) -> Result<Self> {
        Self::load_with(options, Choice::Logits)
    }

    fn load_with(options: Options, scores: Choice) -> Result<Self> {
        let given = [
            ("pooling", options.pooling.is_some()),
            ("pooled_layers", options.pooled_layers.is_some()),
            ("truncate_dim", options.truncate_dim.is_some()),
            ("normalize", options.normalize != Normalize::Model),
            ("prompt", options.prompt != Prompt::Default),
        ];
        if let Some((name, _)) = given.into_iter().find(|(_, given)| *given) {
            let message = "a cross-encoder has none: it gives scores of pairs".into();
            return Err(Error::InvalidOption { name, message });
        }
        let dir = model::locate::locate(&options.model, options.revision.as_deref())?;
        let model = model::open_classifier(&dir, scores)?;
        let embedder = {
            let open = devices_of(&options);
            Embedder::of_model(options, dir, model, open)?
        };
        let (desc, tokenizer) = (&embedder.shared.desc, &embedder.shared.tokenizer);
        let (types, found) = (desc.type_vocab_size.max(1), tokenizer.highest_pair_type_id()?);
        if found as usize >= types {
            let message = format!("token type {found}, where the model has {types} (type_vocab_size)");
            return Err(Error::config(embedder.shared.dir.join("tokenizer.json"), message));
        }
        let least = tokenizer.pair_special_tokens()? + 2;
        if embedder.max_seq_length < least {
            return Err(Error::InvalidOption {
                name: "max_seq_length",
                message: format!(
                    "{}: at least {least}, the special tokens of a pair and two more",
                    embedder.max_seq_length
                ),
            });
        }
        Ok(Self { embedder })
    }

    /// Scores of each pair: 1, or one for each class.
    pub fn labels(&self) -> usize {
        self.embedder.dim()
    }

    /// Tokens after which a pair is cut, special tokens included.
    pub fn max_seq_length(&self) -> usize {
        self.embedder.max_seq_length
    }

    /// What the model directory says; the head is its pooling and modules.
    pub fn model(&self) -> &ModelDesc {
        self.embedder.model()
    }

    /// The directory that the model was read from.
    pub fn model_dir(&self) -> &Path {
        self.embedder.model_dir()
    }

    /// What was assumed where the model directory is silent, one sentence each; for the user to see.
    pub fn warnings(&self) -> &[String] {
        self.embedder.warnings()
    }

    /// For people, all devices: `cpu avx512, 2 threads`.
    pub fn device_name(&self) -> &str {
        self.embedder.device_name()
    }

    /// Bytes of text that keep the model busy in one call; see [`Embedder::window_bytes`].
    pub fn window_bytes(&self) -> usize {
        self.embedder.window_bytes()
    }

    /// The token ids of each pair, as [`predict`](Self::predict) computes them.
    ///
    /// # Errors
    /// [`Error::Row`] with the pair that the tokenizer refuses.
    pub fn tokenize<A: AsRef<str> + Sync, B: AsRef<str> + Sync>(
        &self,
        pairs: &[(A, B)],
    ) -> Result<Vec<Encoding>> {
        let shared = &self.embedder.shared;
        let encodings = shared.threads.map(pairs, |(first, second)| {
            shared.tokenizer.encode_pair(first.as_ref(), second.as_ref(), self.max_seq_length())
        });
        encodings
            .into_iter()
            .enumerate()
            .map(|(row, e)| e.map_err(|e| Error::Row { row, message: e.to_string() }))
            .collect()
    }

    /// The scores of pairs. A pair's scores do not depend, to the bit, on the pairs beside it.
    ///
    /// # Errors
    /// As [`predict_into`](Self::predict_into).
    pub fn predict<A: AsRef<str> + Sync, B: AsRef<str> + Sync>(&self, pairs: &[(A, B)]) -> Result<Scores> {
        let labels = self.labels();
        let mut data = vec![0.0; pairs.len() * labels];
        let tokens = self.predict_into(pairs, &mut data)?;
        Ok(Scores { data, labels, tokens })
    }

    /// The scores of pairs, into the caller's buffer: `[pairs.len(), labels]` row-major.
    ///
    /// # Errors
    /// [`Error::BufferSize`]; [`Error::Row`] with the pair that the tokenizer refuses; [`Error::NonFinite`] with the
    /// pairs whose scores came out as NaN or infinity.
    pub fn predict_into<A: AsRef<str> + Sync, B: AsRef<str> + Sync>(
        &self,
        pairs: &[(A, B)],
        out: &mut [f32],
    ) -> Result<Vec<TokenCount>> {
        check_buffer(out, pairs.len(), self.labels())?;
        let mut counts = Vec::with_capacity(pairs.len());
        let limit = self.window_bytes();
        self.embedder.run(0, out, |first| {
            let mut bytes = 0;
            let fit = |(a, b): &(A, B)| {
                bytes += row_bytes(a.as_ref()) + b.as_ref().len();
                bytes > limit
            };
            let len = pairs[first..].iter().position(fit).unwrap_or(pairs.len() - first).max(1);
            let window = &pairs[first..first + len];
            let encodings = self.tokenize(window).map_err(|e| e.with_first_row(first))?;
            counts.extend(encodings.iter().map(|e| TokenCount { used: e.ids.len(), total: e.total_tokens }));
            Ok(encodings)
        })?;
        Ok(counts)
    }

    /// The documents that answer the query best, best first, at most `top_k`; of equal scores the earlier document.
    ///
    /// # Errors
    /// As [`predict_into`](Self::predict_into), rows being documents; [`Error::InvalidOption`] if the model has several
    /// labels, as nothing says which of them ranks.
    pub fn rank<S: AsRef<str> + Sync>(
        &self,
        query: &str,
        documents: &[S],
        top_k: Option<usize>,
    ) -> Result<Vec<Ranked>> {
        self.check_one_label()?;
        let pairs: Vec<(&str, &str)> = documents.iter().map(|document| (query, document.as_ref())).collect();
        let mut ranked = Ranked::sorted(self.predict(&pairs)?.as_slice());
        ranked.truncate(top_k.unwrap_or(usize::MAX));
        Ok(ranked)
    }

    /// Whether the model ranks.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if it has several labels.
    pub fn check_one_label(&self) -> Result<()> {
        match self.labels() {
            1 => Ok(()),
            n => Err(Error::InvalidOption {
                name: "model",
                message: format!("{n} labels, where a ranking needs one score (predict gives all of them)"),
            }),
        }
    }
}

impl Ranked {
    /// Scores from the highest to the lowest; of equal ones the earlier.
    pub fn sorted(scores: &[f32]) -> Vec<Self> {
        let mut ranked: Vec<_> =
            scores.iter().enumerate().map(|(index, &score)| Self { index, score }).collect();
        // stable; −0 and 0 are equal as in the reference, and no score is NaN
        ranked.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal));
        ranked
    }
}

impl Scores {
    /// Number of pairs.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Scores of a pair.
    pub fn labels(&self) -> usize {
        self.labels
    }

    /// The scores of pair `i`.
    ///
    /// # Panics
    /// If `i` is not below [`len`](Self::len).
    pub fn row(&self, i: usize) -> &[f32] {
        &self.data[i * self.labels..(i + 1) * self.labels]
    }

    /// All scores end to end.
    pub fn as_slice(&self) -> &[f32] {
        &self.data
    }

    /// All scores end to end, without a copy.
    pub fn into_vec(self) -> Vec<f32> {
        self.data
    }

    /// Token counts of each pair.
    pub fn tokens(&self) -> &[TokenCount] {
        &self.tokens
    }
}
