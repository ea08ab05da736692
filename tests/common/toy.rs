//! A tiny BERT in a directory, for tests that need a model and not a meaning: 32 word pieces, two layers of
//! width 8, 16 positions. Everything that a directory says can be changed before it is written.

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Rows of the word embedding table.
pub(crate) const VOCAB: [&str; 32] = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "c", "d", "e", "the", "cat", "dog", "sat", "on",
    "mat", "hello", "world", "##a", "##b", "##c", "##s", "##ing", ".", ",", "!", "?", "1", "2", "##1", "##2",
    "é",
];
pub(crate) const HIDDEN: usize = 8;
pub(crate) const LAYERS: usize = 2;
pub(crate) const INTERMEDIATE: usize = 16;
pub(crate) const POSITIONS: usize = 16;

/// A tensor to be written.
#[derive(Debug, Clone)]
pub(crate) struct ToyTensor {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
    pub(crate) dtype: Dtype,
}

impl ToyTensor {
    /// Values in ±0.5, the same for the same name.
    pub(crate) fn new(name: &str, shape: &[usize]) -> Self {
        let mut state = name.bytes().fold(17u32, |s, b| s.wrapping_mul(31).wrapping_add(u32::from(b)));
        let values = (0..shape.iter().product())
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1u32 << 24) as f32 - 0.5
            })
            .collect();
        Self { name: name.into(), shape: shape.into(), values, dtype: Dtype::F32 }
    }

    fn bytes(&self) -> Vec<u8> {
        let values = self.values.iter();
        if self.dtype == Dtype::F16 {
            values.flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()
        } else if self.dtype == Dtype::BF16 {
            values.flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()
        } else if self.dtype == Dtype::F64 {
            values.flat_map(|&v| f64::from(v).to_le_bytes()).collect()
        } else {
            assert_eq!(self.dtype, Dtype::F32);
            values.flat_map(|&v| v.to_le_bytes()).collect()
        }
    }
}

/// A model directory to be written.
#[derive(Debug, Clone)]
pub(crate) struct Toy {
    /// `config.json`
    pub(crate) config: Value,
    /// `model.safetensors`
    pub(crate) tensors: Vec<ToyTensor>,
    /// Every other file by its path.
    pub(crate) files: BTreeMap<String, String>,
}

impl Toy {
    /// The sentence-transformers layout, as version 2 to 5.3 writes it: mean pooling and normalisation.
    pub(crate) fn new() -> Self {
        let config = json!({
            "model_type": "bert", "vocab_size": VOCAB.len(), "hidden_size": HIDDEN,
            "num_hidden_layers": LAYERS, "num_attention_heads": 2, "intermediate_size": INTERMEDIATE,
            "max_position_embeddings": POSITIONS, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
            "hidden_act": "gelu", "position_embedding_type": "absolute",
        });
        let modules = json!([
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
        ]);
        let pooling = json!({
            "word_embedding_dimension": HIDDEN, "pooling_mode_cls_token": false,
            "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": false,
            "pooling_mode_mean_sqrt_len_tokens": false,
        });
        let tokenizer_config = json!({
            "tokenizer_class": "BertTokenizer", "do_lower_case": true, "model_max_length": POSITIONS,
            "unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]",
            "mask_token": "[MASK]",
        });
        let files = BTreeMap::from([
            ("modules.json".into(), modules.to_string()),
            ("1_Pooling/config.json".into(), pooling.to_string()),
            (
                "sentence_bert_config.json".into(),
                json!({"max_seq_length": 12, "do_lower_case": false}).to_string(),
            ),
            ("tokenizer_config.json".into(), tokenizer_config.to_string()),
            ("vocab.txt".into(), VOCAB.join("\n") + "\n"),
        ]);
        Self { config, tensors: bert_tensors(), files }
    }

    /// The plain transformers layout: no file of sentence-transformers.
    pub(crate) fn plain() -> Self {
        let mut toy = Self::new();
        toy.files.retain(|path, _| path == "tokenizer_config.json" || path == "vocab.txt");
        toy
    }

    /// Sets a key of `config.json`.
    pub(crate) fn config(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.config[key] = value.into();
        self
    }

    /// Removes a key of `config.json`.
    pub(crate) fn without_config(mut self, key: &str) -> Self {
        self.config.as_object_mut().expect("an object").remove(key);
        self
    }

    /// Sets another file.
    pub(crate) fn file(mut self, path: &str, text: impl ToString) -> Self {
        self.files.insert(path.into(), text.to_string());
        self
    }

    /// Removes another file.
    pub(crate) fn without_file(mut self, path: &str) -> Self {
        self.files.remove(path).expect("a file of the toy");
        self
    }

    /// Changes every tensor.
    pub(crate) fn map_tensors(mut self, f: impl FnMut(&mut ToyTensor)) -> Self {
        self.tensors.iter_mut().for_each(f);
        self
    }

    pub(crate) fn tensor(&self, name: &str) -> &ToyTensor {
        self.tensors.iter().find(|t| t.name == name).expect("a tensor of the toy")
    }

    /// Writes `config.json` and every file but the weights.
    pub(crate) fn write_without_weights(&self, dir: &Path) {
        fs::create_dir_all(dir).expect("a directory");
        write(&dir.join("config.json"), self.config.to_string());
        for (path, text) in &self.files {
            write(&dir.join(path), text);
        }
    }

    /// Writes the whole directory.
    pub(crate) fn write(&self, dir: &Path) {
        self.write_without_weights(dir);
        write(&dir.join("model.safetensors"), safetensors_bytes(&self.tensors));
    }
}

/// Writes a complete tiny BERT in the sentence-transformers layout, tokenizer files included.
pub(crate) fn toy_bert(dir: &Path) {
    Toy::new().write(dir);
}

/// Writes a file and the folders above it.
pub(crate) fn write(path: &Path, bytes: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
    fs::write(path, bytes).expect("a file");
}

/// A safetensors file of these tensors.
pub(crate) fn safetensors_bytes(tensors: &[ToyTensor]) -> Vec<u8> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(ToyTensor::bytes).collect();
    let views = tensors
        .iter()
        .zip(&bytes)
        .map(|(t, b)| (t.name.as_str(), TensorView::new(t.dtype, t.shape.clone(), b).expect("a tensor")));
    safetensors::serialize(views, None).expect("a safetensors file")
}

/// A safetensors file of a header as it is given, padded by nothing.
pub(crate) fn safetensors_raw(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

fn bert_tensors() -> Vec<ToyTensor> {
    let mut tensors = Vec::new();
    let mut add = |name: String, shape: &[usize]| tensors.push(ToyTensor::new(&name, shape));
    add("embeddings.word_embeddings.weight".into(), &[VOCAB.len(), HIDDEN]);
    add("embeddings.position_embeddings.weight".into(), &[POSITIONS, HIDDEN]);
    add("embeddings.token_type_embeddings.weight".into(), &[2, HIDDEN]);
    let mut parts = vec![("embeddings.LayerNorm".into(), vec![HIDDEN])];
    for l in 0..LAYERS {
        let at = |part: &str| format!("encoder.layer.{l}.{part}");
        for part in ["query", "key", "value"] {
            parts.push((at(&format!("attention.self.{part}")), vec![HIDDEN, HIDDEN]));
        }
        parts.push((at("attention.output.dense"), vec![HIDDEN, HIDDEN]));
        parts.push((at("attention.output.LayerNorm"), vec![HIDDEN]));
        parts.push((at("intermediate.dense"), vec![INTERMEDIATE, HIDDEN]));
        parts.push((at("output.dense"), vec![HIDDEN, INTERMEDIATE]));
        parts.push((at("output.LayerNorm"), vec![HIDDEN]));
    }
    for (name, shape) in parts {
        add(format!("{name}.weight"), &shape);
        add(format!("{name}.bias"), &shape[..1]);
    }
    tensors
}
