//! The JSON files of a model directory: which modules, in which order, with which choices.
//!
//! Knows the two layouts (sentence-transformers and plain transformers) and hands the encoder's own
//! `config.json` to its family. The rule numbers are those of `docs/loading.md`.

use super::checkpoint::{Checkpoint, is_inside};
use super::json::{Object, exists};
use super::{Model, ModelDesc, Pooling, TokenizerDesc, bert};
use crate::error::{Error, Result};
use std::path::{Path, PathBuf};

/// What this version computes, for the message of what it does not.
const KNOWN_MODULES: &str = "this version computes Transformer, Pooling and Normalize";

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

/// The flags of a classic pooling file, in the order in which their vectors are joined (rule 43).
const CLASSIC_POOLING: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

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
    desc.max_seq_length = max_seq_length(home, &transformer, &desc, &mut warnings)?;

    let checkpoint = Checkpoint::open(home)?;
    let weights = bert::weights(&checkpoint, &desc, &mut warnings)?;
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

fn encoder_config(home: &Path) -> Result<Object> {
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
fn describe(config: &Object, warnings: &mut Vec<String>) -> Result<ModelDesc> {
    if let Some(auto_map) = config.object("auto_map")?
        && auto_map.iter().next().is_some()
    {
        warnings.push(format!(
            "{}: 'auto_map' names code of the model's own, which is not run (as trust_remote_code=False)",
            config.path().display()
        ));
    }
    match config.string("model_type")? {
        Some("bert") => bert::describe(config, warnings),
        Some(_) => Err(config.unsupported("model_type", "this version computes \"bert\"")),
        None => Err(config.wrong("model_type", "\"bert\"")),
    }
}

/// The file of the transformer module, or an empty object: none of its keys is required (rule 7).
fn transformer_config(home: &Path) -> Result<Object> {
    for name in TRANSFORMER_CONFIGS {
        let path = home.join(name);
        if exists(&path)? {
            return Object::read(&path);
        }
    }
    Ok(Object::empty(&home.join(TRANSFORMER_CONFIGS[0])))
}

/// Refuses a transformer module that gives the pooling anything but the last layer's token vectors (rule 7).
fn check_transformer(config: &Object) -> Result<()> {
    let only = |object: &Object, key: &str, value: &str| match object.string(key)? {
        Some(found) if found != value => Err(object.unsupported(key, &format!("only \"{value}\""))),
        _ => Ok(()),
    };
    only(config, "transformer_task", "feature-extraction")?;
    only(config, "module_output_name", "token_embeddings")?;
    if let Some(text) = config.object("modality_config")?.map(|m| m.object("text")).transpose()?.flatten() {
        only(&text, "method", "forward")?;
        only(&text, "method_output_name", "last_hidden_state")?;
    }
    match config.object("processing_kwargs")? {
        Some(kwargs) if kwargs.iter().next().is_some() => {
            Err(config.unsupported("processing_kwargs", "only the tokenizer's own settings"))
        }
        _ => Ok(()),
    }
}

/// Rule 8, and a clamp where the reference would fail on the first long text.
fn max_seq_length(
    home: &Path,
    transformer: &Object,
    desc: &ModelDesc,
    warnings: &mut Vec<String>,
) -> Result<usize> {
    let positions = desc.max_position_embeddings;
    if let Some(length) = transformer.size("max_seq_length")? {
        if length > positions {
            warnings.push(format!(
                "{}: 'max_seq_length' {length} is more than the model's {positions} positions: {positions} used",
                transformer.path().display()
            ));
        }
        return Ok(length.min(positions));
    }
    let tokenizer = Object::read_or_empty(&home.join("tokenizer_config.json"))?;
    let key = if tokenizer.get("model_max_length").is_some() { "model_max_length" } else { "max_len" };
    // 1e30, written out in full or not, is how transformers says that there is no limit
    let length = tokenizer.number(key)?.unwrap_or(f64::INFINITY);
    if length < 1.0 {
        return Err(tokenizer.wrong(key, "a number from 1"));
    }
    Ok(if length < positions as f64 { length as usize } else { positions })
}

/// `config_sentence_transformers.json` (rules 4, 52 and 54).
fn prompts_and_dim(dir: &Path, desc: &mut ModelDesc, warnings: &mut Vec<String>) -> Result<()> {
    let config = Object::read_or_empty(&dir.join("config_sentence_transformers.json"))?;
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

/// `modules.json` as far as it is computed: a transformer, a pooling, any number of normalisations.
#[derive(Debug)]
struct Chain {
    transformer: PathBuf,
    pooling: PathBuf,
    normalize: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Module {
    Transformer,
    Pooling,
    Normalize,
}

impl Chain {
    fn read(dir: &Path, path: &Path) -> Result<Self> {
        let (mut transformer, mut pooling, mut normalize) = (None, None, false);
        for entry in Object::read_list(path)? {
            let Some(type_name) = entry.string("type")? else {
                return Err(entry.wrong("type", "the name of a module"));
            };
            let module = module(type_name).ok_or_else(|| entry.unsupported("type", KNOWN_MODULES))?;
            let folder = entry.string("path")?.unwrap_or_default();
            if !is_inside(folder) {
                return Err(entry.wrong("path", "a folder inside the model directory"));
            }
            let folder = if folder.is_empty() { dir.to_path_buf() } else { dir.join(folder) };
            let order = || entry.unsupported("type", "the order computed is Transformer, Pooling, Normalize");
            match module {
                Module::Transformer if transformer.is_none() => transformer = Some(folder),
                Module::Pooling if transformer.is_some() && pooling.is_none() => {
                    pooling = Some(folder);
                }
                // twice is the same as once; the folder may be missing (rule 5)
                Module::Normalize if pooling.is_some() => normalize = true,
                Module::Transformer | Module::Pooling | Module::Normalize => return Err(order()),
            }
        }
        match (transformer, pooling) {
            (Some(transformer), Some(pooling)) => Ok(Self { transformer, pooling, normalize }),
            (None, _) => Err(Error::config(path, "no Transformer module")),
            (_, None) => Err(Error::config(path, "no Pooling module: token vectors are no sentence vector")),
        }
    }

    /// Puts the pooling and the normalisation into the description.
    fn apply(&self, desc: &mut ModelDesc, warnings: &mut Vec<String>) -> Result<()> {
        let path = self.pooling.join("config.json");
        if !exists(&path)? {
            return Err(Error::MissingFile { path, what: "the configuration of the Pooling module".into() });
        }
        let config = Object::read(&path)?;
        desc.pooling = pooling(&config, warnings)?;
        desc.include_prompt = config.bool("include_prompt")?.unwrap_or(true);
        desc.normalize = self.normalize;
        for key in ["embedding_dimension", "word_embedding_dimension"] {
            if let Some(width) = config.size(key)?
                && width != desc.hidden_size
            {
                warnings.push(format!(
                    "{}: '{key}' is {width}, the encoder's hidden_size {}: the latter used",
                    path.display(),
                    desc.hidden_size
                ));
            }
        }
        Ok(())
    }
}

/// A module by its Python path, as any version of sentence-transformers wrote it (rule 2).
fn module(type_name: &str) -> Option<Module> {
    let rest = type_name.strip_prefix("sentence_transformers.")?;
    let rest = ["models.", "base.modules.", "sentence_transformer.modules."]
        .iter()
        .find_map(|package| rest.strip_prefix(package))?;
    // `Pooling`, or the full path `pooling.Pooling`
    let class = match rest.split_once('.') {
        Some((file, class)) if file.eq_ignore_ascii_case(class) => class,
        Some(_) => return None,
        None => rest,
    };
    match class {
        // BERT: the transformer module's name in 2019, which sentence-transformers itself no longer reads
        "Transformer" | "BERT" => Some(Module::Transformer),
        "Pooling" => Some(Module::Pooling),
        "Normalize" => Some(Module::Normalize),
        _ => None,
    }
}

/// The pooling modes in the order in which their vectors are joined (rules 42 to 44).
fn pooling(config: &Object, warnings: &mut Vec<String>) -> Result<Vec<Pooling>> {
    let needed = "\"cls\", \"max\", \"mean\", \"mean_sqrt_len_tokens\" or a list of these";
    let mut modes = Vec::new();
    let mut push = |key: &str, name: &str| {
        let mode = match name {
            "cls" => Pooling::Cls,
            "max" => Pooling::Max,
            "mean" => Pooling::Mean,
            "mean_sqrt_len_tokens" => Pooling::MeanSqrtLen,
            "weightedmean" | "lasttoken" => {
                return Err(config.unsupported(key, &format!("pooling '{name}' is not computed")));
            }
            _ => return Err(config.wrong(key, needed)),
        };
        if modes.contains(&mode) {
            return Err(config.unsupported(key, "each pooling once"));
        }
        modes.push(mode);
        Ok(())
    };
    let key = "pooling_mode";
    if let Some(value) = config.get(key) {
        if let Some(name) = value.as_str() {
            push(key, name)?;
        } else if let Some(list) = value.as_array().filter(|list| !list.is_empty()) {
            for name in list {
                push(key, name.as_str().ok_or_else(|| config.wrong(key, needed))?)?;
            }
        } else {
            return Err(config.wrong(key, needed));
        }
        return Ok(modes);
    }
    for (flag, name) in CLASSIC_POOLING {
        if config.bool(flag)? == Some(true) {
            push(flag, name)?;
        }
    }
    if modes.is_empty() {
        let path = config.path().display();
        warnings.push(format!("{path}: no pooling mode: mean assumed, as sentence-transformers does"));
        modes.push(Pooling::Mean);
    }
    Ok(modes)
}
