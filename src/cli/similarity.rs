//! `berthier similarity`: how alike the two texts of each pair are.

use super::args::{ModelArgs, VectorArgs};
use super::input::{Block, Fields, Format, Inputs};
use super::report::{Failure, Report, print};
use super::{Outcome, resolve};
use crate::eval::Measure;
use berthier::Embedder;
use clap::ValueEnum;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
A pair is a line: two texts with a tab between. Written are the score, a tab, and the line; with --json an \
object a line.")]
pub(crate) struct SimilarityArgs {
    /// Files of pairs; '-' is standard input, which is also read where no file is named
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// What is computed of the two vectors; of distances the negative, so that more is nearer
    #[arg(long, value_enum, default_value_t = Metric::Cosine)]
    metric: Metric,
    /// Write JSON Lines
    #[arg(long)]
    json: bool,
    /// Longest line that is read, in bytes
    #[arg(long, default_value = "16777216", value_name = "BYTES")]
    max_line_bytes: NonZeroUsize,
    #[command(flatten)]
    vectors: VectorArgs,
    #[command(flatten)]
    model: ModelArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Metric {
    Cosine,
    Manhattan,
    Euclidean,
    Dot,
}

impl Metric {
    fn measure(self) -> Measure {
        match self {
            Self::Cosine => Measure::Cosine,
            Self::Manhattan => Measure::Manhattan,
            Self::Euclidean => Measure::Euclidean,
            Self::Dot => Measure::Dot,
        }
    }
}

/// Runs the command.
pub(crate) fn run(args: &SimilarityArgs) -> Result<Outcome, Failure> {
    let report = Report::new(false);
    let fields = Fields { text: String::new(), id: None };
    let inputs = Inputs::check(&args.files, Some(Format::Lines), fields, args.max_line_bytes.get())?;
    let dir = resolve(&args.model, &report)?;
    let embedder = Embedder::load(args.vectors.options(&args.model, &dir)?)?;
    report.warnings(embedder.warnings());
    for block in inputs.blocks(embedder.window_bytes()) {
        print(&judge(args, &embedder, &block?)?)?;
    }
    Ok(Outcome::Done)
}

/// The lines of a block.
fn judge(args: &SimilarityArgs, embedder: &Embedder, block: &Block) -> Result<String, Failure> {
    let mut texts: Vec<&str> = Vec::with_capacity(2 * block.rows.len());
    for row in &block.rows {
        let text = row.text.as_ref().map_err(|why| format!("{}: {why}", row.place))?;
        let fields: Vec<&str> = text.split('\t').collect();
        let [first, second] = fields[..] else {
            let found = fields.len();
            return Err(format!("{}: {found} fields, 2 needed: text TAB text", row.place).into());
        };
        texts.extend([first, second]);
    }
    let vectors = embedder
        .embed(&texts)
        .map_err(|e| Failure::at_row(e, |row| Some(block.rows.get(row / 2)?.place.to_string())))?;
    let mut out = String::new();
    for (i, pair) in texts.as_chunks::<2>().0.iter().enumerate() {
        let score = args.metric.measure().of(vectors.row(2 * i), vectors.row(2 * i + 1));
        let [first, second] = pair;
        out += &if args.json {
            format!("{}\n", json!({"score": score, "first": first, "second": second}))
        } else {
            format!("{score:.6}\t{first}\t{second}\n")
        };
    }
    Ok(out)
}
