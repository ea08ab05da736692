//! A sequence-classification directory: the encoder as its family reads it, and behind it the head that scores.
//!
//! The head is data as a sentence model's module chain is: a pooling and modules, one component for each label. So a
//! backend that computes sentence models computes it, and refuses what it does not know. The reference is the
//! `CrossEncoder` of sentence-transformers. The rule numbers are those of `docs/loading.md`.

use super::checkpoint::Checkpoint;
use super::config::{self, CONVERT, FAMILIES};
use super::json::{Object, exists};
use super::{
    Activation, Dense, Family, Linear, Model, ModelDesc, Module, ModuleWeights, Norm, Pooling, TokenizerDesc,
};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// Labels of a `config.json` that says nothing of them.
const DEFAULT_LABELS: usize = 2;

/// What a score goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scores {
    /// The function that the model's files name; else the sigmoid for one label, nothing for several.
    Model,
    /// Nothing.
    Logits,
}

/// A head before its weights: a pooling, and a product, norm or product, each under its name.
struct Head {
    pooling: Pooling,
    modules: Vec<(Module, &'static str)>,
}

/// Reads and checks the directory of a cross-encoder, in the layout of sentence-transformers 5 or the plain one of
/// transformers. Its [`ModelDesc::dim`] is the number of labels.
///
/// # Errors
/// As [`open`](super::open); [`Error::Unsupported`] for a sentence model and for an encoder without a head.
pub(crate) fn open_classifier(dir: &Path, scores: Scores) -> Result<Model> {
    if !std::fs::metadata(dir).map_err(|e| Error::io(dir, e))?.is_dir() {
        return Err(config::not_a_directory(dir));
    }
    let mut warnings = Vec::new();
    let modules = dir.join("modules.json");
    let (home, own) = if exists(&modules)? {
        let own = Object::read_or_empty(&dir.join("config_sentence_transformers.json"))?;
        (transformer_folder(dir, &modules, &own)?, Some(own))
    } else {
        (dir.to_path_buf(), None)
    };
    let config = config::encoder_config(&home)?;
    let mut desc = config::describe(&config, &mut warnings)?;
    let transformer = match &own {
        Some(_) => config::transformer_config(&home)?,
        // no file of sentence-transformers is read in the plain layout (rule 3)
        None => Object::empty(&home.join("sentence_bert_config.json")),
    };
    if own.is_some() {
        check_transformer(&transformer)?;
    }
    desc.max_seq_length = config::max_seq_length(&home, &config, &transformer, &desc, &mut warnings)?;

    let activation = match scores {
        Scores::Logits => None,
        Scores::Model => activation(&config, own.as_ref(), labels(&config)?, &mut warnings)?,
    };
    let head = head(&config, &desc, labels(&config)?, activation)?;
    let checkpoint = Checkpoint::open(&home, CONVERT)?;
    let mut weights = config::weights(&checkpoint, &mut desc, &mut warnings)?;
    weights.modules = head_weights(&head, &checkpoint, &desc)?;
    desc.pooling = vec![head.pooling];
    desc.modules = head.modules.iter().map(|(module, _)| *module).collect();
    let tokenizer = TokenizerDesc {
        dir: home,
        do_lower_case: transformer.bool("do_lower_case")?.unwrap_or(false),
        vocab_size: desc.vocab_size,
    };
    Ok(Model { desc, weights, tokenizer, warnings })
}

/// Whether a plain directory's weights were saved with a head that scores.
pub(super) fn is_classifier(config: &Object) -> bool {
    let architectures = config.get("architectures").and_then(|v| v.as_array());
    architectures
        .and_then(|names| names.first()?.as_str())
        .is_some_and(|name| name.ends_with("ForSequenceClassification"))
}

/// The one module of a `modules.json`.
fn transformer_folder(dir: &Path, path: &Path, own: &Object) -> Result<PathBuf> {
    match own.string("model_type")? {
        Some("CrossEncoder") => {}
        None | Some("SentenceTransformer") => {
            return Err(Error::unsupported(
                path,
                "a sentence embedding model, where a cross-encoder is needed (Embedder and 'berthier embed' take it)",
            ));
        }
        Some(_) => return Err(own.unsupported("model_type", "only \"CrossEncoder\"")),
    }
    if own.string("default_prompt_name")?.is_some_and(|name| !name.is_empty()) {
        return Err(own.unsupported("default_prompt_name", "no prompt before a pair"));
    }
    super::chain::only_transformer(dir, path)
}

/// Refuses a transformer module that gives anything but the scores.
fn check_transformer(config: &Object) -> Result<()> {
    let must = |object: &Object, key: &str, value: &str| match object.string(key)? {
        Some(found) if found == value => Ok(()),
        _ => Err(object.unsupported(key, &format!("only \"{value}\""))),
    };
    must(config, "transformer_task", "sequence-classification")?;
    must(config, "module_output_name", "scores")?;
    if let Some(text) = config.object("modality_config")?.map(|m| m.object("text")).transpose()?.flatten() {
        must(&text, "method", "forward")?;
        must(&text, "method_output_name", "logits")?;
    }
    match config.object("processing_kwargs")? {
        Some(kwargs) if kwargs.iter().next().is_some() => {
            Err(config.unsupported("processing_kwargs", "only the tokenizer's own settings"))
        }
        _ => Ok(()),
    }
}

/// The number of labels: those that `id2label` names, else `num_labels`, else two.
fn labels(config: &Object) -> Result<usize> {
    let named = config.object("id2label")?.map(|labels| labels.iter().count());
    match (named, config.size("num_labels")?) {
        (Some(0), _) => Err(config.wrong("id2label", "at least one label")),
        (Some(named), Some(number)) if named != number => {
            Err(config.wrong("num_labels", &format!("{named}, the labels of id2label,")))
        }
        (Some(labels), _) | (None, Some(labels)) => Ok(labels),
        (None, None) => Ok(DEFAULT_LABELS),
    }
}

/// What the scores go through: as `activation_fn` of sentence-transformers 5 says, else that of version 4, else that of
/// the versions before.
fn activation(
    config: &Object,
    own: Option<&Object>,
    labels: usize,
    warnings: &mut Vec<String>,
) -> Result<Option<Activation>> {
    let default = (labels == 1).then_some(Activation::Sigmoid);
    let key = "activation_fn";
    let of_four = config.object("sentence_transformers")?;
    let places = [
        own.map(|own| (own, key)),
        // where the key is there, an older one does not count, even if it is null
        of_four.as_ref().filter(|four| four.iter().any(|(k, _)| k == key)).map(|four| (four, key)),
        of_four
            .as_ref()
            .is_none_or(|four| four.iter().all(|(k, _)| k != key))
            .then_some((config, "sbert_ce_default_activation_function")),
    ];
    for (object, key) in places.into_iter().flatten() {
        let Some(name) = object.string(key)? else { continue };
        if !name.starts_with("torch.") {
            warnings.push(format!(
                "{}: '{key}' {name} is code of the model's own: the default is taken, as sentence-transformers does",
                object.path().display()
            ));
            // in the file of version 5 the older keys are asked next
            if own.is_some_and(|own| std::ptr::eq(own, object)) {
                continue;
            }
            return Ok(default);
        }
        return super::chain::torch_function(name)
            .ok_or_else(|| object.unsupported(key, super::chain::TORCH_FUNCTIONS));
    }
    Ok(default)
}

/// The head of each family, as transformers has it.
fn head(config: &Object, desc: &ModelDesc, labels: usize, activation: Option<Activation>) -> Result<Head> {
    let dense = |out_features: usize, bias: bool, activation: Option<Activation>| {
        Module::Dense(Dense { out_features, bias, activation, use_residual: false })
    };
    let h = desc.hidden_size;
    let scores = dense(labels, true, activation);
    let cls = |inner: Activation, names: [&'static str; 2]| Head {
        pooling: Pooling::Cls,
        modules: vec![(dense(h, true, Some(inner)), names[0]), (scores, names[1])],
    };
    Ok(match desc.family {
        Family::Bert => cls(Activation::Tanh, ["bert.pooler.dense", "classifier"]),
        Family::Albert => cls(Activation::Tanh, ["albert.pooler", "classifier"]),
        Family::Camembert | Family::MpNet | Family::Roberta | Family::XlmRoberta => {
            cls(Activation::Tanh, ["classifier.dense", "classifier.out_proj"])
        }
        Family::Electra => cls(Activation::Gelu, ["classifier.dense", "classifier.out_proj"]),
        Family::DistilBert => cls(Activation::Relu, ["pre_classifier", "classifier"]),
        Family::Gte | Family::JinaBert | Family::JinaV3 | Family::NomicBert => {
            return Err(config.unsupported("model_type", "no cross-encoder of this family is computed"));
        }
        Family::ModernBert => {
            let pooling = match config.string("classifier_pooling")? {
                None | Some("cls") => Pooling::Cls,
                Some("mean") => Pooling::Mean,
                Some(_) => return Err(config.wrong("classifier_pooling", "\"cls\" or \"mean\"")),
            };
            if desc.layer_norm_eps != Module::LAYER_NORM_EPS {
                return Err(config.unsupported("norm_eps", "only 1e-5 in a model with a head"));
            }
            let mut warnings = Vec::new(); // the default is not worth one
            let inner = super::encoder::Settings { config, warnings: &mut warnings }
                .activation("classifier_activation", "gelu")?;
            let bias = config.bool("classifier_bias")?.unwrap_or(false);
            Head {
                pooling,
                modules: vec![
                    (dense(h, bias, Some(inner)), "head.dense"),
                    (Module::LayerNorm, "head.norm"),
                    (scores, "classifier"),
                ],
            }
        }
    })
}

fn head_weights(head: &Head, checkpoint: &Checkpoint, desc: &ModelDesc) -> Result<Vec<ModuleWeights>> {
    if let Some((_, name)) = head.modules.last()
        && !checkpoint.contains(&format!("{name}.weight"))
    {
        let family = FAMILIES.iter().find(|(_, family, _)| *family == desc.family).map_or("", |f| f.0);
        return Err(Error::unsupported(
            checkpoint.path(),
            format!(
                "no classification head: a cross-encoder of model_type {family} has a tensor '{name}.weight' (an \
                 encoder alone is for Embedder and 'berthier embed')"
            ),
        ));
    }
    let mut width = desc.hidden_size;
    let module = |(module, name): &(Module, &str)| {
        let k = width;
        width = module.width(k);
        Ok(match module {
            Module::Dense(dense) => {
                let out = dense.out_features;
                let bias =
                    dense.bias.then(|| checkpoint.tensor(&format!("{name}.bias"), &[out])).transpose()?;
                let weight = checkpoint.tensor(&format!("{name}.weight"), &[out, k])?;
                ModuleWeights::Dense { linear: Linear { weight, bias }, residual: None }
            }
            Module::LayerNorm => {
                let weight = checkpoint.tensor(&format!("{name}.weight"), &[k])?;
                ModuleWeights::LayerNorm(Norm { weight, bias: None })
            }
            Module::Normalize => ModuleWeights::Normalize,
        })
    };
    head.modules.iter().map(module).collect()
}
