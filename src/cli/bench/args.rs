//! The flags of `berthier bench` and their help.

use super::super::args::ModelArgs;
use berthier::backend::cuda::Gpu;
use berthier::backend::cuda::costs::EncoderShape;
use clap::Subcommand;
use clap::builder::PossibleValuesParser;
use std::num::NonZeroUsize;
use std::path::PathBuf;

const OUTPUT: &str = "Output";

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Texts and tokens per second: on a file of texts, or at fixed lengths
    Throughput(ThroughputArgs),
    /// Microseconds of one call: p50, p90, p99, p99.9
    Latency(LatencyArgs),
    /// Seconds from the start of a process to its first vector
    ColdStart(ColdStartArgs),
    /// Each CPU kernel at the model's shapes, and its share of what the processor can do
    Kernels(KernelsArgs),
    /// Predicted, not measured: what each CUDA kernel of an encoder costs on a GPU, which need not be there
    Costs(CostsArgs),
}

/// How results are written, and what they are compared with.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct OutputArgs {
    /// Print JSON: every sample, the settings and the machine
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) json: bool,
    /// Print ratios to an earlier run's JSON, with intervals
    #[arg(long, value_name = "FILE", help_heading = OUTPUT)]
    pub(crate) compare: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
All texts are one call, as often as --repeat says. With --lengths the texts are English words, each text of exactly \
so many tokens. A rate is that of the median round; in parentheses, of the slowest and the fastest.")]
pub(crate) struct ThroughputArgs {
    /// The texts, one a line
    #[arg(long, value_name = "FILE", required_unless_present = "lengths")]
    pub(crate) texts: Option<PathBuf>,
    /// Texts of these numbers of tokens, special tokens included, beside or in place of a file
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) lengths: Vec<NonZeroUsize>,
    /// Only so many texts [default: all of the file; 32768 tokens of each length]
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<NonZeroUsize>,
    /// From token ids: tokenisation is not counted
    #[arg(long)]
    pub(crate) ids: bool,
    /// Rounds over all the texts
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) repeat: NonZeroUsize,
    /// Rounds that are not counted, before the others
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) warmup: usize,
    /// Draw tokens per second against length
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.svg", requires = "lengths")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without --rate the next call begins when the last one has ended (a closed loop). With --rate a call is due every \
1/RATE seconds, whether or not the last one has ended, and its latency counts from when it was due: calls that wait \
behind a slow one are slow too, as a user of a service sees it. `service` is then the call alone.

On a GPU the time by its own clock stands below: `gpu` with the copies of ids and vectors, `gpu-kernels` without. These are \
calls of their own, from ids: taking the time costs some. `launched` is how the batches were given to the GPU: kernel by kernel, \
as a graph, or in one launch on the whole grid or in clusters, whatever was asked for.

A percentile is printed where there are samples enough to tell: p99.9 takes 1000.")]
pub(crate) struct LatencyArgs {
    /// The lines of this file in turn, in place of texts of given lengths
    #[arg(long, value_name = "FILE", conflicts_with = "lengths")]
    pub(crate) texts: Option<PathBuf>,
    /// Tokens of each text, special tokens included
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "16,64,256")]
    pub(crate) lengths: Vec<NonZeroUsize>,
    /// Texts of each call
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8")]
    pub(crate) batch_sizes: Vec<NonZeroUsize>,
    /// Calls that are counted, for each length and batch size [default: 200; with --cold 30]
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<NonZeroUsize>,
    /// Calls that are not counted, before the others
    #[arg(long, value_name = "N", default_value = "10")]
    pub(crate) warmup: usize,
    /// Calls a second, at fixed intervals
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub(crate) rate: Option<f64>,
    /// Sweep the processor's caches and the GPU's before each call, as other work between calls would
    #[arg(long, conflicts_with = "rate")]
    pub(crate) cold: bool,
    /// Draw the percentiles
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each sample is a process of this program's own: it starts, loads the model, embeds one short text and writes. `read` \
is a plain read of the weights' file by this process, what no loader can do without. The file comes from the system's \
page cache, as it does for a model that was used before.")]
pub(crate) struct ColdStartArgs {
    /// Processes that are counted
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) samples: NonZeroUsize,
    /// Processes that are not counted, before the others
    #[arg(long, value_name = "N", default_value = "2")]
    pub(crate) warmup: usize,
    /// Be such a process
    #[arg(long, hide = true)]
    pub(crate) child: bool,
    /// Draw the percentiles
    #[arg(long, help_heading = OUTPUT, value_name = "FILE.svg")]
    pub(crate) plot: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
On one thread. The roof is a loop of multiply-adds in registers, measured before each kernel. Row kernels are told in \
bytes read and written, from and to a cache.")]
pub(crate) struct KernelsArgs {
    /// Rows (tokens) of the products
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8,64,256")]
    pub(crate) rows: Vec<NonZeroUsize>,
    /// Samples of each kernel, a few milliseconds each
    #[arg(long, value_name = "N", default_value = "20")]
    pub(crate) samples: NonZeroUsize,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CostsArgs {
    /// Tokens of each text, special tokens included
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "16,32,128,512")]
    pub(crate) lengths: Vec<NonZeroUsize>,
    /// The GPUs
    #[arg(long, value_name = "GPU,…", value_delimiter = ',', default_value = "h200,a100",
        value_parser = PossibleValuesParser::new(Gpu::KNOWN))]
    pub(crate) gpu: Vec<String>,
    /// The encoders [default: that of --model, or all of these]
    #[arg(long, value_name = "SHAPE,…", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(EncoderShape::KNOWN))]
    pub(crate) shape: Vec<String>,
    /// Print JSON
    #[arg(long, help_heading = OUTPUT)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        // slower than a call a day, or faster than a clock tells, is a slip
        Ok(rate) if (1e-5..=1e9).contains(&rate) => Ok(rate),
        _ => Err("calls a second, above 0".into()),
    }
}
