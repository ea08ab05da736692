//! `berthier eval`: the experiments of the Sentence-BERT literature, for any model that loads.
//!
//! Each experiment reads its data, has its texts embedded (or finds them in the cache of vectors), lets
//! `crate::eval` compute, and writes a sheet. No data are downloaded: an error says where they are published.

mod ablation;
mod args;
mod cache;
mod compare;
mod data;
mod plot;
mod retrieval;
mod senteval;
mod sheet;
mod sts;
mod vectors;

pub(crate) use args::EvalCommand;

use super::Outcome;
use super::report::Failure;
use berthier::Embedder;

/// The model with its prompt for queries, as `encode_query` of sentence-transformers picks it.
pub(super) fn query_embedder(embedder: &Embedder) -> Result<Embedder, Failure> {
    let [for_queries, _] = retrieval::prompted(embedder, &args::PromptArgs::default())?;
    Ok(for_queries)
}

/// Runs the command.
pub(crate) fn run(command: &EvalCommand) -> Result<Outcome, Failure> {
    match command {
        EvalCommand::Sts(args) => sts::run(args),
        EvalCommand::Senteval(args) => senteval::run(args),
        EvalCommand::Retrieval(args) => retrieval::run(args),
        EvalCommand::Ablation(args) => ablation::run(args),
        EvalCommand::Compare(args) => compare::run(args),
    }
}
