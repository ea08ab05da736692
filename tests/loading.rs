//! Reading whole model directories, one test per rule of `docs/loading.md`.

mod common;

use berthier::Error;
use berthier::model::{self, Activation, Dense, Dtype, Family, Model, Module, Pooling};
use common::toy::{self, HIDDEN, INTERMEDIATE, LAYERS, POSITIONS, Toy, ToyTensor};
use serde_json::{Value, json};
use std::path::Path;

fn open(toy: &Toy) -> Model {
    try_open(toy).unwrap_or_else(|e| panic!("{e}"))
}

fn try_open(toy: &Toy) -> berthier::Result<Model> {
    let dir = tempfile::tempdir().unwrap();
    toy.write(dir.path());
    model::open(dir.path())
}

/// The model loads, and every warning is one of these, in order.
fn open_warned(toy: &Toy, warnings: &[&str]) -> Model {
    let model = open(toy);
    assert_eq!(model.warnings.len(), warnings.len(), "{:?}", model.warnings);
    for (warning, part) in model.warnings.iter().zip(warnings) {
        assert!(warning.contains(part), "{warning}: {part}");
    }
    model
}

fn unsupported(toy: &Toy, file: &str, what: &str) {
    match try_open(toy) {
        Err(Error::Unsupported { path, what: found }) => {
            assert!(path.ends_with(file), "{}: {file}", path.display());
            assert!(found.contains(what), "{found}: {what}");
        }
        other => panic!("{other:?}"),
    }
}

/// Every tensor is there with the toy's values.
fn assert_weights(model: &Model, toy: &Toy, rounded: impl Fn(f32) -> f32) {
    let w = &model.weights;
    let same = |tensor: &model::Tensor, name: &str| {
        let expected: Vec<f32> = toy.tensor(name).values.iter().map(|&v| rounded(v)).collect();
        assert_eq!(tensor.to_f32(), expected, "{name}");
        assert_eq!(tensor.shape(), toy.tensor(name).shape, "{name}");
    };
    same(&w.word_embeddings, "embeddings.word_embeddings.weight");
    same(w.position_embeddings.as_ref().unwrap(), "embeddings.position_embeddings.weight");
    same(w.token_type_embeddings.as_ref().unwrap(), "embeddings.token_type_embeddings.weight");
    same(&w.embeddings_norm.weight, "embeddings.LayerNorm.weight");
    same(w.embeddings_norm.bias.as_ref().unwrap(), "embeddings.LayerNorm.bias");
    assert_eq!(w.layers.len(), LAYERS);
    for (l, layer) in w.layers.iter().enumerate() {
        let linears = [
            (&layer.query, "attention.self.query"),
            (&layer.key, "attention.self.key"),
            (&layer.value, "attention.self.value"),
            (&layer.attention_output, "attention.output.dense"),
            (&layer.intermediate, "intermediate.dense"),
            (&layer.output, "output.dense"),
        ];
        for (linear, name) in linears {
            same(&linear.weight, &format!("encoder.layer.{l}.{name}.weight"));
            same(linear.bias.as_ref().unwrap(), &format!("encoder.layer.{l}.{name}.bias"));
        }
        let norms = [
            (layer.attention_norm.as_ref().unwrap(), "attention.output.LayerNorm"),
            (&layer.output_norm, "output.LayerNorm"),
        ];
        for (norm, name) in norms {
            same(&norm.weight, &format!("encoder.layer.{l}.{name}.weight"));
            same(norm.bias.as_ref().unwrap(), &format!("encoder.layer.{l}.{name}.bias"));
        }
    }
}

fn module(path: &str, type_name: &str) -> Value {
    json!({"idx": 0, "name": if path.is_empty() { "0" } else { path }, "path": path, "type": type_name})
}

const TRANSFORMER: &str = "sentence_transformers.models.Transformer";
const POOLING: &str = "sentence_transformers.models.Pooling";
const NORMALIZE: &str = "sentence_transformers.models.Normalize";

#[test]
fn rule_01_sentence_transformers_layout() {
    let toy = Toy::new();
    let model = open_warned(&toy, &[]);
    let desc = &model.desc;
    assert_eq!(desc.family, Family::Bert);
    assert_eq!((desc.vocab_size, desc.hidden_size, desc.num_hidden_layers), (32, HIDDEN, LAYERS));
    assert_eq!((desc.num_attention_heads, desc.intermediate_size), (2, INTERMEDIATE));
    assert_eq!((desc.max_position_embeddings, desc.type_vocab_size), (POSITIONS, 2));
    assert_eq!((desc.layer_norm_eps, desc.hidden_act), (1e-12, Activation::Gelu));
    assert_eq!((desc.pooling.as_slice(), desc.normalize), (&[Pooling::Mean][..], true));
    assert_eq!(desc.max_seq_length, 12);
    assert!(desc.prompts.is_empty() && desc.default_prompt_name.is_none() && desc.include_prompt);
    assert_eq!(desc.truncate_dim, None);
    assert_eq!(model.tokenizer.vocab_size, 32);
    assert_weights(&model, &toy, |v| v);
}

#[test]
fn rule_01_transformer_module_in_a_subfolder() {
    let toy = Toy::new();
    let modules = json!([module("0_Transformer", TRANSFORMER), module("1_Pooling", POOLING)]);
    let dir = tempfile::tempdir().unwrap();
    toy.write(&dir.path().join("0_Transformer"));
    // the folder's own modules.json and prompts are not the model's
    toy::write(&dir.path().join("0_Transformer/modules.json"), "[]");
    toy::write(&dir.path().join("modules.json"), modules.to_string());
    toy::write(&dir.path().join("1_Pooling/config.json"), r#"{"pooling_mode": "cls"}"#);
    toy::write(
        &dir.path().join("config_sentence_transformers.json"),
        r#"{"prompts": {"query": "q: "}, "default_prompt_name": "query"}"#,
    );
    let model = model::open(dir.path()).unwrap();
    assert_eq!((model.desc.pooling.as_slice(), model.desc.normalize), (&[Pooling::Cls][..], false));
    assert_eq!(model.desc.max_seq_length, 12);
    assert_eq!(model.desc.default_prompt_name.as_deref(), Some("query"));
    assert_eq!(model.tokenizer.dir, dir.path().join("0_Transformer"));
    assert_weights(&model, &toy, |v| v);
}

#[test]
fn rule_02_module_names_of_every_version() {
    let transformers = [
        TRANSFORMER,
        "sentence_transformers.models.transformer.Transformer",
        "sentence_transformers.models.Transformer.Transformer",
        "sentence_transformers.base.modules.transformer.Transformer",
        "sentence_transformers.models.BERT",
    ];
    let poolings = [
        POOLING,
        "sentence_transformers.models.pooling.Pooling",
        "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    ];
    let normalizes = [
        NORMALIZE,
        "sentence_transformers.sentence_transformer.modules.normalize.Normalize",
        "sentence_transformers.base.modules.normalize.Normalize",
    ];
    for i in 0..transformers.len() {
        let chain = json!([
            module("", transformers[i]),
            module("1_Pooling", poolings[i % 3]),
            module("2_Normalize", normalizes[i % 3]),
        ]);
        assert!(open(&Toy::new().file("modules.json", chain)).desc.normalize);
    }
}

#[test]
fn rule_02_other_modules_are_refused_by_name() {
    for name in [
        "sentence_transformers.models.Dropout",
        "sentence_transformers.models.WeightedLayerPooling",
        "sentence_transformers.models.Router",
        "sentence_transformers.models.Asym",
        "sentence_transformers.models.CLIPModel",
        "sentence_transformers.models.BoW",
        "sentence_transformers.sparse_encoder.models.SpladePooling",
        "sentence_transformers.models.other.Pooling",
        "custom_st.Transformer",
        "module.Normalize",
    ] {
        let chain = json!([module("", TRANSFORMER), module("1_Pooling", POOLING), module("2_X", name)]);
        unsupported(&Toy::new().file("modules.json", chain), "modules.json", name);
    }
}

#[test]
fn rule_03_plain_transformers_layout_is_mean_pooling_with_a_warning() {
    let model = open_warned(&Toy::plain(), &["mean pooling, no normalisation and no prompts assumed"]);
    assert_eq!((model.desc.pooling.as_slice(), model.desc.normalize), (&[Pooling::Mean][..], false));
    assert_eq!(model.desc.max_seq_length, POSITIONS);

    // like the reference: without modules.json no other file of sentence-transformers counts, which is said
    let toy = Toy::new()
        .without_file("modules.json")
        .file("config_sentence_transformers.json", r#"{"prompts": {"query": "q: "}}"#);
    let model = open_warned(&toy, &["config_sentence_transformers.json is there: an incomplete copy?"]);
    assert_eq!((model.desc.max_seq_length, model.desc.prompts.len()), (POSITIONS, 0));
}

#[test]
fn rule_04_model_types_other_than_sentence_transformer_are_refused() {
    for model_type in ["SparseEncoder", "CrossEncoder", "MultiVectorEncoder"] {
        let toy = Toy::new().file("config_sentence_transformers.json", json!({"model_type": model_type}));
        unsupported(&toy, "config_sentence_transformers.json", model_type);
    }
    open_warned(
        &Toy::new().file("config_sentence_transformers.json", r#"{"model_type": "SentenceTransformer"}"#),
        &[],
    );
}

#[test]
fn rule_04_null_is_absent() {
    let config = json!({
        "default_prompt_name": null, "similarity_fn_name": null, "truncate_dim": null,
    });
    let model = open_warned(&Toy::new().file("config_sentence_transformers.json", config), &[]);
    assert_eq!(
        (model.desc.prompts.len(), model.desc.default_prompt_name, model.desc.truncate_dim),
        (0, None, None)
    );
    // of these the reference makes no absent key
    for key in ["prompts", "model_type"] {
        let toy = Toy::new().file("config_sentence_transformers.json", json!({key: null}));
        let error = try_open(&toy).unwrap_err().to_string();
        assert!(error.contains(&format!("'{key}': null found")), "{error}");
    }
}

#[test]
fn rule_05_an_absent_normalize_folder_still_normalises() {
    let dir = tempfile::tempdir().unwrap();
    Toy::new().write(dir.path());
    assert!(!dir.path().join("2_Normalize").exists());
    assert!(model::open(dir.path()).unwrap().desc.normalize);
}

#[test]
fn rule_06_names_of_the_transformer_modules_file() {
    for family in ["bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet"] {
        let toy = Toy::new().without_file("sentence_bert_config.json").file(
            &format!("sentence_{family}_config.json"),
            r#"{"max_seq_length": 7, "do_lower_case": true}"#,
        );
        let model = open_warned(&toy, &[]);
        assert_eq!((model.desc.max_seq_length, model.tokenizer.do_lower_case), (7, true), "{family}");
    }
}

#[test]
fn rule_07_the_current_form_and_no_file_at_all() {
    let current = json!({
        "transformer_task": "feature-extraction",
        "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
        "module_output_name": "token_embeddings",
        "unpad_inputs": null,
        "processing_kwargs": {},
    });
    let model = open_warned(&Toy::new().file("sentence_bert_config.json", current), &[]);
    assert_eq!((model.desc.max_seq_length, model.tokenizer.do_lower_case), (POSITIONS, false));
    open_warned(&Toy::new().without_file("sentence_bert_config.json"), &[]);
}

#[test]
fn rule_07_other_tasks_and_outputs_are_refused() {
    let text = |method: &str, output: &str| {
        let text = json!({"method": method, "method_output_name": output});
        json!({"modality_config": {"text": text}, "module_output_name": "token_embeddings"})
    };
    for (config, what) in [
        (json!({"transformer_task": "fill-mask"}), "fill-mask"),
        (json!({"module_output_name": "sentence_embedding"}), "sentence_embedding"),
        (text("get_text_features", "last_hidden_state"), "get_text_features"),
        (text("forward", "pooler_output"), "pooler_output"),
        (json!({"processing_kwargs": {"text": {"max_length": 5}}}), "max_length"),
        (json!({"model_args": {"torch_dtype": "float16"}}), "model_args"),
        (json!({"tokenizer_name_or_path": "other"}), "tokenizer_name_or_path"),
        (json!({"max_seq_len": 5}), "max_seq_len"),
    ] {
        unsupported(&Toy::new().file("sentence_bert_config.json", config), "sentence_bert_config.json", what);
    }
}

#[test]
fn rule_08_effective_length() {
    let length = |bert: &str, tokenizer: &str| {
        let toy = Toy::new().file("sentence_bert_config.json", bert).file("tokenizer_config.json", tokenizer);
        let model = open(&toy);
        (model.desc.max_seq_length, model.warnings.len())
    };
    // the transformer module's own number, whatever the tokenizer says
    assert_eq!(length(r#"{"max_seq_length": 9}"#, r#"{"model_max_length": 5}"#), (9, 0));
    // else the tokenizer's, at most the positions
    assert_eq!(length(r#"{"max_seq_length": null}"#, r#"{"model_max_length": 5}"#), (5, 0));
    assert_eq!(length("{}", r#"{"model_max_length": 5}"#), (5, 0));
    assert_eq!(length("{}", r#"{"max_len": 5}"#), (5, 0));
    assert_eq!(length("{}", r#"{"model_max_length": 6, "max_len": 5}"#), (6, 0));
    assert_eq!(length("{}", r#"{"model_max_length": 512}"#), (POSITIONS, 0));
    assert_eq!(length("{}", r#"{"model_max_length": 1000000000000000019884624838656}"#), (POSITIONS, 0));
    assert_eq!(length("{}", r#"{"model_max_length": 1e30}"#), (POSITIONS, 0));
    assert_eq!(length("{}", "{}"), (POSITIONS, 0));
}

#[test]
fn rule_08_a_length_beyond_the_positions_is_clamped_with_a_warning() {
    let toy = Toy::new().file("sentence_bert_config.json", r#"{"max_seq_length": 512}"#);
    let model = open_warned(&toy, &["'max_seq_length' 512 is more than the model's 16 positions"]);
    assert_eq!(model.desc.max_seq_length, POSITIONS);
}

#[test]
fn rule_10_do_lower_case_is_handed_to_the_tokenizer() {
    let toy = Toy::new().file("sentence_bert_config.json", r#"{"do_lower_case": true}"#);
    assert!(open(&toy).tokenizer.do_lower_case);
    assert!(!open(&Toy::new()).tokenizer.do_lower_case);
}

#[test]
fn rule_29_relative_positions_are_refused() {
    for kind in ["relative_key", "relative_key_query", "alibi"] {
        unsupported(&Toy::new().config("position_embedding_type", kind), "config.json", kind);
    }
    open_warned(&Toy::new().without_config("position_embedding_type"), &[]);
}

#[test]
fn rule_30_a_decoder_is_refused_and_its_other_keys_are_ignored() {
    unsupported(&Toy::new().config("is_decoder", true), "config.json", "is_decoder");
    unsupported(&Toy::new().config("is_encoder_decoder", true), "config.json", "is_encoder_decoder");
    let toy =
        Toy::new().config("is_decoder", false).config("use_cache", true).config("add_cross_attention", true);
    open_warned(&toy, &[]);
}

#[test]
fn pruned_and_quantised_weights_are_refused() {
    unsupported(&Toy::new().config("pruned_heads", json!({"0": [1]})), "config.json", "pruned_heads");
    open_warned(&Toy::new().config("pruned_heads", json!({})), &[]);
    let quantised = json!({"quant_method": "bitsandbytes"});
    unsupported(&Toy::new().config("quantization_config", quantised), "config.json", "quantization_config");
}

#[test]
fn other_families_are_refused_by_name() {
    for family in ["modernbert-decoder", "jina_bert", "eurobert", "deberta-v2", "xlnet", "t5"] {
        unsupported(&Toy::new().config("model_type", family), "config.json", &format!("\"{family}\""));
    }
}

#[test]
fn absent_sizes_have_the_defaults_of_transformers_and_are_said() {
    let toy = Toy::new()
        .without_config("layer_norm_eps")
        .without_config("hidden_act")
        .without_config("type_vocab_size");
    let warnings =
        ["'type_vocab_size': 2 assumed", "'layer_norm_eps': 1e-12 assumed", "'hidden_act': gelu assumed"];
    let model = open_warned(&toy, &warnings);
    assert_eq!((model.desc.layer_norm_eps, model.desc.hidden_act), (1e-12, Activation::Gelu));
}

#[test]
fn custom_code_is_not_run_and_a_warning_says_so() {
    let toy = Toy::new().config("auto_map", json!({"AutoModel": "modeling_bert.MyBert"}));
    open_warned(&toy, &["'auto_map' names code of the model's own, which is not run"]);
}

#[test]
fn an_adapter_is_refused() {
    unsupported(&Toy::new().file("adapter_config.json", "{}"), "adapter_config.json", "merge it");
}

#[test]
fn rule_31_prefix() {
    let toy = Toy::new();
    let model = open_warned(&toy.clone().map_tensors(|t| t.name.insert_str(0, "bert.")), &[]);
    assert_eq!(model.weights.word_embeddings.name(), "bert.embeddings.word_embeddings.weight");
    assert_weights(&model, &toy, |v| v);
}

#[test]
fn rule_32_heads_are_ignored() {
    for prefix in ["", "bert."] {
        let mut toy = Toy::new().map_tensors(|t| t.name.insert_str(0, prefix));
        for name in ["pooler.dense.weight", "embeddings.position_ids"] {
            toy.tensors.push(ToyTensor::new(&format!("{prefix}{name}"), &[3]));
        }
        for name in ["cls.predictions.bias", "lm_head.bias", "classifier.weight", "qa_outputs.weight"] {
            toy.tensors.push(ToyTensor::new(name, &[3]));
        }
        // a head may have any dtype
        toy.tensors.last_mut().unwrap().dtype = safetensors::Dtype::F64;
        open_warned(&toy, &[]);
    }
}

#[test]
fn rule_32_other_tensors_that_nothing_uses_are_said() {
    let mut toy = Toy::new();
    toy.tensors.push(ToyTensor::new("encoder.layer.2.output.dense.bias", &[3]));
    let warned = open_warned(&toy, &["does not use: 'encoder.layer.2.output.dense.bias'"]);
    assert!(warned.warnings[0].contains("model.safetensors"), "{:?}", warned.warnings);
    (0..4).for_each(|i| toy.tensors.push(ToyTensor::new(&format!("x.{i}"), &[1])));
    open_warned(&toy, &["'encoder.layer.2.output.dense.bias', 'x.0', 'x.1' and 2 more"]);
}

#[test]
fn rule_33_gamma_and_beta() {
    let toy = Toy::new();
    let old = toy.clone().map_tensors(|t| {
        t.name =
            t.name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
    });
    assert_weights(&open_warned(&old, &[]), &toy, |v| v);
}

/// Writes the toy as two shards and their index.
fn write_shards(toy: &Toy, dir: &Path) {
    toy.write_without_weights(dir);
    let mut map = serde_json::Map::new();
    for (i, part) in toy.tensors.chunks(toy.tensors.len() / 2 + 1).enumerate() {
        let shard = format!("model-0000{}-of-00002.safetensors", i + 1);
        toy::write(&dir.join(&shard), toy::safetensors_bytes(part));
        part.iter().for_each(|t| drop(map.insert(t.name.clone(), shard.clone().into())));
    }
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    toy::write(&dir.join("model.safetensors.index.json"), index.to_string());
}

#[test]
fn rule_34_shards() {
    let toy = Toy::new();
    let dir = tempfile::tempdir().unwrap();
    write_shards(&toy, dir.path());
    let model = model::open(dir.path()).unwrap();
    assert_eq!(model.warnings, [""; 0]);
    assert_weights(&model, &toy, |v| v);
}

#[test]
fn rule_34_one_file_goes_before_an_index() {
    let toy = Toy::new();
    let dir = tempfile::tempdir().unwrap();
    toy.write(dir.path());
    toy::write(&dir.path().join("model.safetensors.index.json"), "not JSON");
    assert_weights(&model::open(dir.path()).unwrap(), &toy, |v| v);
}

#[test]
fn rule_35_half_types_are_widened_exactly() {
    let toy = Toy::new();
    let f16 = toy.clone().map_tensors(|t| t.dtype = safetensors::Dtype::F16);
    let model = open_warned(&f16, &[]);
    assert_eq!(model.weights.word_embeddings.dtype(), Dtype::F16);
    assert_weights(&model, &toy, |v| half::f16::from_f32(v).to_f32());
    let bf16 = toy.clone().map_tensors(|t| t.dtype = safetensors::Dtype::BF16);
    let model = open_warned(&bf16, &[]);
    assert_eq!(model.weights.word_embeddings.dtype(), Dtype::Bf16);
    assert_weights(&model, &toy, |v| half::bf16::from_f32(v).to_f32());
}

#[test]
fn rule_35_every_half_value_is_widened_exactly() {
    let mut toy = Toy::new().config("vocab_size", 8192);
    let all = |dtype, f: fn(u16) -> f32| ToyTensor {
        name: "embeddings.word_embeddings.weight".into(),
        shape: vec![8192, HIDDEN],
        values: (0..=u16::MAX).map(f).collect(),
        dtype,
    };
    let f16: fn(u16) -> f32 = |bits| half::f16::from_bits(bits).to_f32();
    let bf16: fn(u16) -> f32 = |bits| half::bf16::from_bits(bits).to_f32();
    for (dtype, f) in [(safetensors::Dtype::F16, f16), (safetensors::Dtype::BF16, bf16)] {
        toy.tensors[0] = all(dtype, f);
        let words = open(&toy).weights.word_embeddings.to_f32();
        for (bits, value) in words.iter().enumerate() {
            let expected = f(bits as u16);
            assert!(
                value.to_bits() == expected.to_bits() || value.is_nan() && expected.is_nan(),
                "{bits:#x}"
            );
        }
    }
}

#[test]
fn rule_36_unaligned_data() {
    // spaces behind the header put the data at every address modulo 4
    for dtype in [safetensors::Dtype::F32, safetensors::Dtype::F16, safetensors::Dtype::BF16] {
        let toy = Toy::new().map_tensors(|t| {
            t.dtype = dtype;
            // whole numbers below 64 are exact in all three types
            t.values.iter_mut().enumerate().for_each(|(i, v)| *v = (i * 7 % 61) as f32);
        });
        let whole = toy::safetensors_bytes(&toy.tensors);
        let length = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&whole[8..8 + length]).unwrap().trim_end();
        for spaces in 0..4 {
            let dir = tempfile::tempdir().unwrap();
            toy.write_without_weights(dir.path());
            let padded = format!("{header}{}", " ".repeat(spaces));
            let bytes = toy::safetensors_raw(&padded, &whole[8 + length..]);
            toy::write(&dir.path().join("model.safetensors"), bytes);
            assert_weights(&model::open(dir.path()).unwrap(), &toy, |v| v);
        }
    }
}

#[test]
fn a_part_of_a_tensor_is_read_from_where_it_begins() {
    let model = open(&Toy::new());
    let words = &model.weights.word_embeddings;
    let mut row = [f32::NAN; HIDDEN];
    words.read_f32(3 * HIDDEN, &mut row);
    assert_eq!(row, words.to_f32()[3 * HIDDEN..4 * HIDDEN]);
}

#[test]
fn rule_39_activations() {
    for (name, expected) in [
        ("gelu", Activation::Gelu),
        ("gelu_python", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("gelu_fast", Activation::GeluTanh),
        ("gelu_python_tanh", Activation::GeluTanh),
        ("gelu_accurate", Activation::GeluTanh),
        ("quick_gelu", Activation::QuickGelu),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("tanh", Activation::Tanh),
        ("sigmoid", Activation::Sigmoid),
    ] {
        assert_eq!(open(&Toy::new().config("hidden_act", name)).desc.hidden_act, expected, "{name}");
    }
    unsupported(&Toy::new().config("hidden_act", "gelu_10"), "config.json", "gelu_10");
}

#[test]
fn rule_39_layer_norm_eps_is_read() {
    assert_eq!(open(&Toy::new().config("layer_norm_eps", 1e-5)).desc.layer_norm_eps, 1e-5);
}

fn pooling(config: Value) -> Vec<Pooling> {
    open_warned(&Toy::new().file("1_Pooling/config.json", config), &[]).desc.pooling
}

#[test]
fn rule_42_both_pooling_schemas() {
    use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen, WeightedMean};
    for (name, flag, mode) in [
        ("cls", "pooling_mode_cls_token", Cls),
        ("max", "pooling_mode_max_tokens", Max),
        ("mean", "pooling_mode_mean_tokens", Mean),
        ("mean_sqrt_len_tokens", "pooling_mode_mean_sqrt_len_tokens", MeanSqrtLen),
        ("weightedmean", "pooling_mode_weightedmean_tokens", WeightedMean),
        ("lasttoken", "pooling_mode_lasttoken", LastToken),
    ] {
        assert_eq!(pooling(json!({"embedding_dimension": HIDDEN, "pooling_mode": name})), [mode]);
        assert_eq!(pooling(json!({"pooling_mode": [name]})), [mode]);
        assert_eq!(pooling(json!({"word_embedding_dimension": HIDDEN, flag: true})), [mode]);
    }
    // the current key wins
    assert_eq!(pooling(json!({"pooling_mode": "max", "pooling_mode_cls_token": true})), [Max]);
}

#[test]
fn rule_43_order_of_several_poolings() {
    use Pooling::{Cls, LastToken, Max, Mean, MeanSqrtLen, WeightedMean};
    let model = open(&Toy::new().file("1_Pooling/config.json", r#"{"pooling_mode": ["mean", "cls"]}"#));
    assert_eq!((model.desc.pooling.as_slice(), model.desc.dim()), (&[Mean, Cls][..], 2 * HIDDEN));
    assert_eq!(pooling(json!({"pooling_mode": ["mean", "mean"]})), [Mean, Mean]);
    let classic = json!({
        "pooling_mode_lasttoken": true, "pooling_mode_weightedmean_tokens": true,
        "pooling_mode_mean_sqrt_len_tokens": true, "pooling_mode_mean_tokens": true,
        "pooling_mode_max_tokens": true, "pooling_mode_cls_token": true,
    });
    assert_eq!(pooling(classic), [Cls, Max, Mean, MeanSqrtLen, WeightedMean, LastToken]);
}

#[test]
fn rule_44_no_true_flag_is_mean_and_cls_alone_is_cls() {
    for config in ["{}", r#"{"pooling_mode_cls_token": false, "pooling_mode_mean_tokens": false}"#] {
        let toy = Toy::new().file("1_Pooling/config.json", config);
        assert_eq!(open_warned(&toy, &["no pooling mode: mean assumed"]).desc.pooling, [Pooling::Mean]);
    }
    assert_eq!(pooling(json!({"pooling_mode_cls_token": true})), [Pooling::Cls]);
}

#[test]
fn rule_46_include_prompt() {
    let include = |config: &str| open(&Toy::new().file("1_Pooling/config.json", config)).desc.include_prompt;
    assert!(include(r#"{"pooling_mode": "mean"}"#));
    assert!(include(r#"{"pooling_mode": "mean", "include_prompt": true}"#));
    assert!(!include(r#"{"pooling_mode": "mean", "include_prompt": false}"#));
}

#[test]
fn a_pooling_of_another_width_is_said() {
    let toy =
        Toy::new().file("1_Pooling/config.json", r#"{"pooling_mode": "mean", "embedding_dimension": 768}"#);
    open_warned(&toy, &["'embedding_dimension' is 768, the encoder's hidden_size 8"]);
}

#[test]
fn rule_51_several_normalisations_are_one() {
    let chain = json!([
        module("", TRANSFORMER),
        module("1_Pooling", POOLING),
        module("2_Normalize", NORMALIZE),
        module("3_Normalize", NORMALIZE),
    ]);
    assert!(open_warned(&Toy::new().file("modules.json", chain), &[]).desc.normalize);
    let chain = json!([module("", TRANSFORMER), module("1_Pooling", POOLING)]);
    assert!(!open_warned(&Toy::new().file("modules.json", chain), &[]).desc.normalize);
}

const DENSE: &str = "sentence_transformers.models.Dense";
const LAYER_NORM: &str = "sentence_transformers.models.LayerNorm";

/// The toy, with these modules behind its pooling; the folder of module `i` is `i_X`.
fn chained(modules: &[(&str, Value)]) -> Toy {
    let mut chain = vec![module("", TRANSFORMER), module("1_Pooling", POOLING)];
    let mut toy = Toy::new();
    for (i, (name, config)) in modules.iter().enumerate() {
        let folder = format!("{}_X", i + 2);
        chain.push(module(&folder, name));
        toy = toy.file(&format!("{folder}/config.json"), config.clone());
    }
    toy.file("modules.json", Value::Array(chain))
}

/// Opens it with these tensors in the folders of its modules.
fn open_chained(modules: &[(&str, Value)], tensors: &[(&str, &[ToyTensor])]) -> berthier::Result<Model> {
    let dir = tempfile::tempdir().unwrap();
    chained(modules).write(dir.path());
    for (folder, tensors) in tensors {
        let path = dir.path().join(folder).join("model.safetensors");
        toy::write(&path, toy::safetensors_bytes(tensors));
    }
    model::open(dir.path())
}

fn dense_tensors(out: usize, k: usize) -> [ToyTensor; 2] {
    [ToyTensor::new("linear.weight", &[out, k]), ToyTensor::new("linear.bias", &[out])]
}

#[test]
fn rule_48_dense() {
    let config = json!({"in_features": HIDDEN, "out_features": 3});
    let plain =
        Dense { out_features: 3, bias: true, activation: Some(Activation::Tanh), use_residual: false };
    let with = |key: &str, value: Value| {
        let mut config = config.clone();
        config[key] = value;
        let tensors = dense_tensors(3, HIDDEN);
        let residual = [&tensors[..], &[ToyTensor::new("residual.weight", &[3, HIDDEN])]].concat();
        let model = open_chained(&[(DENSE, config)], &[("2_X", &residual)]).unwrap();
        assert_eq!((model.desc.dim(), model.weights.modules.len()), (3, 1));
        let [Module::Dense(dense)] = model.desc.modules[..] else { panic!("{:?}", model.desc.modules) };
        (dense, model.warnings.len())
    };
    assert_eq!(with("in_features", json!(HIDDEN)), (plain, 0));
    assert_eq!(with("bias", json!(false)), (Dense { bias: false, ..plain }, 0));
    assert_eq!(with("use_residual", json!(true)), (Dense { use_residual: true, ..plain }, 0));
    assert_eq!(with("module_input_name", json!("sentence_embedding")), (plain, 0));
    for (name, activation) in [
        ("torch.nn.modules.linear.Identity", None),
        ("torch.nn.modules.activation.Tanh", Some(Activation::Tanh)),
        ("torch.nn.Tanh", Some(Activation::Tanh)),
        ("torch.nn.modules.activation.ReLU", Some(Activation::Relu)),
        ("torch.nn.modules.activation.GELU", Some(Activation::Gelu)),
        ("torch.nn.modules.activation.Sigmoid", Some(Activation::Sigmoid)),
        ("torch.nn.modules.activation.SiLU", Some(Activation::Silu)),
    ] {
        assert_eq!(with("activation_function", json!(name)), (Dense { activation, ..plain }, 0), "{name}");
    }
    // what is not PyTorch's is Tanh in the reference, with a warning
    assert_eq!(with("activation_function", json!("my.module.Act")), (plain, 1));
}

#[test]
fn rule_48_what_a_dense_does_not_compute_is_refused() {
    let whole = json!({"in_features": HIDDEN, "out_features": 3});
    for (key, value, what) in [
        ("activation_function", json!("torch.nn.modules.activation.ELU"), "torch.nn.modules.activation.ELU"),
        ("module_input_name", json!("token_embeddings"), "'module_input_name' is \"token_embeddings\""),
        ("module_output_name", json!("x"), "'module_output_name' is \"x\""),
    ] {
        let mut config = whole.clone();
        config[key] = value;
        unsupported(&chained(&[(DENSE, config)]), "2_X/config.json", what);
    }
    for (key, value) in [
        ("activation_function", json!(null)),
        ("activation_function", json!(1)),
        ("in_features", json!(HIDDEN + 1)),
        ("in_features", json!(null)),
        ("out_features", json!(0)),
        ("out_features", json!(null)),
        ("bias", json!("yes")),
        ("use_residual", json!(1)),
    ] {
        let mut config = whole.clone();
        config[key] = value;
        let error = open_chained(&[(DENSE, config)], &[("2_X", &dense_tensors(3, HIDDEN))]).unwrap_err();
        assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(key), "{key}: {error}");
    }
    // tensors: missing, of another shape, in a pickle
    let open =
        |tensors: &[ToyTensor]| open_chained(&[(DENSE, whole.clone())], &[("2_X", tensors)]).unwrap_err();
    assert!(
        matches!(open(&dense_tensors(3, HIDDEN)[..1]), Error::TensorMissing { tensor, .. } if tensor == "linear.bias")
    );
    assert!(matches!(open(&dense_tensors(4, HIDDEN)), Error::TensorShape { .. }));
    let toy = chained(&[(DENSE, whole.clone())]).file("2_X/pytorch_model.bin", "PK");
    let error = try_open(&toy).unwrap_err().to_string();
    assert!(error.contains("2_X/pytorch_model.bin', weights_only=True"), "{error}");
}

#[test]
fn rule_50_layer_norm() {
    let norm =
        |width: usize| [ToyTensor::new("norm.weight", &[width]), ToyTensor::new("norm.bias", &[width])];
    let config = |width: usize| (LAYER_NORM, json!({"dimension": width}));
    let model = open_chained(&[config(HIDDEN)], &[("2_X", &norm(HIDDEN))]).unwrap();
    assert_eq!((model.desc.modules.as_slice(), model.desc.dim()), (&[Module::LayerNorm][..], HIDDEN));
    let error = open_chained(&[config(3)], &[("2_X", &norm(3))]).unwrap_err().to_string();
    assert!(error.contains("'dimension': 3 found, the width of its input, 8, needed"), "{error}");
}

#[test]
fn rule_51_modules_in_any_order() {
    let norm = [ToyTensor::new("norm.weight", &[3]), ToyTensor::new("norm.bias", &[3])];
    let dense = json!({"in_features": HIDDEN, "out_features": 3});
    let modules = [
        (NORMALIZE, json!({})),
        (DENSE, dense),
        (LAYER_NORM, json!({"dimension": 3})),
        (NORMALIZE, json!({"module_input_name": "sentence_embedding"})),
        (NORMALIZE, json!({})),
    ];
    let model = open_chained(&modules, &[("3_X", &dense_tensors(3, HIDDEN)), ("4_X", &norm)]).unwrap();
    assert!(matches!(model.desc.modules[..], [Module::Normalize, Module::Dense(_), Module::LayerNorm]));
    assert!(model.desc.normalize);
    let tokens = json!({"module_input_name": "token_embeddings"});
    unsupported(&chained(&[(NORMALIZE, tokens)]), "2_X/config.json", "token_embeddings");
}

#[test]
fn a_second_pooling_starts_anew_with_a_warning() {
    let modules = [(NORMALIZE, json!({})), (POOLING, json!({"pooling_mode": "max"}))];
    let model = open_warned(&chained(&modules), &["two Pooling modules"]);
    assert_eq!((model.desc.pooling.as_slice(), model.desc.normalize), (&[Pooling::Max][..], false));
}

#[test]
fn modules_out_of_order_are_refused() {
    for chain in [
        json!([module("1_Pooling", POOLING), module("", TRANSFORMER)]),
        json!([module("", TRANSFORMER), module("2_Normalize", NORMALIZE), module("1_Pooling", POOLING)]),
        json!([module("", TRANSFORMER), module("2_Dense", DENSE), module("1_Pooling", POOLING)]),
        json!([module("", TRANSFORMER), module("0_Transformer", TRANSFORMER), module("1_Pooling", POOLING)]),
    ] {
        let toy = Toy::new().file("modules.json", chain);
        unsupported(&toy, "modules.json", "one Transformer comes first, then a Pooling");
    }
}

#[test]
fn rule_52_truncate_dim() {
    let with =
        |dim: usize| Toy::new().file("config_sentence_transformers.json", json!({"truncate_dim": dim}));
    assert_eq!(open_warned(&with(3), &[]).desc.truncate_dim, Some(3));
    assert_eq!(open_warned(&with(HIDDEN), &[]).desc.truncate_dim, Some(HIDDEN));
    let model = open_warned(&with(100), &["'truncate_dim' 100 is more than the model's 8 dimensions"]);
    assert_eq!(model.desc.truncate_dim, None);
}

#[test]
fn rule_54_prompts() {
    let config = json!({
        "prompts": {"query": "query: ", "document": null, "": "x"}, "default_prompt_name": "query",
    });
    let desc = open_warned(&Toy::new().file("config_sentence_transformers.json", config), &[]).desc;
    let prompts: Vec<_> = desc.prompts.iter().map(|(n, p)| (n.as_str(), p.as_str())).collect();
    assert_eq!(prompts, [("", "x"), ("document", ""), ("query", "query: ")]);
    assert_eq!(desc.default_prompt_name.as_deref(), Some("query"));
}
