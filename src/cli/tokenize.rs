//! `berthier tokenize`: the ids that a model gets for each text.

use super::args::ModelArgs;
use super::input::{Block, Fields, Format, Inputs};
use super::report::{Failure, Report, print};
use super::{Outcome, resolve};
use berthier::Embedder;
use serde_json::json;
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Written is an object a line: the ids of the text as they go into the model, with prompt and special tokens and \
cut at the model's limit, and how many there were before the cut.")]
pub(crate) struct TokenizeArgs {
    /// Files to read, in order; '-' is standard input, which is also read where no file is named
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// How the files lie [default: by their names]
    #[arg(long, value_enum, value_name = "FORMAT")]
    input_format: Option<Format>,
    /// JSON Lines: the field of the text
    #[arg(long, default_value = "text", value_name = "NAME")]
    field: String,
    /// Text to put before every text; '' for none
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// One of the model's own prompts [default: the model's default prompt]
    #[arg(long, value_name = "NAME", conflicts_with = "prompt")]
    prompt_name: Option<String>,
    /// Longest line that is read, in bytes
    #[arg(long, default_value = "16777216", value_name = "BYTES")]
    max_line_bytes: NonZeroUsize,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the command.
pub(crate) fn run(args: &TokenizeArgs) -> Result<Outcome, Failure> {
    let report = Report::new(false);
    let fields = Fields { text: args.field.clone(), id: None };
    let inputs = Inputs::check(&args.files, args.input_format, fields, args.max_line_bytes.get())?;
    let dir = resolve(&args.model, &report)?;
    let mut embedder = Embedder::load(args.model.options(&dir)?)?;
    if let Some(prompt) = &args.prompt {
        embedder = embedder.with_prompt(prompt.as_str())?;
    } else if let Some(name) = &args.prompt_name {
        embedder = embedder.with_prompt_name(name)?;
    }
    report.warnings(embedder.warnings());
    for block in inputs.blocks(embedder.window_bytes()) {
        print(&lines(&embedder, &block?)?)?;
    }
    Ok(Outcome::Done)
}

/// The lines of a block.
fn lines(embedder: &Embedder, block: &Block) -> Result<String, Failure> {
    let texts = block.rows.iter().map(|row| row.text.as_ref().map_err(|why| format!("{}: {why}", row.place)));
    let texts = texts.collect::<Result<Vec<_>, _>>()?;
    let encodings = embedder
        .tokenize(&texts)
        .map_err(|e| Failure::at_row(e, |row| Some(block.rows.get(row)?.place.to_string())))?;
    let line = |e: &berthier::tokenize::Encoding| json!({"ids": e.ids, "total_tokens": e.total_tokens});
    Ok(encodings.iter().map(|e| format!("{}\n", line(e))).collect())
}
