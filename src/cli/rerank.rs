//! `berthier rerank`: documents in the order in which a cross-encoder says that they answer a query.

use super::args::ModelArgs;
use super::input::{Fields, Format, Inputs};
use super::report::{Failure, Report, print};
use super::{Outcome, resolve};
use berthier::{CrossEncoder, Ranked};
use serde_json::{Value, json};
use std::num::NonZeroUsize;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Written is a JSON object a query: {\"query\": …, \"hits\": [{\"row\": …, \"score\": …, \"text\": …}, …]}, best first; of equal \
scores the earlier document. Rows count from 0, in the files together or in the query's own list.

  berthier rerank -m cross-encoder/ms-marco-MiniLM-L6-v2 --query 'how to reset a password' answers.txt
  berthier rerank -m BAAI/bge-reranker-base candidates.jsonl > ranked.jsonl

where a line of candidates.jsonl is {\"query\": \"…\", \"documents\": [\"…\", \"…\"]}.")]
pub(crate) struct RerankArgs {
    /// With --query documents, one a line or in JSON Lines; without, JSON Lines of queries with their documents. '-' is
    /// standard input, which is also read where no file is named
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// A query for all documents; may be given several times
    #[arg(short, long, value_name = "TEXT")]
    query: Vec<String>,
    /// JSON Lines of documents: the field of the text
    #[arg(long, default_value = "text", value_name = "NAME")]
    field: String,
    /// JSON Lines of queries: the field of the query
    #[arg(long, default_value = "query", value_name = "NAME")]
    query_field: String,
    /// JSON Lines of queries: the field of the list of documents
    #[arg(long, default_value = "documents", value_name = "NAME")]
    documents_field: String,
    /// How the files lie, with --query [default: by their names]
    #[arg(long, value_enum, value_name = "FORMAT", requires = "query")]
    input_format: Option<Format>,
    /// How many documents are written for each query [default: all]
    #[arg(short = 'k', long, value_name = "N")]
    top: Option<NonZeroUsize>,
    /// Leave the documents' texts out
    #[arg(long)]
    no_text: bool,
    /// Scores as the model's last layer gives them, without the function that the model's files name (or the sigmoid)
    #[arg(long)]
    logits: bool,
    /// Tokens after which a pair is cut, special tokens included [default: the model's]
    #[arg(long, env = "BERTHIER_MAX_SEQ_LENGTH", value_name = "N")]
    max_seq_length: Option<NonZeroUsize>,
    /// Longest line that is read, in bytes
    #[arg(long, default_value = "16777216", value_name = "BYTES")]
    max_line_bytes: NonZeroUsize,
    /// Say only errors
    #[arg(long)]
    quiet: bool,
    #[command(flatten)]
    model: ModelArgs,
}

/// A query and what it is asked of.
struct Asked {
    query: String,
    documents: Vec<String>,
    /// Of the line, for messages.
    place: String,
}

/// Runs the command.
pub(crate) fn run(args: &RerankArgs) -> Result<Outcome, Failure> {
    let report = Report::new(args.quiet);
    let fields = Fields { text: args.field.clone(), id: None };
    // a query with its documents is parsed here
    let format = if args.query.is_empty() { Some(Format::Lines) } else { args.input_format };
    let inputs = Inputs::check(&args.files, format, fields, args.max_line_bytes.get())?;
    let model = load(args, &report)?;
    let mut cut = 0;
    if args.query.is_empty() {
        let mut window = Vec::new();
        let (mut bytes, limit) = (0, model.window_bytes());
        read(inputs, limit, |place, line| {
            let asked = parse(args, place, line)?;
            bytes += asked.documents.iter().map(|d| d.len() + asked.query.len()).sum::<usize>();
            window.push(asked);
            if bytes >= limit {
                cut += rank(args, &model, &std::mem::take(&mut window))?;
                bytes = 0;
            }
            Ok(())
        })?;
        cut += rank(args, &model, &window)?;
    } else {
        let mut documents = Vec::new();
        let mut places = Vec::new();
        read(inputs, model.window_bytes(), |place, text| {
            places.push(place);
            documents.push(text);
            Ok(())
        })?;
        for query in &args.query {
            let pairs: Vec<(&str, &str)> = documents.iter().map(|d| (&query[..], &d[..])).collect();
            let scores =
                model.predict(&pairs).map_err(|e| Failure::at_row(e, |row| places.get(row).cloned()))?;
            cut += scores.tokens().iter().filter(|t| t.truncated()).count();
            show(args, query, &documents, scores.as_slice())?;
        }
    }
    if cut > 0 {
        let limit = model.max_seq_length();
        report.warn(&format!("{cut} pairs cut at {limit} tokens: the longer text of each lost its end"));
    }
    Ok(Outcome::Done)
}

fn load(args: &RerankArgs, report: &Report) -> Result<CrossEncoder, Failure> {
    if args.model.model.is_none() {
        return Err(Failure::Error(
            "name a cross-encoder with --model (the default model has vectors and no scores)".into(),
        ));
    }
    let dir = resolve(&args.model, report)?;
    let mut options = args.model.options(&dir)?;
    if let Some(tokens) = args.max_seq_length {
        options = options.max_seq_length(tokens);
    }
    let model = if args.logits { CrossEncoder::load_logits(options)? } else { CrossEncoder::load(options)? };
    model.check_one_label()?;
    report.warnings(model.warnings());
    Ok(model)
}

/// Gives each row's place and text to `take`.
fn read(
    inputs: Inputs,
    block_bytes: usize,
    mut take: impl FnMut(String, String) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for block in inputs.blocks(block_bytes) {
        for row in block?.rows {
            let text = row.text.map_err(|why| format!("{}: {why}", row.place))?;
            take(row.place.to_string(), text)?;
        }
    }
    Ok(())
}

/// A line of queries with their documents.
fn parse(args: &RerankArgs, place: String, line: String) -> Result<Asked, Failure> {
    let wrong = |why: String| Failure::Error(format!("{place}: {why}"));
    let value: Value =
        serde_json::from_str(&line).map_err(|e| wrong(format!("{e} (documents alone need --query)")))?;
    let (query, documents) = (&args.query_field, &args.documents_field);
    let asked = value[query].as_str().ok_or_else(|| wrong(format!("no \"{query}\", a string")))?;
    let list = value[documents]
        .as_array()
        .and_then(|list| list.iter().map(|d| d.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>());
    let list = list.ok_or_else(|| wrong(format!("no \"{documents}\", a list of strings")))?;
    Ok(Asked { query: asked.into(), documents: list, place })
}

/// Ranks for several queries at once, so that pairs of one length go together. Gives how many pairs were cut.
fn rank(args: &RerankArgs, model: &CrossEncoder, asked: &[Asked]) -> Result<usize, Failure> {
    let pairs: Vec<(&str, &str)> =
        asked.iter().flat_map(|a| a.documents.iter().map(|d| (&a.query[..], &d[..]))).collect();
    let place = |row: usize| {
        let mut places = asked.iter().flat_map(|a| a.documents.iter().map(|_| &a.place));
        places.nth(row).cloned()
    };
    let scores = model.predict(&pairs).map_err(|e| Failure::at_row(e, place))?;
    let mut rest = scores.as_slice();
    for Asked { query, documents, .. } in asked {
        let (own, behind) = rest.split_at(documents.len());
        rest = behind;
        show(args, query, documents, own)?;
    }
    Ok(scores.tokens().iter().filter(|t| t.truncated()).count())
}

fn show(args: &RerankArgs, query: &str, documents: &[String], scores: &[f32]) -> Result<(), Failure> {
    let top = args.top.map_or(usize::MAX, NonZeroUsize::get);
    let hits: Vec<Value> = Ranked::sorted(scores)
        .into_iter()
        .take(top)
        .map(|hit| match args.no_text {
            true => json!({"row": hit.index, "score": hit.score}),
            false => json!({"row": hit.index, "score": hit.score, "text": documents[hit.index]}),
        })
        .collect();
    print(&format!("{}\n", json!({"query": query, "hits": hits})))
}
