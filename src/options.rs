//! What a caller may choose when loading a model.

use crate::backend::cpu::Isa;
use crate::backend::{DEFAULT_PATIENCE, DeviceChoice, PersistentKernel, Precision};
use crate::model::Pooling;
use std::num::NonZeroUsize;
use std::time::Duration;

/// How to load a model. Everything but the model has a default.
#[derive(Debug, Clone)]
pub struct Options {
    pub(crate) model: String,
    pub(crate) revision: Option<String>,
    pub(crate) device: DeviceChoice,
    pub(crate) precision: Precision,
    pub(crate) batch_invariant: bool,
    pub(crate) cuda_graphs: bool,
    pub(crate) persistent_kernel: PersistentKernel,
    pub(crate) patience: Duration,
    pub(crate) isa: Option<Isa>,
    pub(crate) threads: Option<NonZeroUsize>,
    pub(crate) batch_tokens: Option<NonZeroUsize>,
    pub(crate) max_seq_length: Option<NonZeroUsize>,
    pub(crate) normalize: Normalize,
    pub(crate) truncate_dim: Option<NonZeroUsize>,
    pub(crate) pooling: Option<Vec<Pooling>>,
    pub(crate) pooled_layers: Option<NonZeroUsize>,
    pub(crate) prompt: Prompt,
}

/// Which text goes before every text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Prompt {
    /// The model's default prompt, if it has one.
    Default,
    Named(String),
    Text(String),
}

/// Whether vectors are divided by their L2 norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Normalize {
    /// As the model's module chain says.
    #[default]
    Model,
    /// Always, after truncation to `truncate_dim` (`normalize_embeddings=True` of sentence-transformers).
    Always,
    /// Never, whatever the model's chain says.
    Never,
}

impl Options {
    /// A directory, or the name of a model in the Hugging Face cache (see [`crate::model::locate`]).
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            revision: None,
            device: DeviceChoice::default(),
            precision: Precision::default(),
            batch_invariant: false,
            cuda_graphs: true,
            persistent_kernel: PersistentKernel::default(),
            patience: DEFAULT_PATIENCE,
            isa: None,
            threads: None,
            batch_tokens: None,
            max_seq_length: None,
            normalize: Normalize::default(),
            truncate_dim: None,
            pooling: None,
            pooled_layers: None,
            prompt: Prompt::Default,
        }
    }

    /// Branch, tag or commit of a model given by name. Default: `main`.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// The devices that compute: a [`Device`](crate::backend::Device) or a [`DeviceChoice`]. Default: the CPU, so that a
    /// library takes no GPU that its caller did not mean it to have. One that is absent is an error, but for
    /// [`DeviceChoice::Auto`], which looks for GPUs first.
    pub fn device(mut self, device: impl Into<DeviceChoice>) -> Self {
        self.device = device.into();
        self
    }

    /// In which numbers to compute. Default: as the device is fastest without losing the vectors' meaning. One that the
    /// device does not have is an error.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        self
    }

    /// Whether a text's vector must not depend, to the bit, on the texts beside it, also where that costs speed (on a GPU:
    /// one order of summation whatever the batch). On the CPU it never does. Devices of several kinds are then refused.
    pub fn batch_invariant(mut self, batch_invariant: bool) -> Self {
        self.batch_invariant = batch_invariant;
        self
    }

    /// Whether a GPU is given a small batch's kernels as one CUDA graph, which launches them sooner. Default: yes. The
    /// vectors are the same to the bit.
    pub fn cuda_graphs(mut self, cuda_graphs: bool) -> Self {
        self.cuda_graphs = cuda_graphs;
        self
    }

    /// Whether a GPU computes a small batch in one launch, by a kernel whose blocks stay. Default: where that was measured to be
    /// faster or, on other GPUs, is predicted to be. The vectors are as near to the exact ones, and not the same to the bit.
    pub fn persistent_kernel(mut self, persistent_kernel: PersistentKernel) -> Self {
        self.persistent_kernel = persistent_kernel;
        self
    }

    /// How long a GPU may take for a batch, beyond a hundred times what the batch should take. Then it is taken to hang, and
    /// as lost: [`Error::DeviceLost`](crate::Error::DeviceLost), or its work goes to the others. Default: 60 s.
    pub fn device_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The instruction set of the CPU kernels. Default: the environment variable `BERTHIER_ISA`, else the
    /// best that the machine has. One that is absent is an error.
    pub fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// Threads that compute, the caller's included. Default: those that the operating system offers.
    pub fn threads(mut self, threads: NonZeroUsize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Tokens of one batch. Default: by the number of threads, or by the GPU. The vectors do not depend on it.
    pub fn batch_tokens(mut self, tokens: NonZeroUsize) -> Self {
        self.batch_tokens = Some(tokens);
        self
    }

    /// Tokens after which a text is cut, special tokens and prompt included. Default: the model's own;
    /// at most the rows of its position table.
    pub fn max_seq_length(mut self, tokens: NonZeroUsize) -> Self {
        self.max_seq_length = Some(tokens);
        self
    }

    /// Whether vectors are normalised. Default: as the model says.
    pub fn normalize(mut self, normalize: Normalize) -> Self {
        self.normalize = normalize;
        self
    }

    /// Keeps the first `dim` components of each vector (Matryoshka models). As in sentence-transformers,
    /// the shortened vector is not of unit length unless [`Normalize::Always`] is asked for.
    pub fn truncate_dim(mut self, dim: NonZeroUsize) -> Self {
        self.truncate_dim = Some(dim);
        self
    }

    /// Other poolings than the model's, for experiments; several are concatenated, each once. The model was
    /// trained with its own, so that these vectors are worse or, of a bare encoder, as good as it gets. What
    /// the model says of `truncate_dim` then does not hold.
    pub fn pooling(mut self, pooling: &[Pooling]) -> Self {
        self.pooling = Some(pooling.to_vec());
        self
    }

    /// Averages the token vectors of the last `layers` layers before they are pooled, for experiments.
    /// Default: those of the last layer alone.
    pub fn pooled_layers(mut self, layers: NonZeroUsize) -> Self {
        self.pooled_layers = Some(layers);
        self
    }

    /// Text that goes before every text, joined without a separator. The empty string means none, also
    /// where the model has a default prompt.
    pub fn prompt(mut self, prompt: impl Into<String>) -> Self {
        self.prompt = Prompt::Text(prompt.into());
        self
    }

    /// One of the model's own prompts, by name.
    pub fn prompt_name(mut self, name: impl Into<String>) -> Self {
        self.prompt = Prompt::Named(name.into());
        self
    }
}
