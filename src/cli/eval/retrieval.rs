//! `berthier eval retrieval`: are the relevant passages among the nearest.

use super::super::args::ModelArgs;
use super::super::report::{Failure, Report, grouped};
use super::super::{Outcome, resolve};
use super::args::{PromptArgs, RetrievalArgs, RetrievalVectorArgs};
use super::cache::Cache;
use super::data::{Published, TextFile, file_name};
use super::sheet::{Cell, Column, Sheet};
use super::sts::context;
use super::vectors::{Source, Vectors};
use crate::eval::{average_precision, mean, ndcg, recall, reciprocal_rank};
use crate::search::{Hit, Matrix, Score, top_k};
use berthier::{Embedder, Normalize, Threads};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Instant;

/// Hits that are ranked: what trec_eval looks at. MAP counts what lies behind as not found.
const DEPTH: usize = 1000;
/// Rank that nDCG and MRR look at.
const K: usize = 10;
/// Ranks that recall looks at.
const RECALL_AT: [usize; 4] = [1, 10, 100, 1000];

/// A corpus with queries and judgements.
#[derive(Debug, Default)]
pub(crate) struct Collection {
    pub(crate) name: String,
    passage_ids: Vec<String>,
    pub(crate) passages: Vec<String>,
    query_ids: Vec<String>,
    /// Those that have a relevant passage.
    pub(crate) queries: Vec<String>,
    /// Gains above 0 by passage, for each query; passages that the corpus lacks have no index and count as
    /// not found.
    judged: Vec<(HashMap<usize, f64>, Vec<f64>)>,
}

/// What one query scores.
#[derive(Debug, Clone)]
pub(crate) struct Scores {
    pub(crate) ndcg: f64,
    average_precision: f64,
    reciprocal_rank: f64,
    recall: [f64; RECALL_AT.len()],
}

/// Runs the command.
pub(crate) fn run(args: &RetrievalArgs) -> Result<Outcome, Failure> {
    let clock = Instant::now();
    let mut report = Report::new(args.output.quiet);
    let collections: Vec<Collection> =
        args.data.iter().map(|dir| Collection::read(dir, &args.split)).collect::<Result<_, _>>()?;
    let embedder = open(&args.model, &args.vectors, &report)?;
    let [queries_embedder, passages_embedder] = prompted(&embedder, &args.prompts)?;
    let cache = Cache::new(args.output.no_cache);
    let threads = Threads::new(NonZeroUsize::new(embedder.threads()))?;
    let score = if args.vectors.dot { Score::Dot } else { Score::Cosine };
    let source = |embedder| Source::new(embedder, Normalize::Model, &cache);
    let (for_queries, for_passages) = (source(&queries_embedder)?, source(&passages_embedder)?);

    let mut sheet = Sheet::new(columns());
    let mut truncated = 0;
    for collection in &collections {
        let passages = for_passages.vectors(&texts(&collection.passages), &cache, &mut report)?.remove(0);
        let queries = for_queries.vectors(&texts(&collection.queries), &cache, &mut report)?.remove(0);
        truncated += passages.truncated + queries.truncated;
        let scores = collection.judge(&passages, &queries, score, args.skip_same_id, &threads);
        push(&mut sheet, collection, &scores);
    }
    let seconds = clock.elapsed().as_secs_f64();
    let queries = collections.iter().map(|c| c.queries.len() as u64).sum();
    report.note(&format!(
        "{} judged in {seconds:.1} s, loading included",
        if queries == 1 { "1 query".into() } else { format!("{} queries", grouped(queries)) }
    ));
    let mut context = context("retrieval", &embedder);
    if let Value::Object(object) = &mut context {
        object.remove("prompt");
    }
    context["query_prompt"] = json!(queries_embedder.prompt());
    context["passage_prompt"] = json!(passages_embedder.prompt());
    context["truncated"] = json!(truncated);
    context["seconds"] = json!(seconds);
    sheet.print(&args.output, context, "\ntimes 100; exact search over all passages\n")?;
    Ok(Outcome::Done)
}

/// One list.
pub(crate) fn texts(list: &[String]) -> [Vec<&str>; 1] {
    [list.iter().map(String::as_str).collect()]
}

fn open(model: &ModelArgs, vectors: &RetrievalVectorArgs, report: &Report) -> Result<Embedder, Failure> {
    let dir = resolve(model, report)?;
    let mut options = model.options(&dir)?;
    if let Some(tokens) = vectors.max_seq_length {
        options = options.max_seq_length(tokens);
    }
    if let Some(dim) = vectors.truncate_dim {
        options = options.truncate_dim(dim);
    }
    let embedder = Embedder::load(options)?;
    report.warnings(embedder.warnings());
    Ok(embedder)
}

/// The model with its prompt for queries and with that for passages, by the names that sentence-transformers'
/// `encode_query` and `encode_document` look for.
pub(crate) fn prompted(embedder: &Embedder, prompts: &PromptArgs) -> Result<[Embedder; 2], Failure> {
    let with = |given: &Option<String>, names: &[&str]| match given {
        Some(prompt) => embedder.with_prompt(prompt),
        None => match names.iter().find(|name| embedder.model().prompts.contains_key(**name)) {
            Some(name) => embedder.with_prompt_name(name),
            None => Ok(embedder.clone()),
        },
    };
    Ok([
        with(&prompts.query_prompt, &["query"])?,
        with(&prompts.passage_prompt, &["document", "passage", "corpus"])?,
    ])
}

fn columns() -> Vec<Column> {
    let mut columns = vec![
        Column::new("set", "set", 0),
        Column::new("passages", "passages", 0),
        Column::new("queries", "queries", 0),
        Column::new("ndcg@10", "nDCG@10", 2),
        Column::new("map@1000", "MAP@1000", 2),
        Column::new("mrr@10", "MRR@10", 2),
    ];
    columns.extend(RECALL_AT.map(|k| Column::new(format!("recall@{k}"), format!("recall@{k}"), 2)));
    columns
}

fn push(sheet: &mut Sheet, collection: &Collection, scores: &[Scores]) {
    let of = |value: &dyn Fn(&Scores) -> f64| Cell::Number(100.0 * mean(scores.iter().map(value)));
    let mut row = vec![
        collection.name[..].into(),
        Cell::Count(collection.passages.len()),
        Cell::Count(scores.len()),
        of(&|s| s.ndcg),
        of(&|s| s.average_precision),
        of(&|s| s.reciprocal_rank),
    ];
    row.extend((0..RECALL_AT.len()).map(|i| of(&|s| s.recall[i])));
    sheet.push(row);
}

impl Collection {
    /// Reads a folder in BEIR's layout.
    ///
    /// # Errors
    /// A file that is not there, or a line that is not as it must be.
    pub(crate) fn read(dir: &Path, split: &str) -> Result<Self, Failure> {
        // `.` and `..` have no name of their own
        let mut collection = Self {
            name: file_name(&std::path::absolute(dir).unwrap_or_else(|_| dir.into())),
            ..Self::default()
        };
        each_object(&dir.join("corpus.jsonl"), |id, title, text| {
            let passage = format!("{} {}", title.unwrap_or_default(), text.ok_or("no string 'text'")?);
            collection.passage_ids.push(id.into());
            collection.passages.push(passage.trim().into());
            Ok(())
        })?;
        let by_id: HashMap<String, usize> =
            collection.passage_ids.iter().cloned().enumerate().map(|(i, id)| (id, i)).collect();

        let nested = dir.join("qrels").join(format!("{split}.tsv"));
        let path = if nested.is_file() { nested } else { dir.join("qrels.tsv") };
        let mut judged = read_qrels(&path)?;
        each_object(&dir.join("queries.jsonl"), |id, _, text| {
            // a query without a relevant passage has no ranking to be judged
            if let Some(judged) = judged.remove(id) {
                collection.queries.push(text.ok_or("no string 'text'")?.trim().into());
                collection.query_ids.push(id.into());
                let gains = judged.values().copied().collect();
                let known = judged.iter().filter_map(|(id, &gain)| Some((*by_id.get(id)?, gain)));
                collection.judged.push((known.collect(), gains));
            }
            Ok(())
        })?;
        if let Some(id) = judged.keys().min() {
            let path = path.display();
            return Err(Published::Beir.missing(format!("{path}: query '{id}' is not in queries.jsonl")));
        }
        if collection.queries.is_empty() {
            return Err(Published::Beir.missing(format!("{}: no relevant passage in it", path.display())));
        }
        Ok(collection)
    }

    /// Ranks all passages for each query, and judges the rankings.
    pub(crate) fn judge(
        &self,
        passages: &Vectors,
        queries: &Vectors,
        score: Score,
        skip_same_id: bool,
        threads: &Threads,
    ) -> Vec<Scores> {
        // one more, as one may be left out
        let depth = DEPTH + usize::from(skip_same_id);
        let matrix = Matrix::f32(&passages.data, passages.dim);
        let rankings = top_k(matrix, &queries.data, depth, score, threads);
        let judge = |(query, hits): (usize, &Vec<Hit>)| {
            let (gains, judged) = &self.judged[query];
            let skip = |hit: &&Hit| skip_same_id && self.passage_ids[hit.row] == self.query_ids[query];
            let hits = hits.iter().filter(|hit| !skip(hit)).take(DEPTH);
            let ranking: Vec<f64> = hits.map(|hit| gains.get(&hit.row).copied().unwrap_or(0.0)).collect();
            Scores {
                ndcg: ndcg(&ranking, judged, K),
                average_precision: average_precision(&ranking, judged.len()),
                reciprocal_rank: reciprocal_rank(&ranking, K),
                recall: RECALL_AT.map(|k| recall(&ranking, judged.len(), k)),
            }
        };
        rankings.iter().enumerate().map(judge).collect()
    }
}

/// Calls `f` with `_id`, title and text of each object of a JSON Lines file.
fn each_object(
    path: &Path,
    mut f: impl FnMut(&str, Option<&str>, Option<&str>) -> Result<(), &'static str>,
) -> Result<(), Failure> {
    let file = TextFile::read(path, Published::Beir)?;
    for (line, text) in file.lines().filter(|(_, text)| !text.trim().is_empty()) {
        let object: Value =
            serde_json::from_str(text).map_err(|e| file.error(line, format!("not JSON: {e}")))?;
        let Some(id) = object["_id"].as_str() else {
            return Err(file.error(line, "no string '_id'"));
        };
        f(id, object["title"].as_str(), object["text"].as_str()).map_err(|why| file.error(line, why))?;
    }
    Ok(())
}

/// For each query the gains above 0, by passage. Of a pair that is judged twice, the last counts.
fn read_qrels(path: &Path) -> Result<HashMap<String, HashMap<String, f64>>, Failure> {
    let file = TextFile::read(path, Published::Beir)?;
    let mut judged: HashMap<String, HashMap<String, f64>> = HashMap::new();
    for (line, text) in file.lines() {
        let fields: Vec<&str> = text.split('\t').collect();
        let [query, passage, gain] = fields[..] else {
            let found = fields.len();
            return Err(file.error(line, format!("{found} fields, 3 needed: query-id, corpus-id, score")));
        };
        match gain.trim().parse::<f64>() {
            Ok(gain) if gain > 0.0 && gain.is_finite() => {
                judged.entry(query.into()).or_default().insert(passage.into(), gain);
            }
            Ok(gain) if gain <= 0.0 => {}
            _ if line == 1 => {} // the header
            _ => return Err(file.error(line, format!("the score '{gain}' is not a number"))),
        }
    }
    Ok(judged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::num::NonZeroUsize;

    const CORPUS: &str = r#"{"_id": "d1", "title": "T", "text": "one"}
{"_id": "d2", "text": "two "}
{"_id": "q1", "title": "", "text": "three"}
"#;
    const QUERIES: &str =
        "{\"_id\": \"q1\", \"text\": \"ask\"}\n{\"_id\": \"q2\", \"text\": \"never judged\"}\n";
    const QRELS: &str = "query-id\tcorpus-id\tscore\nq1\td2\t1\nq1\td1\t0\nq1\tgone\t1\n";

    fn read(corpus: &str, queries: &str, qrels: &str) -> Result<Collection, String> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("corpus.jsonl"), corpus).unwrap();
        fs::write(dir.path().join("queries.jsonl"), queries).unwrap();
        fs::create_dir(dir.path().join("qrels")).unwrap();
        fs::write(dir.path().join("qrels/test.tsv"), qrels).unwrap();
        Collection::read(dir.path(), "test").map_err(|failure| match failure {
            Failure::Error(message) => message.replace(&dir.path().display().to_string(), "DIR"),
            Failure::BrokenPipe | Failure::Interrupted(_) => panic!("no such failure"),
        })
    }

    #[test]
    fn beir_layout_is_read_and_judged() {
        let collection = read(CORPUS, QUERIES, QRELS).unwrap();
        assert_eq!(collection.passages, ["T one", "two", "three"]);
        assert_eq!(collection.queries, ["ask"]);
        let vectors = |data: &[f32]| Vectors { data: data.into(), dim: 2, truncated: 0 };
        // nearest is q1 itself, then d2, then d1
        let (passages, query) = (vectors(&[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]), vectors(&[2.0, 0.0]));
        let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
        let judge = |skip| collection.judge(&passages, &query, Score::Cosine, skip, &threads).remove(0);
        let all = judge(false);
        // of two relevant passages one is at rank 2, and one is not in the corpus
        let ideal = 1.0 + 1.0 / 3f64.log2();
        assert!((all.ndcg - 1.0 / 3f64.log2() / ideal).abs() < 1e-12);
        assert_eq!(
            (all.average_precision, all.reciprocal_rank, all.recall),
            (0.25, 0.5, [0.0, 0.5, 0.5, 0.5])
        );
        let others = judge(true);
        assert_eq!((others.average_precision, others.reciprocal_rank), (0.5, 1.0));
    }

    #[test]
    fn malformed_files_are_named_by_line_with_where_to_get_them() {
        let fails = |result: Result<Collection, String>, what: &str| {
            let error = result.err().unwrap();
            assert!(error.starts_with(what), "{error}");
            assert!(error.contains("https://github.com/beir-cellar/beir"), "{error}");
        };
        fails(read("{\"_id\": \"a\", \"text\": \"\"}\n{\n", QUERIES, QRELS), "DIR/corpus.jsonl:2: not JSON");
        fails(read("{\"text\": \"\"}", QUERIES, QRELS), "DIR/corpus.jsonl:1: no string '_id'");
        fails(read("{\"_id\": \"a\"}", QUERIES, QRELS), "DIR/corpus.jsonl:1: no string 'text'");
        fails(read(CORPUS, QUERIES, "q1\td2\n"), "DIR/qrels/test.tsv:1: 2 fields, 3 needed");
        fails(read(CORPUS, QUERIES, "h\th\th\nq1\td2\tx\n"), "DIR/qrels/test.tsv:2: the score 'x'");
        fails(read(CORPUS, QUERIES, "q1\td2\t0\n"), "DIR/qrels/test.tsv: no relevant passage");
        fails(read(CORPUS, QUERIES, "q9\td2\t1\n"), "DIR/qrels/test.tsv: query 'q9' is not in queries.jsonl");
        let dir = tempfile::tempdir().unwrap();
        let Err(Failure::Error(error)) = Collection::read(dir.path(), "test") else { panic!("read") };
        assert!(error.contains("corpus.jsonl: "), "{error}");
    }
}
