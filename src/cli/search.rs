//! `berthier search`: the texts of an embedded corpus that are most like a query, all of them compared.

use super::args::{ModelArgs, VectorArgs};
use super::eval::query_embedder;
use super::input::{Fields, Format, Inputs};
use super::npy::Npy;
use super::report::{Failure, Report, print};
use super::{Outcome, resolve};
use crate::search::{Data, Hit, Score, top_k};
use berthier::{Embedder, Threads};
use clap::ArgGroup;
use serde_json::json;
use std::collections::HashMap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[command(
    group = ArgGroup::new("asked").required(true).multiple(true).args(["query", "queries", "query_vectors"]),
    after_help = "\
Written are, with tabs between: the query, rank, score, row (from 0) and text. With --json an object a query.

  berthier embed corpus.txt -o corpus.npy
  berthier search corpus.npy --texts corpus.txt --query 'how to reset a password'"
)]
pub(crate) struct SearchArgs {
    /// The corpus's vectors, as 'berthier embed' wrote them (.npy, float32 or float16)
    #[arg(value_name = "VECTORS.npy")]
    corpus: PathBuf,
    /// The corpus's texts, in the same order; without, only rows are written
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// JSON Lines: the field of the text, of corpus and queries
    #[arg(long, default_value = "text", value_name = "NAME")]
    field: String,
    /// A query; may be given several times
    #[arg(long, value_name = "TEXT")]
    query: Vec<String>,
    /// A file of queries, one a line; '-' is standard input
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// Queries as vectors; no model is loaded
    #[arg(long, value_name = "FILE.npy", conflicts_with_all = ["query", "queries"])]
    query_vectors: Option<PathBuf>,
    /// How many are found for each query
    #[arg(short = 'k', long, default_value = "10", value_name = "N")]
    top: NonZeroUsize,
    /// Rank by dot product [default: by cosine]
    #[arg(long)]
    dot: bool,
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

/// What is looked for: what it is called in the output, and `[queries, dim]`.
struct Queries {
    names: Vec<String>,
    vectors: Vec<f32>,
}

/// Runs the command.
pub(crate) fn run(args: &SearchArgs) -> Result<Outcome, Failure> {
    // what can be wrong with the files is said before a model is loaded
    let corpus = Npy::open(&args.corpus)?;
    let texts = args.texts.as_ref().map(|path| inputs(args, path)).transpose()?;
    let queries = match &args.query_vectors {
        Some(path) => Queries::from_file(path)?,
        None => Queries::embed(args)?,
    };
    let dim = queries.vectors.len() / queries.names.len().max(1);
    if dim != corpus.dim() && !queries.names.is_empty() {
        let (name, of) = (args.corpus.display(), corpus.dim());
        return Err(
            format!("{name}: rows of {of} components, the queries have {dim} (another model?)").into()
        );
    }
    let score = if args.dot { Score::Dot } else { Score::Cosine };
    let threads = Threads::new(args.model.threads)?;
    let found = top_k(corpus.data()?, &queries.vectors, args.top.get(), score, &threads);
    let texts = texts.map(|texts| wanted(texts, &found, corpus.rows(), args)).transpose()?;
    let mut out = String::new();
    for (query, hits) in queries.names.iter().zip(&found) {
        show(&mut out, query, hits, texts.as_ref(), args.json);
    }
    print(&out)?;
    Ok(Outcome::Done)
}

fn inputs(args: &SearchArgs, path: &Path) -> Result<Inputs, Failure> {
    let fields = Fields { text: args.field.clone(), id: None };
    let name = path.to_string_lossy().to_lowercase();
    // a table is as good as any lines to look at
    let format = [".tsv", ".csv"].iter().any(|e| name.ends_with(e)).then_some(Format::Lines);
    Inputs::check(&[path.into()], format, fields, args.max_line_bytes.get())
}

impl Queries {
    fn from_file(path: &Path) -> Result<Self, Failure> {
        let file = Npy::open(path)?;
        let vectors = match file.data()?.data {
            Data::F32(data) => data.to_vec(),
            Data::F16(data) => data.iter().map(|v| v.to_f32()).collect(),
        };
        Ok(Self { names: (0..file.rows()).map(|i| i.to_string()).collect(), vectors })
    }

    fn embed(args: &SearchArgs) -> Result<Self, Failure> {
        let report = Report::new(false);
        let file = args.queries.as_ref().map(|path| inputs(args, path)).transpose()?;
        let dir = resolve(&args.model, &report)?;
        let embedder = Embedder::load(args.vectors.options(&args.model, &dir)?)?;
        report.warnings(embedder.warnings());
        let has_prompt = args.vectors.prompt.is_some() || args.vectors.prompt_name.is_some();
        let embedder = if has_prompt { embedder } else { query_embedder(&embedder)? };
        let mut queries =
            Self { names: args.query.clone(), vectors: embedder.embed(&args.query)?.into_vec() };
        let Some(file) = file else { return Ok(queries) };
        for block in file.blocks(embedder.window_bytes()) {
            let block = block?;
            let texts: Vec<&str> = block
                .rows
                .iter()
                .map(|row| row.text.as_deref().map_err(|why| format!("{}: {why}", row.place)))
                .collect::<Result<_, _>>()?;
            let vectors = embedder
                .embed(&texts)
                .map_err(|e| Failure::at_row(e, |row| Some(block.rows.get(row)?.place.to_string())))?;
            queries.names.extend(texts.iter().map(|&text| text.to_owned()));
            queries.vectors.extend_from_slice(vectors.as_slice());
        }
        Ok(queries)
    }
}

/// The texts of the rows that were found, from one walk over the corpus.
fn wanted(
    texts: Inputs,
    found: &[Vec<Hit>],
    rows: usize,
    args: &SearchArgs,
) -> Result<HashMap<usize, String>, Failure> {
    let mut wanted: HashMap<usize, String> =
        found.iter().flatten().map(|hit| (hit.row, String::new())).collect();
    let mut row = 0;
    for block in texts.blocks(1 << 20) {
        for found in block?.rows {
            if let (Some(place), Ok(text)) = (wanted.get_mut(&row), found.text) {
                *place = text;
            }
            row += 1;
        }
    }
    let name = |path: &Option<PathBuf>| path.as_ref().map_or(String::new(), |p| p.display().to_string());
    if row != rows {
        let (texts, corpus) = (name(&args.texts), args.corpus.display());
        return Err(
            format!("{texts}: {row} texts, and {corpus} has {rows} rows (is it what was embedded?)").into()
        );
    }
    Ok(wanted)
}

fn show(out: &mut String, query: &str, hits: &[Hit], texts: Option<&HashMap<usize, String>>, as_json: bool) {
    let text = |hit: &Hit| texts.map(|texts| texts.get(&hit.row).map_or("", String::as_str));
    if as_json {
        let hits: Vec<_> = hits
            .iter()
            .map(|hit| {
                let mut object = json!({"row": hit.row, "score": hit.score});
                if let Some(text) = text(hit) {
                    object["text"] = json!(text);
                }
                object
            })
            .collect();
        let _ = writeln!(out, "{}", json!({"query": query, "hits": hits}));
        return;
    }
    for (i, hit) in hits.iter().enumerate() {
        let text = text(hit).map_or_else(String::new, |text| format!("\t{}", flat(text)));
        let _ = writeln!(out, "{}\t{}\t{:.6}\t{}{text}", flat(query), i + 1, hit.score, hit.row);
    }
}

/// Without what would break a table.
fn flat(text: &str) -> String {
    text.replace(['\t', '\n', '\r'], " ")
}
