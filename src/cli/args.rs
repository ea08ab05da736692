//! The command's flags and their help.

use super::bench::BenchCommand;
use super::eval::EvalCommand;
use super::input::Format as InputFormat;
use super::output::{Dtype, Format as OutputFormat};
use super::report::Failure;
use super::rerank::RerankArgs;
use super::search::SearchArgs;
use super::similarity::SimilarityArgs;
use super::tokenize::TokenizeArgs;
use berthier::backend::cpu::Isa;
use berthier::backend::{Device, DeviceChoice, PersistentKernel, Precision};
use berthier::{Embedder, Normalize, Options};
use clap::{Parser, Subcommand, ValueEnum};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// Heading of the flags that every command shares.
const MODEL: &str = "Model and device";
const INPUT: &str = "Input";
const OUTPUT: &str = "Output";
const VECTORS: &str = "Vectors";

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let names: Vec<_> = Isa::available().iter().map(Isa::to_string).collect();
    format!("{}\ninstruction sets here: {}", env!("CARGO_PKG_VERSION"), names.join(", "))
});

/// Sentence embeddings at the speed of the hardware.
#[derive(Debug, Parser)]
#[command(name = "berthier", version, long_version = VERSION.as_str(), propagate_version = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Texts in, vectors out
    Embed(EmbedArgs),
    /// What a model and this machine are
    Info(InfoArgs),
    /// How fast a model is on this machine
    #[command(subcommand)]
    Bench(BenchCommand),
    /// How good a model's vectors are: the experiments of the Sentence-BERT literature
    #[command(subcommand)]
    Eval(EvalCommand),
    /// How alike the two texts of each pair are
    Similarity(SimilarityArgs),
    /// The texts of a corpus that are most like a query
    Search(SearchArgs),
    /// Documents in the order in which a cross-encoder says that they answer a query
    Rerank(RerankArgs),
    /// The token ids that a model gets for each text
    Tokenize(TokenizeArgs),
}

/// Which model, and on what it runs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    /// A model directory, or a name in the Hugging Face cache [default: all-MiniLM-L6-v2]
    #[arg(short, long, env = "BERTHIER_MODEL", help_heading = MODEL, value_name = "DIR|NAME")]
    pub(crate) model: Option<String>,
    /// Branch, tag or commit of a model given by name [default: main]
    #[arg(long, env = "BERTHIER_REVISION", help_heading = MODEL)]
    pub(crate) revision: Option<String>,
    /// What computes: auto, cpu, cuda (all GPUs), cuda:0,1, or reference (slow, exact sums)
    ///
    /// auto takes the GPUs if there are any that can compute the model, else the CPU, and says so where a GPU is there that
    /// cannot. A device that is named and not there is an error. GPUs are counted as the driver does, over those that
    /// CUDA_VISIBLE_DEVICES leaves.
    #[arg(long, env = "BERTHIER_DEVICE", help_heading = MODEL, default_value_t = DeviceChoice::Auto)]
    pub(crate) device: DeviceChoice,
    /// Numbers that the device computes in: auto, fp32, fp16, bf16 or int8 [auto: fp32 on the CPU, fp16 on a GPU]
    ///
    /// On the CPU, bf16 needs AMX and int8 AMX, VNNI or AVX2; only the layers' products are in them, attention and norms stay
    /// fp32. int8 is fastest and changes the vectors most (mean cosine 0.9987 to those of fp32 with all-MiniLM). On a GPU,
    /// auto takes bf16 where the model's numbers do not fit fp16. A precision that the device does not have is an error.
    #[arg(long, env = "BERTHIER_PRECISION", help_heading = MODEL, default_value_t)]
    pub(crate) precision: Precision,
    /// A text's vector never depends on the texts beside it, to the bit, also on a GPU, where that costs speed
    #[arg(long, env = "BERTHIER_BATCH_INVARIANT", help_heading = MODEL)]
    pub(crate) batch_invariant: bool,
    /// Launch each CUDA kernel by itself, also where a small batch's would go as one graph; for tools that look at kernels
    #[arg(long, env = "BERTHIER_NO_CUDA_GRAPHS", help_heading = MODEL)]
    pub(crate) no_cuda_graphs: bool,
    /// Compute a small batch on a GPU in one launch, by a kernel whose blocks stay: auto (where that was measured or, on other GPUs,
    /// is predicted to be faster), always (a model that it does not compute is an error) or never; the vectors differ in their
    /// last bits
    ///
    /// For measurements also grid (always, on all of the GPU) and clusters (always, with a cluster of multiprocessors for each share of
    /// the texts; a GPU without clusters is an error).
    #[arg(long, env = "BERTHIER_PERSISTENT_KERNEL", help_heading = MODEL, default_value_t)]
    pub(crate) persistent_kernel: PersistentKernel,
    /// Instruction set of the CPU kernels: portable, avx2 or avx512; asks for the CPU where --device is auto
    /// [default: the best there is]
    #[arg(long, env = "BERTHIER_ISA", help_heading = MODEL)]
    pub(crate) isa: Option<Isa>,
    /// Threads that compute [default: those that the system offers]
    #[arg(long, env = "BERTHIER_THREADS", help_heading = MODEL, value_name = "N")]
    pub(crate) threads: Option<NonZeroUsize>,
    /// Tokens of one batch; the vectors do not depend on it [default: by the number of threads, or by
    /// the GPU]
    #[arg(long, env = "BERTHIER_BATCH_TOKENS", help_heading = MODEL, value_name = "N")]
    pub(crate) batch_tokens: Option<NonZeroUsize>,
}

impl ModelArgs {
    /// The library's options for the model in `dir`.
    ///
    /// # Errors
    /// A directory whose name is not UTF-8.
    pub(crate) fn options(&self, dir: &Path) -> Result<Options, Failure> {
        let name = dir.to_str().ok_or_else(|| format!("{}: the name is not UTF-8", dir.display()))?;
        let mut options = Options::new(name)
            .device(self.device.clone())
            .precision(self.precision)
            .batch_invariant(self.batch_invariant)
            .cuda_graphs(!self.no_cuda_graphs)
            .persistent_kernel(self.persistent_kernel);
        if let Some(isa) = self.isa {
            options = options.isa(isa);
        }
        if let Some(threads) = self.threads {
            options = options.threads(threads);
        }
        if let Some(tokens) = self.batch_tokens {
            options = options.batch_tokens(tokens);
        }
        Ok(options)
    }

    /// The instruction set that computes, if the CPU does.
    pub(crate) fn isa_used(&self, embedder: &Embedder) -> Option<Isa> {
        let on_cpu = embedder.devices().iter().any(|d| d.device == Device::Cpu);
        on_cpu.then(|| self.isa.or_else(|| Isa::available().pop())).flatten()
    }
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Exit codes: 0 done; 1 done, but rows were skipped; 2 error; 130 stopped by a signal.

A file appears under its name when it is complete. Until then there is OUT.partial with a journal beside it, \
and the same command with --resume goes on where it stopped, to the same bytes.")]
pub(crate) struct EmbedArgs {
    /// Files to read, in order; '-' is standard input, which is also read where no file is named
    ///
    /// One text a line: an empty line is an empty text, so that row i is line i. '.jsonl' and '.ndjson' are
    /// read as JSON Lines; '.gz' and '.zst' are unpacked.
    #[arg(value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,

    /// How the files lie [default: by their names]
    #[arg(long, value_enum, help_heading = INPUT, value_name = "FORMAT")]
    pub(crate) input_format: Option<InputFormat>,
    /// JSON Lines: the field of the text
    #[arg(long, default_value = "text", help_heading = INPUT, value_name = "NAME")]
    pub(crate) field: String,
    /// JSON Lines: the field of an id, to go with each vector (npy and raw: in OUT.ids.jsonl)
    #[arg(long, help_heading = INPUT, value_name = "NAME")]
    pub(crate) id_field: Option<String>,
    /// A row that cannot be embedded: invalid UTF-8 or JSON, no text, a line too long
    #[arg(long, value_enum, default_value_t = OnError::Stop, help_heading = INPUT)]
    pub(crate) on_error: OnError,
    /// A text longer than the model takes
    #[arg(long, value_enum, default_value_t = OnTruncate::Warn, help_heading = INPUT)]
    pub(crate) on_truncate: OnTruncate,
    /// Longest line that is read, in bytes; bounds the memory that one row takes
    #[arg(long, default_value = "16777216", help_heading = INPUT, value_name = "BYTES")]
    pub(crate) max_line_bytes: NonZeroUsize,

    /// File to write; '-' is standard output. .npy, .jsonl, .f32 and .f16 say the format
    #[arg(short, long, help_heading = OUTPUT, value_name = "OUT", required_unless_present = "dry_run")]
    pub(crate) output: Option<PathBuf>,
    /// How to write the vectors [default: by OUT's name; jsonl to standard output]
    #[arg(long, value_enum, help_heading = OUTPUT, value_name = "FORMAT")]
    pub(crate) output_format: Option<OutputFormat>,
    /// Numbers of npy and raw output; quantised ones of jsonl too [default: float32]
    ///
    /// int8, uint8, binary and ubinary are those of sentence-transformers' quantize_embeddings. int8 and uint8 divide the
    /// range of each component into 256; OUT.ranges.npy keeps the ranges.
    #[arg(long, value_enum, help_heading = OUTPUT)]
    pub(crate) dtype: Option<Dtype>,
    /// int8 and uint8: take the ranges from the first N rows of the input, which are held in memory [default: 10000]
    #[arg(long, help_heading = OUTPUT, value_name = "N", conflicts_with_all = ["calibration", "ranges"])]
    pub(crate) calibration_rows: Option<NonZeroUsize>,
    /// int8 and uint8: take the ranges from the texts of a file, read as the input is
    #[arg(long, help_heading = OUTPUT, value_name = "FILE", conflicts_with = "ranges")]
    pub(crate) calibration: Option<PathBuf>,
    /// int8 and uint8: the ranges of another run, its OUT.ranges.npy (or any [2, dim] float32 array)
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.npy")]
    pub(crate) ranges: Option<PathBuf>,
    /// The vectors of all tokens, before pooling, in place of one vector a text
    ///
    /// jsonl: a list of vectors, "token_embeddings". npy: [tokens, hidden size], and in OUT.offsets.npy where each text's
    /// vectors begin, with their number at the end. raw: likewise. What is about sentence vectors does not apply.
    #[arg(long, help_heading = OUTPUT, conflicts_with_all = ["normalize", "no_normalize", "truncate_dim"])]
    pub(crate) token_embeddings: bool,
    /// Replace OUT if it exists, and start afresh where a run was interrupted
    #[arg(long, help_heading = OUTPUT, conflicts_with = "resume")]
    pub(crate) overwrite: bool,
    /// Go on where an interrupted run of the same command stopped
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) resume: bool,
    /// Count rows and tokens; compute and write nothing
    #[arg(long, help_heading = OUTPUT, conflicts_with_all = ["resume", "overwrite"])]
    pub(crate) dry_run: bool,
    /// Say only errors and skipped rows
    #[arg(short, long, help_heading = OUTPUT)]
    pub(crate) quiet: bool,

    #[command(flatten)]
    pub(crate) vectors: VectorArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// What of the model's vectors is wanted.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct VectorArgs {
    /// Tokens after which a text is cut, special tokens and prompt included [default: the model's]
    #[arg(long, env = "BERTHIER_MAX_SEQ_LENGTH", help_heading = VECTORS, value_name = "N")]
    pub(crate) max_seq_length: Option<NonZeroUsize>,
    /// Vectors of length 1 [default: as the model says]
    #[arg(long, help_heading = VECTORS, conflicts_with = "no_normalize")]
    pub(crate) normalize: bool,
    /// Vectors as they are pooled
    #[arg(long, help_heading = VECTORS)]
    pub(crate) no_normalize: bool,
    /// Keep the first N components (of models trained for it); add --normalize for length 1
    #[arg(long, help_heading = VECTORS, value_name = "N")]
    pub(crate) truncate_dim: Option<NonZeroUsize>,
    /// Text to put before every text; '' for none
    #[arg(long, help_heading = VECTORS, value_name = "TEXT", conflicts_with = "prompt_name")]
    pub(crate) prompt: Option<String>,
    /// One of the model's own prompts [default: the model's default prompt]
    #[arg(long, help_heading = VECTORS, value_name = "NAME")]
    pub(crate) prompt_name: Option<String>,
}

impl VectorArgs {
    /// The library's options for the model in `dir`.
    ///
    /// # Errors
    /// As [`ModelArgs::options`].
    pub(crate) fn options(&self, model: &ModelArgs, dir: &Path) -> Result<Options, Failure> {
        let mut options = model.options(dir)?.normalize(self.normalization());
        if let Some(tokens) = self.max_seq_length {
            options = options.max_seq_length(tokens);
        }
        if let Some(dim) = self.truncate_dim {
            options = options.truncate_dim(dim);
        }
        if let Some(prompt) = &self.prompt {
            options = options.prompt(prompt);
        }
        if let Some(name) = &self.prompt_name {
            options = options.prompt_name(name);
        }
        Ok(options)
    }

    /// What the two flags say.
    pub(crate) fn normalization(&self) -> Normalize {
        match (self.normalize, self.no_normalize) {
            (true, _) => Normalize::Always,
            (_, true) => Normalize::Never,
            _ => Normalize::Model,
        }
    }
}

/// What to do with a row that cannot be embedded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnError {
    /// End with an error that names file and line
    Stop,
    /// Say it, write a NaN row (jsonl: "error" and a null embedding) and go on; exit code 1
    Skip,
}

/// What to do with a text that is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnTruncate {
    /// Count such rows and say it at the end
    Warn,
    /// End with an error that names file and line
    Error,
    /// Mark such rows: in jsonl output, or in OUT.truncated.jsonl
    Mark,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InfoArgs {
    /// As JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
