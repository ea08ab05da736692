//! The flags of `berthier eval` and their help.

use super::super::args::{ModelArgs, VectorArgs};
use clap::Subcommand;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

const OUTPUT: &str = "Output";

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Semantic textual similarity: do the vectors of a pair lie as near as people judged it
    Sts(StsArgs),
    /// Transfer: what a logistic regression can tell from the vectors
    Senteval(SentevalArgs),
    /// Retrieval: are the relevant passages among the nearest
    Retrieval(RetrievalArgs),
    /// Pooling modes and layers of one encoder, by their Spearman correlation
    Ablation(AblationArgs),
    /// Two models, precisions or devices on the same data
    Compare(CompareArgs),
}

/// How results are written, and whether vectors are kept.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print JSON, with every digit and everything that the numbers depend on
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) json: bool,
    /// Print CSV, with every digit
    #[arg(long, help_heading = OUTPUT, conflicts_with = "json")]
    pub(crate) csv: bool,
    /// Compute all vectors; read none from the cache and leave none there
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) no_cache: bool,
    /// Say only errors
    #[arg(short, long, help_heading = OUTPUT)]
    pub(crate) quiet: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Read are: tab-separated files (subset, score, two sentences), whose names name the sets; the STS benchmark's \
sts-{train,dev,test}.csv; SICK's SICK_*.txt; GLUE's STS-B; and the STS.input.*.txt with STS.gs.*.txt of STS12 \
to STS16, as SentEval has them.")]
pub(crate) struct StsArgs {
    /// Folders with the data, or single files
    #[arg(required = true, value_name = "DIR")]
    pub(crate) data: Vec<PathBuf>,
    /// Sets to judge, by name; 'all' for all there are, NAME-all for all parts of NAME together
    /// [default: STS12 to STS16 and the test parts of STSb and SICK-R]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) sets: Vec<String>,
    /// Draw predicted against gold scores
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) vectors: VectorArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Read are: NAME/{all,train,dev,test}.tsv (label, sentence; MRPC: two sentences), and SentEval's own files \
(MR/rt-polarity.pos, TREC/train_5500.label, …).")]
pub(crate) struct SentevalArgs {
    /// Folders that hold a folder for each set
    #[arg(required = true, value_name = "DIR")]
    pub(crate) data: Vec<PathBuf>,
    /// Sets to judge: mr, cr, subj, mpqa, sst2, trec, mrpc [default: those there are]
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) sets: Vec<String>,
    /// Shuffle the rows of each class before they are dealt into folds [default: in the order of the files]
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) vectors: VectorArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A folder holds corpus.jsonl (_id, title, text), queries.jsonl (_id, text) and qrels.tsv or qrels/SPLIT.tsv \
(query-id, corpus-id, score), as BEIR has them. A passage is its title, a blank, and its text.")]
pub(crate) struct RetrievalArgs {
    /// Folders in BEIR's layout
    #[arg(required = true, value_name = "DIR")]
    pub(crate) data: Vec<PathBuf>,
    /// Which judgements of qrels/
    #[arg(long, default_value = "test")]
    pub(crate) split: String,
    /// Leave a passage out whose id is the query's (sets such as ArguAna, whose queries are passages)
    #[arg(long)]
    pub(crate) skip_same_id: bool,
    #[command(flatten)]
    pub(crate) prompts: PromptArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) vectors: RetrievalVectorArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

/// Text before queries and before passages.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct PromptArgs {
    /// Text to put before every query [default: the model's prompt 'query', else its default prompt]
    #[arg(long, value_name = "TEXT")]
    pub(crate) query_prompt: Option<String>,
    /// Text to put before every passage [default: the model's prompt 'document', 'passage' or 'corpus', else
    /// its default prompt]
    #[arg(long, value_name = "TEXT")]
    pub(crate) passage_prompt: Option<String>,
}

/// As [`VectorArgs`], without what prompts say.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RetrievalVectorArgs {
    /// Tokens after which a text is cut, special tokens and prompt included [default: the model's]
    #[arg(long, env = "BERTHIER_MAX_SEQ_LENGTH", value_name = "N")]
    pub(crate) max_seq_length: Option<NonZeroUsize>,
    /// Keep the first N components (of models trained for it)
    #[arg(long, value_name = "N")]
    pub(crate) truncate_dim: Option<NonZeroUsize>,
    /// Rank by dot product [default: by cosine]
    #[arg(long)]
    pub(crate) dot: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct AblationArgs {
    /// Folders with STS data, or single files
    #[arg(required = true, value_name = "DIR")]
    pub(crate) data: Vec<PathBuf>,
    /// Sets to judge, as for 'eval sts'
    #[arg(long, value_delimiter = ',', value_name = "NAME,…", default_value = "stsb-test")]
    pub(crate) sets: Vec<String>,
    /// How many of the last layers have their token vectors averaged; each is a row
    /// [default: 1 and, of an encoder that has them, 4]
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    pub(crate) layers: Vec<NonZeroUsize>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A side is MODEL[,KEY=VALUE]…: a directory or name (empty: the model of --model) and any of device, precision, \
isa, max-seq-length, truncate-dim, prompt, store. 'store=float16' rounds the vectors as 'embed --dtype float16' \
does. For example:

  berthier eval compare , ,isa=portable data/sts
  berthier eval compare , ,store=float16 data/sts data/retrieval/scifact
  berthier eval compare models/a models/b,prompt='query: ' data/sts

Folders with a corpus.jsonl are retrieval sets, others STS sets.")]
pub(crate) struct CompareArgs {
    /// One side
    #[arg(value_name = "A")]
    pub(crate) a: String,
    /// The other side
    #[arg(value_name = "B")]
    pub(crate) b: String,
    /// Folders with STS data or in BEIR's layout
    #[arg(required = true, value_name = "DIR")]
    pub(crate) data: Vec<PathBuf>,
    /// STS sets to judge, as for 'eval sts'
    #[arg(long, value_delimiter = ',', value_name = "NAME,…")]
    pub(crate) sets: Vec<String>,
    /// Resamples of the paired bootstrap
    #[arg(long, default_value = "1000", value_name = "N")]
    pub(crate) resamples: NonZeroU32,
    /// Of the bootstrap
    #[arg(long, default_value = "1", value_name = "N")]
    pub(crate) seed: u64,
    /// Texts whose neighbours are compared, spread evenly over the set
    #[arg(long, default_value = "1000", value_name = "N")]
    pub(crate) probes: NonZeroUsize,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}
