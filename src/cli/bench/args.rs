//! The arguments of `berthier bench`; those about the model and the device are the other commands' own.

use berthier::backend::cuda::Gpu;
use berthier::backend::cuda::costs::EncoderShape;
use clap::builder::PossibleValuesParser;
use std::num::NonZeroUsize;
use std::path::PathBuf;

/// What `berthier bench` measures, on what.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct BenchArgs {
    /// What to measure: texts per second on a file, or the time of single calls; or what to predict
    #[arg(value_enum)]
    pub(crate) what: What,

    /// Print JSON: every round, the settings and the machine
    #[arg(long)]
    pub(crate) json: bool,

    /// Calls that are not counted, before the others [default: 1 round, or 10 calls]
    #[arg(long, value_name = "N")]
    pub(crate) warmup: Option<usize>,

    /// Throughput: the texts, one a line
    #[arg(long, value_name = "FILE", required_if_eq("what", "throughput"))]
    pub(crate) texts: Option<PathBuf>,

    /// Throughput: only the first N texts
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<NonZeroUsize>,

    /// Throughput: rounds over all the texts
    #[arg(long, value_name = "N", default_value = "5")]
    pub(crate) repeat: NonZeroUsize,

    /// Latency, costs: tokens of each text, special tokens included [default: 16,64,256; costs: 16,32,128,512]
    #[arg(long, value_name = "N,…", value_delimiter = ',')]
    pub(crate) lengths: Vec<NonZeroUsize>,

    /// Latency: texts of each call
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,8")]
    pub(crate) batch_sizes: Vec<NonZeroUsize>,

    /// Latency: calls for each length and batch size
    #[arg(long, value_name = "N", default_value = "200")]
    pub(crate) samples: NonZeroUsize,

    /// Costs: the GPUs
    #[arg(long, value_name = "GPU,…", value_delimiter = ',', default_value = "h200,a100",
        value_parser = PossibleValuesParser::new(Gpu::KNOWN))]
    pub(crate) gpu: Vec<String>,

    /// Costs: the encoders [default: that of --model, or all of these]
    #[arg(long, value_name = "SHAPE,…", value_delimiter = ',',
        value_parser = PossibleValuesParser::new(EncoderShape::KNOWN))]
    pub(crate) shape: Vec<String>,
}

impl BenchArgs {
    /// The lengths that were given, or these.
    pub(crate) fn lengths_or(&self, default: &[usize]) -> Vec<usize> {
        if self.lengths.is_empty() {
            default.to_vec()
        } else {
            self.lengths.iter().map(|n| n.get()).collect()
        }
    }
}

/// The two measurements, and the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum What {
    /// Texts and tokens per second over a file of texts
    Throughput,
    /// Microseconds of one call: p50, p90, p99
    Latency,
    /// Predicted, not measured: what each CUDA kernel of an encoder costs on a GPU, which need not be there
    Costs,
}
