//! Walks the rooms: texts → tokens → packed batches → backend → rows in the caller's order.

use crate::backend::{self, Backend, BackendOptions, Capacity};
use crate::error::{Error, Result};
use crate::model::{self, Model, ModelDesc, Norms, Weights};
use crate::options::{Normalize, Options, Prompt};
use crate::threads::Threads;
use crate::tokenize::{Encoding, Tokenizer};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

mod cross_encoder;
mod devices;
mod measure;
mod pool;
mod run;
mod stream;
mod texts;
mod token_vectors;
mod vectors;

use devices::Opened;
use run::{Crew, Ids};
use texts::{SpareWindows, Texts};

pub use cross_encoder::{CrossEncoder, Ranked, Scores};
pub use devices::DeviceInfo;
pub use stream::Stream;
pub use token_vectors::TokenVectors;
pub use vectors::{Embeddings, TokenCount};

/// Batches' worth of text that is tokenised and sorted by length at a time.
const WINDOW_BATCHES: usize = 4;
/// English WordPiece has some 4.5 bytes to a token; only the size of a window hangs on this.
const BYTES_PER_TOKEN: usize = 4;

/// A loaded model: texts in, vectors out. `Send + Sync`; a clone shares the model.
///
/// Calls from several threads are safe. On the CPU batches are computed one after another, each on all the
/// threads that the embedder was given; GPUs have a queue of batches that all calls share, and a thread each,
/// which waits for the device and pulls from the queue.
#[derive(Clone)]
pub struct Embedder {
    shared: Arc<Shared>,
    prompt: String,
    /// Tokens of the prompt that the pooling leaves out.
    skip_tokens: usize,
    max_seq_length: usize,
    normalize: Normalize,
    truncate_dim: Option<usize>,
}

struct Shared {
    dir: PathBuf,
    desc: ModelDesc,
    parameters: usize,
    warnings: Vec<String>,
    tokenizer: Tokenizer,
    threads: Threads,
    capacity: Capacity,
    devices: Vec<DeviceInfo>,
    device_name: String,
    /// Whether every device gives them.
    token_vectors: bool,
    /// Token types of sequences that come without, for the longest.
    zeros: Vec<u32>,
    spare_windows: SpareWindows,
    crew: Crew,
}

impl Embedder {
    /// Loads a model.
    ///
    /// # Errors
    /// Every variant of [`Error`] that is about files, options and devices; nothing is substituted for what
    /// the model or the options ask for.
    pub fn load(options: Options) -> Result<Self> {
        let open = devices_of(&options);
        Self::load_on(options, open)
    }

    /// As [`load`](Self::load), with backends of the caller's own in place of the devices of the options: for tests of what
    /// happens when devices are slow or fail.
    ///
    /// # Errors
    /// As [`load`](Self::load), and what `open` returns.
    ///
    /// # Panics
    /// If `open` returns no backend.
    #[doc(hidden)]
    pub fn load_with(
        options: Options,
        open: impl FnOnce(&ModelDesc, &Weights, &BackendOptions) -> Result<Vec<Box<dyn Backend>>>,
    ) -> Result<Self> {
        Self::load_on(options, |desc, weights, options| Ok(Opened::given(open(desc, weights, options)?)))
    }

    fn load_on(
        options: Options,
        open: impl FnOnce(&ModelDesc, &Weights, &BackendOptions) -> Result<Opened>,
    ) -> Result<Self> {
        let dir = model::locate::locate(&options.model, options.revision.as_deref())?;
        let mut model = model::open(&dir)?;
        experiment(&options, &mut model.desc)?;
        Self::of_model(options, dir, model, open)
    }

    /// Opens the devices for a model that was read from `dir`.
    fn of_model(
        options: Options,
        dir: PathBuf,
        model: Model,
        open: impl FnOnce(&ModelDesc, &Weights, &BackendOptions) -> Result<Opened>,
    ) -> Result<Self> {
        let desc = model.desc;
        let tokenizer = Tokenizer::load(&model.tokenizer)?;
        let tokenizer = if desc.type_vocab_size == 0 { tokenizer.without_pair_types() } else { tokenizer };
        let types = desc.type_vocab_size.max(1);
        if tokenizer.highest_type_id() as usize >= types {
            let found = tokenizer.highest_type_id();
            let message = format!("token type {found}, where the model has {types} (type_vocab_size)");
            return Err(Error::config(model.tokenizer.dir.join("tokenizer.json"), message));
        }

        let max_seq_length = match options.max_seq_length {
            Some(n) if n.get() > desc.longest_sequence() => {
                return Err(Error::InvalidOption {
                    name: "max_seq_length",
                    message: format!("{n}: the model has {} positions", desc.longest_sequence()),
                });
            }
            Some(n) => n.get(),
            None => desc.max_seq_length,
        };
        let least = tokenizer.special_tokens() + 1;
        if max_seq_length < least {
            return Err(Error::InvalidOption {
                name: "max_seq_length",
                message: format!("{max_seq_length}: at least {least}, the special tokens and one more"),
            });
        }

        let threads = Threads::new(options.threads)?;
        let backend_options = BackendOptions {
            max_tokens: options.batch_tokens.map(NonZeroUsize::get),
            isa: options.isa,
            precision: options.precision,
            batch_invariant: options.batch_invariant,
            cuda_graphs: options.cuda_graphs,
            persistent_kernel: options.persistent_kernel,
            patience: options.patience,
            ..BackendOptions::new(threads.clone())
        };
        let opened = open(&desc, &model.weights, &backend_options)?;
        let capacity = opened.capacity();
        let names: Vec<_> = opened.devices.iter().map(|d| d.name.clone()).collect();
        let mut warnings = model.warnings;
        warnings.extend(opened.warnings);

        let embedder = Self {
            prompt: String::new(),
            skip_tokens: 0,
            max_seq_length,
            normalize: options.normalize,
            truncate_dim: desc.truncate_dim,
            shared: Arc::new(Shared {
                dir,
                parameters: model.weights.parameters(),
                warnings,
                tokenizer,
                threads,
                capacity,
                device_name: names.join(", "),
                devices: opened.devices,
                token_vectors: opened.backends.iter().all(|backend| backend.gives_token_vectors()),
                zeros: vec![0; desc.longest_sequence()],
                spare_windows: SpareWindows::default(),
                crew: Crew::new(opened.backends)?,
                desc,
            }),
        };
        let embedder = match options.truncate_dim {
            Some(dim) => embedder.with_truncate_dim(dim.get())?,
            None => embedder,
        };
        match options.prompt {
            Prompt::Text(text) => embedder.with_prompt(text),
            Prompt::Named(name) => embedder.with_prompt_name(&name),
            Prompt::Default => match embedder.shared.desc.default_prompt_name.clone() {
                Some(name) => embedder.with_prompt_name(&name),
                None => Ok(embedder),
            },
        }
    }

    /// The same model with another prompt; the empty string means none. Cheap: the weights are shared.
    ///
    /// Where the model's pooling leaves the prompt out (`include_prompt = false`), it leaves out as many tokens
    /// as the prompt has alone, its special tokens in front of it included.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer refuses the prompt.
    pub fn with_prompt(&self, prompt: impl Into<String>) -> Result<Self> {
        let prompt = prompt.into();
        let skip_tokens = if prompt.is_empty() || self.shared.desc.include_prompt {
            0
        } else {
            self.shared.tokenizer.prompt_tokens(&prompt, self.max_seq_length)?
        };
        Ok(Self { prompt, skip_tokens, ..self.clone() })
    }

    /// The same model with one of its own prompts. Cheap: the weights are shared.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] with the names that there are; as [`with_prompt`](Self::with_prompt).
    pub fn with_prompt_name(&self, name: &str) -> Result<Self> {
        let prompts = &self.shared.desc.prompts;
        match prompts.get(name) {
            Some(prompt) => self.with_prompt(prompt),
            None => Err(Error::InvalidOption {
                name: "prompt_name",
                message: match prompts.len() {
                    0 => format!("'{name}': the model has no prompts"),
                    _ => {
                        let names: Vec<_> = prompts.keys().map(String::as_str).collect();
                        format!("'{name}': one of {}", names.join(", "))
                    }
                },
            }),
        }
    }

    /// The same model with vectors of `dim` components. Cheap: the weights are shared.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if `dim` is 0 or above the model's own.
    pub fn with_truncate_dim(&self, dim: usize) -> Result<Self> {
        let full = self.shared.desc.dim();
        if dim == 0 || dim > full {
            return Err(Error::InvalidOption {
                name: "truncate_dim",
                message: format!("{dim}: 1 to {full}, the model's width"),
            });
        }
        Ok(Self { truncate_dim: Some(dim), ..self.clone() })
    }

    /// Floats of one vector.
    pub fn dim(&self) -> usize {
        self.truncate_dim.unwrap_or(self.shared.desc.dim())
    }

    /// Tokens after which a text is cut, special tokens and prompt included.
    pub fn max_seq_length(&self) -> usize {
        self.max_seq_length
    }

    /// The text that goes before every text.
    pub fn prompt(&self) -> &str {
        &self.prompt
    }

    /// Whether vectors come out with L2 norm 1, up to rounding.
    pub fn normalized(&self) -> bool {
        match self.normalize {
            Normalize::Model => self.shared.desc.normalize && self.dim() == self.shared.desc.dim(),
            Normalize::Always => true,
            Normalize::Never => false,
        }
    }

    /// What the model directory says.
    pub fn model(&self) -> &ModelDesc {
        &self.shared.desc
    }

    /// The directory that the model was read from.
    pub fn model_dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Number of the encoder's parameters.
    pub fn parameters(&self) -> usize {
        self.shared.parameters
    }

    /// What was assumed where the model directory is silent, one sentence each; for the user to see.
    pub fn warnings(&self) -> &[String] {
        &self.shared.warnings
    }

    /// The devices that compute; at least one.
    pub fn devices(&self) -> &[DeviceInfo] {
        &self.shared.devices
    }

    /// For people, all devices: `cpu avx512, 2 threads`.
    pub fn device_name(&self) -> &str {
        &self.shared.device_name
    }

    /// Limits and memory of all devices together: tokens of a batch are those that every device takes.
    pub fn capacity(&self) -> Capacity {
        self.shared.capacity
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.shared.threads.count()
    }

    /// What each device that has failed so far said, with its name; the others have taken over its batches.
    pub fn device_failures(&self) -> Vec<String> {
        self.shared.crew.failures()
    }

    /// Calls of about [`window_bytes`](Self::window_bytes) at the same time, from as many threads, that keep the devices
    /// busy: while one call waits for them, another has its texts tokenised. 1 where the host's own threads compute.
    pub fn parallel_calls(&self) -> usize {
        self.shared.crew.parallel_calls()
    }

    /// Bytes of text that keep the embedder busy in one call: enough for sorting by length to pay, small
    /// enough that results come soon. Callers that cut a corpus into calls cut it about here.
    pub fn window_bytes(&self) -> usize {
        WINDOW_BATCHES * self.shared.capacity.max_tokens * BYTES_PER_TOKEN
    }

    /// The token ids of each text, as [`embed`](Self::embed) would compute them: prompt, special tokens and
    /// truncation included.
    ///
    /// # Errors
    /// [`Error::Row`] with the text that the tokenizer refuses.
    pub fn tokenize<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Encoding>> {
        let encodings = self.shared.threads.map(texts, |text| {
            self.shared.tokenizer.encode(&self.prompt, text.as_ref(), self.max_seq_length)
        });
        encodings
            .into_iter()
            .enumerate()
            .map(|(row, e)| e.map_err(|e| Error::Row { row, message: e.to_string() }))
            .collect()
    }

    /// The vectors of texts.
    ///
    /// # Errors
    /// As [`embed_into`](Self::embed_into).
    pub fn embed<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Embeddings> {
        let dim = self.dim();
        let mut data = vec![0.0; texts.len() * dim];
        let mut tokens = Vec::with_capacity(texts.len());
        self.embed_into(texts, &mut data, &mut tokens)?;
        Ok(Embeddings { data, dim, tokens })
    }

    /// The vectors of texts, into the caller's buffer: `[texts.len(), dim]` row-major. `tokens` becomes the counts of the
    /// texts, in its own memory. On the CPU, and with a tokenizer of the BERT kind, calls like those before them, of texts
    /// up to 128 kB, allocate nothing.
    ///
    /// ```no_run
    /// # let embedder = berthier::Embedder::load(berthier::Options::new("model"))?;
    /// let (mut vectors, mut tokens) = (vec![0.0; embedder.dim()], Vec::new());
    /// for line in std::io::stdin().lines().map_while(Result::ok) {
    ///     embedder.embed_into(&[line], &mut vectors, &mut tokens)?;
    ///     if tokens[0].truncated() { /* … */ }
    /// }
    /// # Ok::<(), berthier::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::BufferSize`]; [`Error::Row`] with the text that the tokenizer refuses; [`Error::NonFinite`]
    /// with the rows that came out as NaN or infinity: those rows hold NaN, all others are right, and so are all counts;
    /// [`Error::DeviceLost`] if the last device failed: rows that were not finished hold NaN, all others are
    /// right.
    pub fn embed_into<S: AsRef<str> + Sync>(
        &self,
        texts: &[S],
        out: &mut [f32],
        tokens: &mut Vec<TokenCount>,
    ) -> Result<()> {
        check_buffer(out, texts.len(), self.dim())?;
        tokens.clear();
        self.run(self.skip_tokens, out, |first| {
            let window = &texts[first..first + self.window_len(&texts[first..])];
            let window = Texts::tokenize(self, window).map_err(|e| e.with_first_row(first))?;
            tokens.extend_from_slice(window.counts());
            Ok(window)
        })
    }

    /// The vectors of sequences that are tokenised already, special tokens included. Sequence `i` is
    /// `ids[offsets[i]..offsets[i + 1]]`; token types are 0, positions are the model's. No prompt is added and
    /// nothing is cut.
    ///
    /// # Errors
    /// As [`embed_ids_into`](Self::embed_ids_into).
    pub fn embed_ids(&self, ids: &[u32], offsets: &[usize]) -> Result<Embeddings> {
        let dim = self.dim();
        let rows = offsets.len().saturating_sub(1);
        let mut data = vec![0.0; rows * dim];
        self.embed_ids_into(ids, offsets, &mut data)?;
        let tokens =
            offsets.windows(2).map(|w| TokenCount { used: w[1] - w[0], total: w[1] - w[0] }).collect();
        Ok(Embeddings { data, dim, tokens })
    }

    /// As [`embed_ids`](Self::embed_ids), into the caller's buffer: `[offsets.len() - 1, dim]` row-major. On the CPU, and if it is one
    /// small batch for a GPU that is free, a call that is no larger than those before it allocates nothing.
    ///
    /// # Errors
    /// [`Error::BufferSize`]; [`Error::Row`] if offsets do not rise, a sequence is empty or longer than the
    /// model's positions, or an id is outside the vocabulary; [`Error::NonFinite`] and
    /// [`Error::DeviceLost`] as in [`embed_into`](Self::embed_into).
    pub fn embed_ids_into(&self, ids: &[u32], offsets: &[usize], out: &mut [f32]) -> Result<()> {
        let desc = &self.shared.desc;
        let rows = offsets.len().saturating_sub(1);
        check_buffer(out, rows, self.dim())?;
        for (row, w) in offsets.windows(2).enumerate() {
            let refuse = |message: String| Err(Error::Row { row, message });
            let Some(seq) = ids.get(w[0]..w[1]) else {
                return refuse(format!("offsets {}..{} are not a range of {} ids", w[0], w[1], ids.len()));
            };
            if seq.is_empty() {
                return refuse("no ids: even an empty text has its special tokens".into());
            }
            if seq.len() > desc.longest_sequence() {
                let max = desc.longest_sequence();
                return refuse(format!("{} ids, the model has {max} positions", seq.len()));
            }
            if let Some(id) = seq.iter().find(|&&id| id as usize >= desc.vocab_size) {
                return refuse(format!("id {id} is not below vocab_size {}", desc.vocab_size));
            }
        }
        self.run(0, out, |_| Ok(Ids { ids, offsets, zeros: &self.shared.zeros }))
    }

    /// The vectors of a stream of texts, in order, a block at a time, in bounded memory.
    ///
    /// The first blocks are small, so that results come at once; later ones hold what keeps the embedder
    /// busy. After an error the stream goes on with the texts behind the failed block.
    ///
    /// ```no_run
    /// # let embedder = berthier::Embedder::load(berthier::Options::new("model"))?;
    /// let lines = std::io::stdin().lines().map_while(Result::ok);
    /// for block in embedder.stream(lines) {
    ///     for vector in block?.rows() { /* … */ }
    /// }
    /// # Ok::<(), berthier::Error>(())
    /// ```
    pub fn stream<I>(&self, texts: I) -> Stream<'_, I::IntoIter>
    where
        I: IntoIterator,
        I::Item: AsRef<str> + Sync,
    {
        Stream::new(self, texts.into_iter())
    }

    /// How many of the texts fill a window; at least one.
    fn window_len<S: AsRef<str>>(&self, texts: &[S]) -> usize {
        let limit = self.window_bytes();
        let mut bytes = 0;
        texts
            .iter()
            .position(|t| {
                bytes += row_bytes(t.as_ref());
                bytes > limit
            })
            .unwrap_or(texts.len())
            .max(1)
    }
}

impl std::fmt::Debug for Embedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedder")
            .field("model_dir", &self.shared.dir)
            .field("device", &self.shared.device_name)
            .field("dim", &self.dim())
            .finish_non_exhaustive()
    }
}

/// Opens what the options ask for.
fn devices_of(
    options: &Options,
) -> impl FnOnce(&ModelDesc, &Weights, &BackendOptions) -> Result<Opened> + use<> {
    let choice = options.device.clone();
    move |desc, weights, backend_options| {
        devices::open(&choice, backend_options, backend::cuda_devices, |device, options| {
            backend::open(device, desc, weights, options)
        })
    }
}

/// Puts what the options ask for in place of what the model says of pooling.
fn experiment(options: &Options, desc: &mut ModelDesc) -> Result<()> {
    if let Some(pooling) = &options.pooling {
        let twice = pooling.iter().enumerate().any(|(i, mode)| pooling[..i].contains(mode));
        if pooling.is_empty() || twice {
            let message = format!("{pooling:?}: at least one mode, each once");
            return Err(Error::InvalidOption { name: "pooling", message });
        }
        if !desc.modules.is_empty() && *pooling != desc.pooling {
            let message = "the model has modules behind its pooling, which take no other".into();
            return Err(Error::InvalidOption { name: "pooling", message });
        }
        desc.pooling.clone_from(pooling);
        desc.truncate_dim = None;
    }
    if let Some(layers) = options.pooled_layers {
        let all = desc.num_hidden_layers;
        if layers.get() > all {
            let message = format!("{layers}: the model has {all} layers");
            return Err(Error::InvalidOption { name: "pooled_layers", message });
        }
        if layers.get() > 1 && (desc.norms == Norms::Pre || desc.layer_order().count() != all) {
            let message = "layers of this family cannot be averaged: no norm follows each".into();
            return Err(Error::InvalidOption { name: "pooled_layers", message });
        }
        desc.pooled_layers = layers.get();
    }
    Ok(())
}

/// What a text weighs in a window: even an empty one takes tokens and a vector.
fn row_bytes(text: &str) -> usize {
    text.len() + 2 * BYTES_PER_TOKEN
}

fn check_buffer(out: &[f32], rows: usize, dim: usize) -> Result<()> {
    let needed = rows * dim;
    if out.len() == needed { Ok(()) } else { Err(Error::BufferSize { found: out.len(), needed }) }
}
