//! A model directory: which layout, which encoder, and what sentence-transformers says of text and prompts.
//!
//! Knows the two layouts (sentence-transformers and plain transformers) and hands the encoder's own
//! `config.json` to its family, `modules.json` to `chain`. The rule numbers are those of `docs/loading.md`.

use super::chain::Chain;
use super::checkpoint::Checkpoint;
use super::classifier;
use super::encoder::{MOST_POSITIONS, Names, Settings};
use super::json::{Object, exists};
use super::{Family, Model, ModelDesc, Norms, Positions, TokenizerDesc, Weights};
use super::{albert, bert, distilbert, electra, gte, jina, modernbert, mpnet, nomic, roberta};
use crate::error::{Error, Result};
use std::path::Path;

/// The names that sentence-transformers has looked for its transformer module's file under (rule 6).
const TRANSFORMER_CONFIGS: [&str; 7] = [
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
];

/// Makes `model.safetensors` of `pytorch_model.bin`.
pub(super) const CONVERT: &str =
    "from transformers import AutoModel; AutoModel.from_pretrained('DIR').save_pretrained('DIR')";

/// Reads and checks a model directory, in the sentence-transformers or the plain transformers layout.
///
/// The weights are memory-mapped: the files must not be changed while the [`Model`] lives.
///
/// # Errors
/// Names the file and key, or the tensor, at fault; [`Error::Unsupported`] for what would be computed
/// otherwise than asked for.
pub fn open(dir: &Path) -> Result<Model> {
    if !std::fs::metadata(dir).map_err(|e| Error::io(dir, e))?.is_dir() {
        return Err(not_a_directory(dir));
    }
    let mut warnings = Vec::new();
    let modules_path = dir.join("modules.json");
    if exists(&modules_path)? {
        let own = Object::read_or_empty(&dir.join("config_sentence_transformers.json"))?;
        if own.string("model_type")? == Some("CrossEncoder") {
            return Err(own.unsupported(
                "model_type",
                "a cross-encoder has scores and no vectors (CrossEncoder and 'berthier rerank' take it): only \
                 \"SentenceTransformer\"",
            ));
        }
    }
    let chain = if exists(&modules_path)? { Some(Chain::read(dir, &modules_path)?) } else { None };
    let home = chain.as_ref().map_or(dir, |c| &c.transformer);

    let config = encoder_config(home)?;
    let mut desc = describe(&config, &mut warnings)?;
    let transformer = match &chain {
        Some(chain) => {
            chain.apply(&mut desc, &mut warnings)?;
            prompts_and_dim(dir, &mut desc, &mut warnings)?;
            transformer_config(home)?
        }
        // rule 3: sentence-transformers reads no file of its own here, even if there are some
        None if classifier::is_classifier(&config) => {
            return Err(config.unsupported(
                "architectures",
                "a cross-encoder has scores and no vectors (CrossEncoder and 'berthier rerank' take it)",
            ));
        }
        None => {
            let lost = ["config_sentence_transformers.json", TRANSFORMER_CONFIGS[0], "1_Pooling"]
                .iter()
                .find(|name| dir.join(name).exists());
            warnings.push(format!(
                "{}: no modules.json: mean pooling, no normalisation and no prompts assumed, as \
                 sentence-transformers does{}",
                dir.display(),
                lost.map_or_else(String::new, |name| format!(" ({name} is there: an incomplete copy?)"))
            ));
            Object::empty(&dir.join(TRANSFORMER_CONFIGS[0]))
        }
    };
    check_transformer(&transformer)?;
    desc.max_seq_length = max_seq_length(home, &config, &transformer, &desc, &mut warnings)?;
    // only where positions have no table
    desc.max_position_embeddings = desc.max_position_embeddings.max(desc.max_seq_length);

    let checkpoint = Checkpoint::open(home, CONVERT)?;
    let mut weights = weights(&checkpoint, &mut desc, &mut warnings)?;
    if let Some(chain) = &chain {
        weights.modules = chain.weights(&desc)?;
    }
    let tokenizer = TokenizerDesc {
        dir: home.into(),
        do_lower_case: transformer.bool("do_lower_case")?.unwrap_or(false),
        vocab_size: desc.vocab_size,
    };
    Ok(Model { desc, weights, tokenizer, warnings })
}

/// The error of a path to a file where a directory is needed.
pub(super) fn not_a_directory(path: &Path) -> Error {
    Error::config(path, "a file, where a model directory is needed (give the folder that holds config.json)")
}

pub(super) fn encoder_config(home: &Path) -> Result<Object> {
    let path = home.join("config.json");
    if !exists(&path)? {
        return Err(Error::MissingFile {
            path,
            what: "the encoder's configuration; a model directory holds config.json, model.safetensors and \
                   tokenizer files, in itself or in the folder of the first entry of modules.json"
                .into(),
        });
    }
    // its weights would be merged into those of another model
    let adapter = home.join("adapter_config.json");
    if exists(&adapter)? {
        return Err(Error::unsupported(adapter, "a PEFT adapter (merge it into its model and save that)"));
    }
    Object::read(&path)
}

/// `config.json` by its `model_type`.
pub(super) fn describe(config: &Object, warnings: &mut Vec<String>) -> Result<ModelDesc> {
    if let Some(auto_map) = config.object("auto_map")?
        && auto_map.iter().next().is_some()
    {
        warnings.push(format!(
            "{}: 'auto_map' names code of the model's own, which is not run (as trust_remote_code=False)",
            config.path().display()
        ));
    }
    let mut settings = Settings { config, warnings };
    let Some(name) = config.string("model_type")? else {
        return Err(config.wrong("model_type", &known_families()));
    };
    let Some((_, family, _)) = FAMILIES.iter().find(|(known, ..)| *known == name) else {
        return Err(config.unsupported("model_type", &format!("this version computes {}", known_families())));
    };
    settings.refuse_what_no_encoder_has()?;
    match family {
        Family::Albert => albert::describe(&mut settings),
        Family::Bert if config.get("position_embedding_type").is_some_and(|t| t == "alibi") => {
            jina::describe_v2(&mut settings)
        }
        Family::Bert => bert::describe(&mut settings),
        Family::DistilBert => distilbert::describe(&mut settings),
        Family::Electra => electra::describe(&mut settings),
        Family::Gte => gte::describe(&mut settings),
        Family::JinaBert => jina::describe_v2(&mut settings),
        Family::JinaV3 => jina::describe_v3(&mut settings),
        Family::ModernBert => modernbert::describe(&mut settings),
        Family::MpNet => mpnet::describe(&mut settings),
        Family::NomicBert => nomic::describe(&mut settings),
        Family::Camembert | Family::Roberta | Family::XlmRoberta => roberta::describe(&mut settings, *family),
    }
}

/// `model_type` of each family, and what its task models put before the encoder's tensors (rule 31).
pub(super) const FAMILIES: [(&str, Family, &[&str]); 13] = [
    ("albert", Family::Albert, &["albert."]),
    ("bert", Family::Bert, &["bert."]),
    ("camembert", Family::Camembert, &["roberta."]),
    ("distilbert", Family::DistilBert, &["distilbert."]),
    ("electra", Family::Electra, &["electra."]),
    ("gte", Family::Gte, &["gte.", "new."]),
    ("jina_embeddings_v3", Family::JinaV3, &["roberta."]),
    ("modernbert", Family::ModernBert, &["model."]),
    ("mpnet", Family::MpNet, &["mpnet."]),
    ("new", Family::Gte, &["new.", "gte."]),
    ("nomic_bert", Family::NomicBert, &["bert.", "nomic_bert."]),
    ("roberta", Family::Roberta, &["roberta."]),
    ("xlm-roberta", Family::XlmRoberta, &["roberta."]),
];

fn known_families() -> String {
    format!("one of {}", FAMILIES.map(|(name, ..)| format!("\"{name}\"")).join(", "))
}

/// Every tensor of the encoder. What is left over and is no known head is said in `warnings`.
pub(super) fn weights(
    checkpoint: &Checkpoint,
    desc: &mut ModelDesc,
    warnings: &mut Vec<String>,
) -> Result<Weights> {
    // JinaBERT's `model_type` is that of BERT, and so are its names
    let row = if desc.family == Family::JinaBert { Family::Bert } else { desc.family };
    let prefixes = FAMILIES.iter().find(|(_, family, _)| *family == row).map_or(&[][..], |f| f.2);
    let mut names = Names::new(checkpoint, prefixes);
    if desc.family == Family::JinaBert && jina::has_query_key_norms(&names) {
        desc.norms = Norms::PostQueryKey;
    }
    let desc = &*desc;
    let weights = match desc.family {
        Family::Albert => albert::weights(&mut names, desc),
        Family::DistilBert => distilbert::weights(&mut names, desc),
        Family::Electra => electra::weights(&mut names, desc),
        Family::Gte => gte::weights(&mut names, desc),
        Family::JinaBert => jina::weights_v2(&mut names, desc),
        Family::JinaV3 => jina::weights_v3(&mut names, desc),
        Family::ModernBert => modernbert::weights(&mut names, desc),
        Family::MpNet => mpnet::weights(&mut names, desc),
        Family::NomicBert => nomic::weights(&mut names, desc),
        Family::Bert | Family::Camembert | Family::Roberta | Family::XlmRoberta => {
            bert::weights(&mut names, desc)
        }
    }?;
    warnings.extend(names.leftovers());
    Ok(weights)
}

/// The file of the transformer module, or an empty object: none of its keys is required (rule 7).
pub(super) fn transformer_config(home: &Path) -> Result<Object> {
    for name in TRANSFORMER_CONFIGS {
        let path = home.join(name);
        if exists(&path)? {
            return Object::read(&path);
        }
    }
    Ok(Object::empty(&home.join(TRANSFORMER_CONFIGS[0])))
}

/// Keys of the transformer module's file that are computed with, or say nothing of how `encode` computes: how the
/// reference batches, and the limits of other methods.
const TRANSFORMER_KEYS: [&str; 9] = [
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "module_output_name",
    "modality_config",
    "unpad_inputs",
    "query_length",
    "document_length",
    "backend",
];
/// Arguments for transformers: only none.
const ARGUMENTS: [&str; 6] =
    ["model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs"];
/// The same, where null is none too.
const NULL_KEYS: [&str; 3] = ["processing_kwargs", "tokenizer_name_or_path", "query_expansion"];

/// Refuses a transformer module that gives the pooling anything but the last layer's token vectors (rule 7).
fn check_transformer(config: &Object) -> Result<()> {
    let only = |object: &Object, key: &str, value: &str| match object.string(key)? {
        Some(found) if found != value => Err(object.unsupported(key, &format!("only \"{value}\""))),
        _ => Ok(()),
    };
    config.not_null("transformer_task", "a string")?;
    only(config, "transformer_task", "feature-extraction")?;
    only(config, "module_output_name", "token_embeddings")?;
    config.not_null("modality_config", "an object")?;
    if let Some(modalities) = config.object("modality_config")? {
        let Some(text) = modalities.object("text")? else {
            return Err(modalities.wrong("text", "an object"));
        };
        for (key, value) in [("method", "forward"), ("method_output_name", "last_hidden_state")] {
            if text.get(key).is_none() {
                return Err(text.wrong(key, "a string"));
            }
            only(&text, key, value)?;
        }
    }
    if config.get("modality_config").is_some() && config.get("module_output_name").is_none() {
        return Err(config.wrong("module_output_name", "\"token_embeddings\", beside modality_config,"));
    }
    for (key, _) in config.iter().filter(|(key, _)| !TRANSFORMER_KEYS.contains(key)) {
        let null_is_none = NULL_KEYS.contains(&key);
        let nothing = (null_is_none && config.get(key).is_none())
            || ((null_is_none || ARGUMENTS.contains(&key)) && config.is_empty_object(key));
        if !nothing {
            return Err(config.unsupported(key, "no arguments of transformers; only the files' own settings"));
        }
    }
    Ok(())
}

/// Rules 8 and 9: a clamp where the reference would fail on the first long text.
pub(super) fn max_seq_length(
    home: &Path,
    encoder: &Object,
    transformer: &Object,
    desc: &ModelDesc,
    warnings: &mut Vec<String>,
) -> Result<usize> {
    let positions = desc.longest_sequence();
    let mut clamp = |config: &Object, key: &str, length: usize| {
        if length > positions {
            warnings.push(format!(
                "{}: '{key}' {length} is more than the model's {positions} positions: {positions} used",
                config.path().display()
            ));
        }
        length.min(positions)
    };
    if let Some(length) = transformer.size("max_seq_length")? {
        let table = match desc.positions {
            Positions::FromZero | Positions::AfterPadding { .. } => true,
            Positions::None | Positions::Rotary { .. } => false,
        };
        // rule 8: without a table of positions the reference computes as far as it is told to
        if !table && length > positions {
            if length > MOST_POSITIONS {
                return Err(transformer.unsupported("max_seq_length", &format!("at most {MOST_POSITIONS}")));
            }
            return Ok(length);
        }
        return Ok(clamp(transformer, "max_seq_length", length));
    }
    let tokenizer = Object::read_or_empty(&home.join("tokenizer_config.json"))?;
    let key = if tokenizer.get("model_max_length").is_some() { "model_max_length" } else { "max_len" };
    // 1e30, written out in full or not, is how transformers says that there is no limit
    let length = tokenizer.number(key)?.unwrap_or(f64::INFINITY);
    if length < 1.0 {
        return Err(tokenizer.wrong(key, "a number from 1"));
    }
    let rows = desc.max_position_embeddings;
    Ok(if length < rows as f64 {
        clamp(&tokenizer, key, length as usize)
    } else {
        // the reference's limit, which is too high where the first rows are no positions (rule 9)
        clamp(encoder, "max_position_embeddings", rows)
    })
}

/// `config_sentence_transformers.json` (rules 4, 52 and 54).
fn prompts_and_dim(dir: &Path, desc: &mut ModelDesc, warnings: &mut Vec<String>) -> Result<()> {
    let config = Object::read_or_empty(&dir.join("config_sentence_transformers.json"))?;
    config.not_null("model_type", "\"SentenceTransformer\"")?;
    config.not_null("prompts", "an object")?;
    if config.string("model_type")?.is_some_and(|t| t != "SentenceTransformer") {
        return Err(config.unsupported("model_type", "only \"SentenceTransformer\""));
    }
    if let Some(prompts) = config.object("prompts")? {
        for (name, _) in prompts.iter() {
            desc.prompts.insert(name.into(), prompts.string(name)?.unwrap_or_default().into());
        }
    }
    if let Some(name) = config.string("default_prompt_name")? {
        if !desc.prompts.contains_key(name) {
            let names: Vec<_> = desc.prompts.keys().map(|n| format!("\"{n}\"")).collect();
            let needed = match names.len() {
                0 => "a name in 'prompts', which has none,".into(),
                _ => format!("one of {}", names.join(", ")),
            };
            return Err(config.wrong("default_prompt_name", &needed));
        }
        desc.default_prompt_name = Some(name.into());
    }
    match config.size("truncate_dim")? {
        // sentence-transformers cuts with a slice, which does nothing here
        Some(dim) if dim > desc.dim() => warnings.push(format!(
            "{}: 'truncate_dim' {dim} is more than the model's {} dimensions: nothing is cut",
            config.path().display(),
            desc.dim()
        )),
        dim => desc.truncate_dim = dim,
    }
    Ok(())
}
