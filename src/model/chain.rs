//! `modules.json` behind the encoder: the pooling, and what its vector goes through.
//!
//! Knows the modules of sentence-transformers under the names of every version; knows nothing of encoders. The
//! rule numbers are those of `docs/loading.md`.

use super::checkpoint::{Checkpoint, is_inside};
use super::json::{Object, exists};
use super::{Activation, Dense, Linear, ModelDesc, Module, ModuleWeights, Norm, Pooling};
use crate::error::{Error, Result};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What this version computes, for the message of what it does not.
const KNOWN_MODULES: &str = "this version computes Transformer, Pooling, Dense, LayerNorm and Normalize";

/// What an entry of `modules.json` holds.
const ENTRY_KEYS: [&str; 5] = ["idx", "name", "path", "type", "kwargs"];

/// Makes `model.safetensors` of `pytorch_model.bin`.
const CONVERT: &str = "import torch, safetensors.torch as s; \
    s.save_file(torch.load('DIR/pytorch_model.bin', weights_only=True), 'DIR/model.safetensors')";

/// The flags of a classic pooling file, in the order in which their vectors are joined (rule 43).
const CLASSIC_POOLING: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

/// `modules.json`: a transformer, a pooling, and any number of other modules in any order.
#[derive(Debug)]
pub(super) struct Chain {
    /// The folder of the encoder and its tokenizer.
    pub(super) transformer: PathBuf,
    pooling: PathBuf,
    /// Behind the pooling, each with its folder.
    modules: Vec<(Kind, PathBuf)>,
    /// What of the file has no effect.
    warnings: Vec<String>,
}

/// The modules that are computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Transformer,
    Pooling,
    Dense,
    LayerNorm,
    Normalize,
}

impl Chain {
    pub(super) fn read(dir: &Path, path: &Path) -> Result<Self> {
        let (mut transformer, mut pooling) = (None, None);
        let (mut modules, mut warnings) = (Vec::new(), Vec::new());
        for (entry, kind, folder) in entries(dir, path)? {
            let kind = kind.ok_or_else(|| entry.unsupported("type", KNOWN_MODULES))?;
            let order = || entry.unsupported("type", "one Transformer comes first, then a Pooling");
            match kind {
                Kind::Transformer if transformer.is_none() => transformer = Some(folder),
                Kind::Pooling if transformer.is_some() => {
                    // the vector is made anew from the tokens', as in the reference
                    if pooling.replace(folder).is_some() {
                        warnings.push(format!(
                            "{}: two Pooling modules: the first, and all between them, have no effect",
                            path.display()
                        ));
                    }
                    modules.clear();
                }
                Kind::Dense | Kind::LayerNorm | Kind::Normalize if pooling.is_some() => {
                    modules.push((kind, folder));
                }
                Kind::Transformer | Kind::Pooling | Kind::Dense | Kind::LayerNorm | Kind::Normalize => {
                    return Err(order());
                }
            }
        }
        match (transformer, pooling) {
            (Some(transformer), Some(pooling)) => Ok(Self { transformer, pooling, modules, warnings }),
            (None, _) => Err(Error::config(path, "no Transformer module")),
            (_, None) => Err(Error::config(path, "no Pooling module: token vectors are no sentence vector")),
        }
    }

    /// Puts the pooling and the other modules into the description.
    pub(super) fn apply(&self, desc: &mut ModelDesc, warnings: &mut Vec<String>) -> Result<()> {
        warnings.extend_from_slice(&self.warnings);
        let config = module_config(&self.pooling, "Pooling")?;
        desc.pooling = pooling(&config, warnings)?;
        desc.include_prompt = config.bool("include_prompt")?.unwrap_or(true);
        for key in ["embedding_dimension", "word_embedding_dimension"] {
            if let Some(width) = config.size(key)?
                && width != desc.hidden_size
            {
                warnings.push(format!(
                    "{}: '{key}' is {width}, the encoder's hidden_size {}: the latter used",
                    config.path().display(),
                    desc.hidden_size
                ));
            }
        }
        for (kind, folder) in &self.modules {
            let width = desc.dim();
            desc.modules.push(match kind {
                Kind::Dense => Module::Dense(dense(folder, width, warnings)?),
                Kind::LayerNorm => {
                    let config = module_config(folder, "LayerNorm")?;
                    if config.size("dimension")? != Some(width) {
                        return Err(config.wrong("dimension", &format!("the width of its input, {width},")));
                    }
                    Module::LayerNorm
                }
                Kind::Normalize => {
                    // the folder may be missing (rule 5)
                    only_sentences(&Object::read_or_empty(&folder.join("config.json"))?)?;
                    Module::Normalize
                }
                Kind::Transformer | Kind::Pooling => unreachable!("`read` keeps them apart"),
            });
        }
        // the last normalisation is a choice of the caller's; twice is the same as once
        while desc.modules.pop_if(|m| *m == Module::Normalize).is_some() {
            desc.normalize = true;
        }
        Ok(())
    }

    /// The tensors of the modules behind the pooling, as `apply` has described them.
    pub(super) fn weights(&self, desc: &ModelDesc) -> Result<Vec<ModuleWeights>> {
        let mut width = desc.pooled_dim();
        let mut weights = Vec::new();
        for (module, (_, folder)) in desc.modules.iter().zip(&self.modules) {
            let k = width;
            width = module.width(k);
            weights.push(match module {
                Module::Dense(dense) => {
                    let file = Checkpoint::open(folder, CONVERT)?;
                    let out = dense.out_features;
                    let bias = dense.bias.then(|| file.tensor("linear.bias", &[out])).transpose()?;
                    let linear = Linear { weight: file.tensor("linear.weight", &[out, k])?, bias };
                    let projected = dense.use_residual && k != out;
                    let residual =
                        projected.then(|| file.tensor("residual.weight", &[out, k])).transpose()?;
                    ModuleWeights::Dense { linear, residual }
                }
                Module::LayerNorm => {
                    let file = Checkpoint::open(folder, CONVERT)?;
                    let [weight, bias] = ["norm.weight", "norm.bias"].map(|name| file.tensor(name, &[k]));
                    ModuleWeights::LayerNorm(Norm { weight: weight?, bias: Some(bias?) })
                }
                Module::Normalize => ModuleWeights::Normalize,
            });
        }
        Ok(weights)
    }
}

/// A module by its Python path, as any version of sentence-transformers wrote it (rule 2).
fn kind(type_name: &str) -> Option<Kind> {
    let rest = type_name.strip_prefix("sentence_transformers.")?;
    let rest = ["models.", "base.modules.", "sentence_transformer.modules."]
        .iter()
        .find_map(|package| rest.strip_prefix(package))?;
    // `LayerNorm`, or the full path `layer_norm.LayerNorm` (in old versions `LayerNorm.LayerNorm`)
    let class = match rest.split_once('.') {
        Some((file, class)) if file.replace('_', "").eq_ignore_ascii_case(class) => class,
        Some(_) => return None,
        None => rest,
    };
    match class {
        // BERT: the transformer module's name in 2019, which sentence-transformers itself no longer reads
        "Transformer" | "BERT" => Some(Kind::Transformer),
        "Pooling" => Some(Kind::Pooling),
        "Dense" => Some(Kind::Dense),
        "LayerNorm" => Some(Kind::LayerNorm),
        "Normalize" => Some(Kind::Normalize),
        _ => None,
    }
}

/// What [`torch_function`] knows.
pub(super) const TORCH_FUNCTIONS: &str = "torch.nn's Identity, Tanh, ReLU, GELU, Sigmoid or SiLU";

/// PyTorch's class of an element-wise function, by its Python path; `Some(None)` is the identity.
pub(super) fn torch_function(name: &str) -> Option<Option<Activation>> {
    if matches!(name, "torch.nn.modules.linear.Identity" | "torch.nn.Identity") {
        return Some(None);
    }
    let class = ["torch.nn.modules.activation.", "torch.nn."].iter().find_map(|p| name.strip_prefix(p));
    Some(Some(match class {
        Some("Tanh") => Activation::Tanh,
        Some("ReLU") => Activation::Relu,
        Some("GELU") => Activation::Gelu,
        Some("Sigmoid") => Activation::Sigmoid,
        Some("SiLU") => Activation::Silu,
        _ => return None,
    }))
}

/// The folder of the one module of a cross-encoder's `modules.json`.
pub(super) fn only_transformer(dir: &Path, path: &Path) -> Result<PathBuf> {
    let mut transformer = None;
    for (entry, kind, folder) in entries(dir, path)? {
        if kind != Some(Kind::Transformer) || transformer.is_some() {
            return Err(
                entry.unsupported("type", "of a cross-encoder, this version computes one Transformer")
            );
        }
        transformer = Some(folder);
    }
    transformer.ok_or_else(|| Error::config(path, "no Transformer module"))
}

/// The modules of the file: each entry, what it is (`None`: nothing that is computed) and its folder (rule 1).
fn entries(dir: &Path, path: &Path) -> Result<Vec<(Object, Option<Kind>, PathBuf)>> {
    let mut modules = Vec::new();
    let mut names = BTreeSet::new();
    for entry in Object::read_list(path)? {
        // `idx` counts, and is not read; `kwargs` names arguments of `encode` that nobody passes here
        if let Some((key, _)) = entry.iter().find(|(key, _)| !ENTRY_KEYS.contains(key)) {
            return Err(entry.unsupported(key, "a key that this version does not know"));
        }
        entry.strings("kwargs")?;
        let Some(type_name) = entry.string("type")? else {
            return Err(entry.wrong("type", "the name of a module"));
        };
        // of two modules of one name, the reference runs the second in the first one's place
        let name = entry.string("name")?.filter(|name| !name.is_empty() && !name.contains('.'));
        if !name.is_some_and(|name| names.insert(name.to_owned())) {
            return Err(entry.wrong("name", "a name that no other module has, without a dot,"));
        }
        let Some(folder) = entry.string("path")?.filter(|folder| is_inside(folder)) else {
            return Err(entry.wrong("path", "a folder inside the model directory"));
        };
        let folder = if folder.is_empty() { dir.to_path_buf() } else { dir.join(folder) };
        let kind = kind(type_name);
        modules.push((entry, kind, folder));
    }
    Ok(modules)
}

fn module_config(folder: &Path, module: &str) -> Result<Object> {
    let path = folder.join("config.json");
    if !exists(&path)? {
        return Err(Error::MissingFile { path, what: format!("the configuration of the {module} module") });
    }
    Object::read(&path)
}

/// Refuses a module that works on token vectors, or on something that another module has put beside them.
fn only_sentences(config: &Object) -> Result<()> {
    for key in ["module_input_name", "module_output_name"] {
        if config.string(key)?.is_some_and(|name| name != "sentence_embedding") {
            return Err(config.unsupported(key, "only \"sentence_embedding\""));
        }
    }
    Ok(())
}

/// Rules 48 and 49.
fn dense(folder: &Path, width: usize, warnings: &mut Vec<String>) -> Result<Dense> {
    let config = module_config(folder, "Dense")?;
    only_sentences(&config)?;
    if config.size("in_features")? != Some(width) {
        return Err(config.wrong("in_features", &format!("the width of its input, {width},")));
    }
    let Some(out_features) = config.size("out_features")? else {
        return Err(config.wrong("out_features", "a whole number"));
    };
    let key = "activation_function";
    let activation = match config.string(key)? {
        // null is no absent key here: the reference fails at it
        None if config.iter().any(|(k, _)| k == key) => return Err(config.wrong(key, "a class of PyTorch")),
        None => Some(Activation::Tanh),
        Some(name) if !name.starts_with("torch.") => {
            warnings.push(format!(
                "{}: '{key}' {name} is code of the model's own: Tanh computed, as sentence-transformers does",
                config.path().display()
            ));
            Some(Activation::Tanh)
        }
        Some(name) => torch_function(name).ok_or_else(|| config.unsupported(key, TORCH_FUNCTIONS))?,
    };
    Ok(Dense {
        out_features,
        bias: config.bool("bias")?.unwrap_or(true),
        activation,
        use_residual: config.bool("use_residual")?.unwrap_or(false),
    })
}

/// The pooling modes in the order in which their vectors are joined (rules 42 to 44).
fn pooling(config: &Object, warnings: &mut Vec<String>) -> Result<Vec<Pooling>> {
    let needed = "\"cls\", \"max\", \"mean\", \"mean_sqrt_len_tokens\", \"weightedmean\", \"lasttoken\" \
        or a list of these";
    let mode = |key: &str, name: &str| match name {
        "cls" => Ok(Pooling::Cls),
        "max" => Ok(Pooling::Max),
        "mean" => Ok(Pooling::Mean),
        "mean_sqrt_len_tokens" => Ok(Pooling::MeanSqrtLen),
        "weightedmean" => Ok(Pooling::WeightedMean),
        "lasttoken" => Ok(Pooling::LastToken),
        _ => Err(config.wrong(key, needed)),
    };
    let key = "pooling_mode";
    if let Some(value) = config.get(key) {
        if let Some(name) = value.as_str() {
            return Ok(vec![mode(key, name)?]);
        }
        return match value.as_array() {
            Some(list) if !list.is_empty() => list
                .iter()
                .map(|name| mode(key, name.as_str().ok_or_else(|| config.wrong(key, needed))?))
                .collect(),
            _ => Err(config.wrong(key, needed)),
        };
    }
    let mut modes = Vec::new();
    for (flag, name) in CLASSIC_POOLING {
        if config.bool(flag)? == Some(true) {
            modes.push(mode(flag, name)?);
        }
    }
    if modes.is_empty() {
        let path = config.path().display();
        warnings.push(format!("{path}: no pooling mode: mean assumed, as sentence-transformers does"));
        modes.push(Pooling::Mean);
    }
    Ok(modes)
}
