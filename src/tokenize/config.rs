//! The tokenizer's files, and which of them wins (rules 12 to 23 of `docs/loading.md`).
//!
//! The reference is transformers 5: it rebuilds the tokenizers of the BERT kind from `tokenizer_config.json`,
//! taking no more than vocabulary, added tokens and truncation side from `tokenizer.json`; of the other kinds it
//! also replaces parts, which `rebuild` does. Knows files; knows nothing of how the tokenizer is built.

use super::Side;
use super::class::{CAMEMBERT_EXTRA, CLASS_OF_MODEL, CLASSES, Class};
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Keys of the special tokens, in the order in which the reference adds those that are not there.
const SPECIAL_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// What a tokenizer is built from.
#[derive(Debug)]
pub(super) struct Recipe {
    /// The file to name when the tokenizer cannot be built.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    /// The special tokens before and behind a text; none: as the post-processor of the JSON says.
    pub(super) around: Option<(String, String)>,
    /// Special tokens between two texts of a pair, where `around` says those around a text.
    pub(super) separators: usize,
    /// Whether the second text of a pair has type 1, where `around` says the special tokens.
    pub(super) pair_types: bool,
    /// Whether the post-processor's token types go into the model, or 0 does.
    pub(super) types: bool,
    /// Tokens to add, in this order; those that are there already only change their flags.
    pub(super) added: Vec<AddedToken>,
    /// Special tokens written in a text are split like any other text.
    pub(super) split_special_tokens: bool,
    pub(super) cut: Side,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// `tokenizer.json` as it is, or with what transformers replaces in it.
    Json(Vec<u8>),
    /// WordPiece, with everything about text from `tokenizer_config.json`.
    Bert(Bert),
}

#[derive(Debug)]
pub(super) struct Bert {
    pub(super) vocabulary: Arc<Vocabulary>,
    pub(super) lowercase: bool,
    /// None: as `lowercase`.
    pub(super) strip_accents: Option<bool>,
    pub(super) chinese_chars: bool,
    pub(super) unk: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AddedToken {
    /// The id that the files give it, if they do.
    pub(super) id: Option<u32>,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

impl AddedToken {
    fn special(content: &str) -> Self {
        Self {
            id: None,
            content: content.into(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: true,
        }
    }
}

/// An added token as the files write it.
#[derive(Debug, Clone, Deserialize)]
struct TokenJson {
    id: Option<u32>,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl TokenJson {
    fn with_id(self, id: Option<u32>) -> AddedToken {
        AddedToken {
            id,
            content: self.content,
            single_word: self.single_word,
            lstrip: self.lstrip,
            rstrip: self.rstrip,
            normalized: self.normalized.unwrap_or(!self.special),
            special: self.special,
        }
    }
}

/// The parts of `tokenizer.json` that outlive a rebuild, but for the model.
#[derive(Debug, Deserialize)]
struct TokenizerJson {
    #[serde(default)]
    added_tokens: Vec<TokenJson>,
    truncation: Option<TruncationJson>,
}

#[derive(Debug, Deserialize)]
struct TruncationJson {
    direction: Option<String>,
}

/// The model of a BERT's `tokenizer.json`. Its unknown token, prefix and longest word are those of
/// the class, not those of the file.
#[derive(Debug, Deserialize)]
struct WordPieceJson {
    model: WordPieceModelJson,
}

#[derive(Debug, Deserialize)]
struct WordPieceModelJson {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vocabulary,
}

/// A model's type alone.
#[derive(Debug, Deserialize)]
struct ModelKindJson {
    model: KindJson,
}

#[derive(Debug, Deserialize)]
struct KindJson {
    #[serde(rename = "type")]
    kind: Option<String>,
}

/// A JSON file that is an object: `tokenizer_config.json` and its like.
#[derive(Debug)]
struct Object {
    path: PathBuf,
    keys: serde_json::Map<String, Value>,
}

impl Object {
    /// An absent file is an empty object.
    fn read(path: PathBuf) -> Result<Self> {
        let keys = match read_if_there(&path)? {
            Some(bytes) => parse(&path, &bytes)?,
            None => serde_json::Map::new(),
        };
        Ok(Self { path, keys })
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|v| !v.is_null())
    }

    /// A key that is there and null is a mistake here, as it is for the reference.
    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.keys.get(key) {
            None => Ok(default),
            Some(Value::Bool(b)) => Ok(*b),
            Some(other) => Err(self.wrong(key, other, "true or false")),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(s)) => Ok(Some(s)),
            Some(other) => Err(self.wrong(key, other, "a string")),
        }
    }

    fn wrong(&self, key: &str, found: &Value, needed: &str) -> Error {
        Error::config(&self.path, format!("{key} is {}, {needed} needed", shown(found)))
    }
}

/// Reads the tokenizer's files in `dir`.
pub(super) fn read(dir: &Path) -> Result<Recipe> {
    let json_path = dir.join("tokenizer.json");
    let vocab_path = dir.join("vocab.txt");
    let config = Object::read(dir.join("tokenizer_config.json"))?;
    let class = class(dir, &config)?;
    let json = read_if_there(&json_path)?;

    let file: Option<TokenizerJson> = json.as_deref().map(|bytes| parse(&json_path, bytes)).transpose()?;
    if config.keys.get("truncation_side").is_some_and(Value::is_null) {
        return Err(config.wrong("truncation_side", &Value::Null, "\"left\" or \"right\""));
    }
    let file_direction = file.as_ref().and_then(|f| f.truncation.as_ref()?.direction.clone());
    let cut = match (config.text("truncation_side")?, file_direction.as_deref()) {
        (Some("left"), _) | (None, Some("Left")) => Side::Left,
        (Some("right"), _) | (None, Some("Right") | None) => Side::Right,
        (Some(side), _) => {
            return Err(config.wrong("truncation_side", &side.into(), "\"left\" or \"right\""));
        }
        (None, Some(side)) => {
            let message = format!("truncation.direction is '{side}', 'Left' or 'Right' needed");
            return Err(Error::config(json_path, message));
        }
    };

    let specials = Specials::read(dir, &config, file.map_or_else(Vec::new, |f| f.added_tokens), class)?;
    let split_special_tokens = config.flag("split_special_tokens", false)?;
    let around = class.around().map(|(before, behind)| {
        Ok::<_, Error>((specials.content(&config, before)?, specials.content(&config, behind)?))
    });
    let around = around.transpose()?;
    if around.is_none() {
        for key in ["add_bos_token", "add_eos_token"] {
            if config.get(key).is_some() {
                let what = format!("{key} in a tokenizer whose special tokens its post_processor adds");
                return Err(Error::unsupported(&config.path, what));
            }
        }
    }
    let types = match config.get("model_input_names") {
        Some(Value::Array(names)) => Some(names.iter().any(|n| n == "token_type_ids")),
        Some(other) => return Err(config.wrong("model_input_names", other, "a list")),
        None => None,
    };
    let separators = if class == Class::Bert { 1 } else { 2 };
    let pair_types = class == Class::Bert && types.unwrap_or(true);
    let types = types.unwrap_or(false);
    let (path, kind) = match (class, json) {
        (Class::Unchanged, Some(json)) => (json_path, Kind::Json(json)),
        (Class::Roberta | Class::XlmRoberta | Class::Camembert | Class::Albert, Some(json)) => {
            let json = rebuild(class, &json_path, &json, &config, &specials)?;
            (json_path, Kind::Json(json))
        }
        (Class::Unchanged | Class::Roberta | Class::XlmRoberta | Class::Camembert | Class::Albert, None) => {
            return Err(missing(dir, json_path));
        }
        (Class::Bert | Class::MpNet, json) => {
            let (path, vocabulary) = match json {
                Some(json) => (json_path.clone(), json_vocab(&json_path, &json)?),
                None => match read_if_there(&vocab_path)? {
                    Some(text) => (vocab_path.clone(), Vocabulary::from_lines(&vocab_path, &text)?),
                    None => return Err(missing(dir, json_path)),
                },
            };
            let bert = Bert {
                vocabulary: Arc::new(vocabulary),
                lowercase: config.flag("do_lower_case", true)?,
                strip_accents: match config.get("strip_accents") {
                    None => None,
                    Some(_) => Some(config.flag("strip_accents", false)?),
                },
                chinese_chars: config.flag("tokenize_chinese_chars", true)?,
                unk: specials.content(&config, "unk_token")?,
            };
            (path, Kind::Bert(bert))
        }
    };
    let added = specials.into_added();
    Ok(Recipe { path, kind, around, separators, pair_types, types, added, split_special_tokens, cut })
}

/// `tokenizer.json` as transformers makes it anew: vocabulary, merges and the first character map of the
/// normaliser are the file's, all else is the class's (rules 12 and 21). Added tokens come later.
fn rebuild(class: Class, path: &Path, json: &[u8], config: &Object, specials: &Specials) -> Result<Vec<u8>> {
    let mut file: Value = parse(path, json)?;
    let wrong = |what: &str| Error::config(path, format!("{what} (is tokenizer_class right?)"));
    let Some(model) = file.get_mut("model").and_then(Value::as_object_mut) else {
        return Err(wrong("model: an object needed"));
    };
    let vocab = model.remove("vocab").unwrap_or_default();
    let merges = model.remove("merges").unwrap_or_default();
    let found = model.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let needed = if class == Class::Roberta { "BPE" } else { "Unigram" };
    // files of old have no type: then the form of the vocabulary decides
    let fits =
        if class == Class::Roberta { vocab.is_object() && merges.is_array() } else { vocab.is_array() };
    if (found != needed && !found.is_empty()) || !fits {
        let what = format!("a {found} vocabulary where tokenizer_class has {needed}");
        return Err(Error::unsupported(path, what));
    }
    let charsmap = normalizers(file.get("normalizer")).find(|n| n["type"] == "Precompiled").cloned();
    let metaspace = |prefix: bool| {
        let scheme = if prefix { "always" } else { "never" };
        json!({"type": "Sequence", "pretokenizers": [
            {"type": "WhitespaceSplit"},
            {"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": scheme, "split": true},
        ]})
    };
    let unigram =
        |unk_id: usize| json!({"type": "Unigram", "unk_id": unk_id, "vocab": vocab, "byte_fallback": false});
    let prefix = config.flag("add_prefix_space", class != Class::Roberta)?;
    let (model, normalizer, pre_tokenizer) = match class {
        Class::Roberta => {
            let model = json!({
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            });
            let bytes = json!({
                "type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": true, "use_regex": true,
            });
            (model, Value::Null, bytes)
        }
        // numbers in transformers' code
        Class::XlmRoberta => (unigram(3), charsmap.unwrap_or_default(), metaspace(prefix)),
        Class::Camembert => {
            let unk = specials.content(config, "unk_token")?;
            let at = vocab.as_array().and_then(|v| v.iter().position(|t| t[0] == *unk)).unwrap_or(0);
            (unigram(at), charsmap.unwrap_or_default(), metaspace(prefix))
        }
        Class::Albert => {
            // the template is the file's, and yet the reference cannot do without these
            for key in ["cls_token", "sep_token"] {
                specials.content(config, key)?;
            }
            let replace =
                |from: &str| json!({"type": "Replace", "pattern": {"String": from}, "content": "\""});
            let mut all = vec![replace("``"), replace("''")];
            if !config.flag("keep_accents", false)? {
                all.extend([json!({"type": "NFKD"}), json!({"type": "StripAccents"})]);
            }
            if config.flag("do_lower_case", true)? {
                all.push(json!({"type": "Lowercase"}));
            }
            all.extend(charsmap);
            (unigram(1), json!({"type": "Sequence", "normalizers": all}), metaspace(prefix))
        }
        Class::Bert | Class::MpNet | Class::Unchanged => unreachable!("these are not rebuilt here"),
    };
    let post_processor = file.get_mut("post_processor").map(Value::take).unwrap_or_default();
    let whole = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer, "decoder": null, "model": model,
        // BERT's and the others' templates come from `around`; ALBERT's is the file's
        "post_processor": if class.around().is_some() { Value::Null } else { post_processor },
    });
    Ok(whole.to_string().into_bytes())
}

/// A normaliser's parts.
fn normalizers(normalizer: Option<&Value>) -> impl Iterator<Item = &Value> {
    let list = normalizer.and_then(|n| n.get("normalizers")).and_then(Value::as_array);
    let one = normalizer.filter(|_| list.is_none());
    list.into_iter().flatten().chain(one)
}

/// The class is named by `tokenizer_config.json`, else by `config.json`, else it is that of the model's type,
/// else BERT's.
fn class(dir: &Path, tokenizer_config: &Object) -> Result<Class> {
    let model = Object::read(dir.join("config.json"))?;
    let model_type = model.text("model_type")?.unwrap_or_default();
    let named = (tokenizer_config.text("tokenizer_class")?, model.text("tokenizer_class")?);
    if model_type == "modernbert" {
        return Ok(Class::Unchanged); // whatever class is named: the reference knows those to be wrong
    }
    let (path, name) = match named {
        (Some(name), _) => (&tokenizer_config.path, name),
        (None, Some(name)) => (&model.path, name),
        (None, None) => {
            let class = CLASS_OF_MODEL.iter().find(|(t, _)| *t == model_type);
            (&model.path, class.map_or("BertTokenizer", |(_, class)| class))
        }
    };
    let base = name.strip_suffix("Fast").unwrap_or(name);
    if let Some((_, class)) = CLASSES.iter().find(|(known, _)| *known == base) {
        return Ok(*class);
    }
    let known = CLASSES.map(|(name, _)| name).join(", ");
    Err(Error::unsupported(
        path,
        format!("tokenizer_class '{name}' (supported: {known}, each also with Fast)"),
    ))
}

/// Special and added tokens, merged from all files that may hold them.
struct Specials {
    /// By id, as declared.
    declared: BTreeMap<u32, AddedToken>,
    /// Special tokens by key, in the order in which they are added.
    named: Vec<(String, AddedToken)>,
    /// Special tokens without a key.
    extra: Vec<AddedToken>,
}

impl Specials {
    fn read(dir: &Path, config: &Object, file_tokens: Vec<TokenJson>, class: Class) -> Result<Self> {
        let mut declared = BTreeMap::new();
        let mut keys = config.keys.clone();
        let mut extra = Vec::new();
        if let Some(decoder) = config.get("added_tokens_decoder") {
            // where this is, the reference looks at no other file
            let decoder: BTreeMap<u32, TokenJson> =
                from_value(&config.path, "added_tokens_decoder", decoder)?;
            declared.extend(decoder.into_iter().map(|(id, t)| (id, t.with_id(Some(id)))));
            for key in SPECIAL_KEYS {
                check_token(config, key)?;
            }
        } else {
            let map = Object::read(dir.join("special_tokens_map.json"))?;
            for key in SPECIAL_KEYS.iter().filter(|key| !map.keys.contains_key(**key)) {
                check_token(config, key)?;
            }
            keys.extend(map.keys);
            let path = dir.join("added_tokens.json");
            if let Some(bytes) = read_if_there(&path)? {
                let special: Vec<&str> = SPECIAL_KEYS.iter().filter_map(|&k| content(keys.get(k)?)).collect();
                for (content, id) in parse::<HashMap<String, u32>>(&path, &bytes)? {
                    let is_special = special.contains(&content.as_str());
                    let token = AddedToken::special(&content);
                    let token =
                        AddedToken { id: Some(id), normalized: !is_special, special: is_special, ..token };
                    declared.insert(id, token);
                }
            }
            for token in file_tokens {
                let id = token.id.ok_or_else(|| {
                    let message = format!("added_tokens: '{}' has no id", token.content);
                    Error::config(dir.join("tokenizer.json"), message)
                })?;
                declared.insert(id, token.with_id(Some(id)));
            }
        }

        for &(key, default) in class.specials() {
            keys.entry(key).or_insert_with(|| default.into());
        }
        let extra_keys = ["extra_special_tokens", "additional_special_tokens"];
        if class == Class::Camembert && extra_keys.iter().all(|key| keys.get(*key).is_none_or(Value::is_null))
        {
            keys.insert(extra_keys[1].into(), CAMEMBERT_EXTRA.to_vec().into());
        }

        let find = |key: &str, value: &Value| -> Result<AddedToken> {
            let mut token = match value.as_str() {
                Some(content) => AddedToken {
                    lstrip: key == "mask_token" && class.mask_takes_space(),
                    ..AddedToken::special(content)
                },
                None => from_value::<TokenJson>(&config.path, key, value)?.with_id(None),
            };
            if let Some(known) = declared.values().find(|d| d.content == token.content) {
                token = known.clone();
            }
            Ok(AddedToken { special: true, ..token })
        };
        let mut named = Vec::new();
        for key in SPECIAL_KEYS {
            if let Some(value) = keys.get(key).filter(|v| !v.is_null()) {
                named.push((key.to_owned(), find(key, value)?));
            }
        }
        for (key, value) in &keys {
            if key.ends_with("_token") && value.is_string() && !SPECIAL_KEYS.contains(&key.as_str()) {
                named.push((key.clone(), find(key, value)?));
            }
        }
        for key in extra_keys {
            match keys.get(key) {
                Some(Value::Array(list)) if extra.is_empty() => {
                    extra = list.iter().map(|v| find(key, v)).collect::<Result<_>>()?;
                }
                Some(Value::Object(tokens)) => {
                    for (name, value) in tokens {
                        named.push((name.clone(), find(name, value)?));
                    }
                }
                Some(Value::Array(_) | Value::Null) | None => {}
                Some(other) => return Err(config.wrong(key, other, "a list")),
            }
        }
        Ok(Self { declared, named, extra })
    }

    /// The special token of that key, which the tokenizer cannot do without.
    fn content(&self, config: &Object, key: &str) -> Result<String> {
        match self.named.iter().find(|(k, _)| k == key) {
            Some((_, token)) => Ok(token.content.clone()),
            None => Err(config.wrong(key, &Value::Null, "a token")),
        }
    }

    /// All tokens in the order in which the reference adds them: an id that is not in the vocabulary yet is
    /// given in this order.
    fn into_added(self) -> Vec<AddedToken> {
        let mut added: Vec<AddedToken> = self.declared.into_values().collect();
        for token in &mut added {
            token.special |= self.named.iter().any(|(_, t)| t.content == token.content);
        }
        for token in self.named.into_iter().map(|(_, t)| t).chain(self.extra) {
            if !added.iter().any(|a| a.content == token.content) {
                added.push(token);
            }
        }
        added
    }
}

/// Refuses a token of `tokenizer_config.json` that is an object without the mark that the reference needs there.
fn check_token(config: &Object, key: &str) -> Result<()> {
    match config.get(key) {
        Some(token @ Value::Object(keys)) if keys.get("__type").is_none_or(|t| t != "AddedToken") => {
            Err(config.wrong(key, token, "a string, or \"__type\": \"AddedToken\" in it,"))
        }
        _ => Ok(()),
    }
}

fn json_vocab(path: &Path, json: &[u8]) -> Result<Vocabulary> {
    let read: Result<WordPieceJson> = parse(path, json);
    // where another model's vocabulary is of another form, it is named all the same
    let kind = match &read {
        Ok(file) => file.model.kind.clone(),
        Err(_) => parse::<ModelKindJson>(path, json)?.model.kind,
    };
    // files of old have no type: then the form of the vocabulary decides
    match kind.as_deref() {
        Some("WordPiece") | None => Ok(read?.model.vocab),
        Some(kind) => {
            let what = format!("a {kind} vocabulary in a BERT tokenizer, WordPiece needed");
            Err(Error::unsupported(
                path,
                format!("{what} (is tokenizer_class in tokenizer_config.json right?)"),
            ))
        }
    }
}

/// There is no vocabulary that can be read; the message knows the files of other kinds.
fn missing(dir: &Path, path: PathBuf) -> Error {
    let other = ["vocab.txt", "vocab.json", "sentencepiece.bpe.model", "spiece.model", "tokenizer.model"]
        .into_iter()
        .find(|name| dir.join(name).exists());
    let what = match other {
        Some(name) => format!(
            "the tokenizer cannot be built from {name} alone; save it with transformers: \
             AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)"
        ),
        None => "the tokenizer (vocab.txt would do as well)".into(),
    };
    Error::MissingFile { path, what }
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, e)),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::config(path, e.to_string()))
}

fn from_value<T: DeserializeOwned>(path: &Path, key: &str, value: &Value) -> Result<T> {
    T::deserialize(value).map_err(|e| Error::config(path, format!("{key}: {e}")))
}

/// The content of a special token, which is a string or an object.
fn content(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// A value in a message, cut where it is long.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

#[cfg(test)]
pub(super) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// For tests: every text of the goldens, and all of them joined in one.
#[cfg(test)]
pub(super) fn fixture_texts() -> Vec<String> {
    let read = |name: &str| -> Value {
        let path = fixtures().join(name);
        parse(&path, &std::fs::read(&path).unwrap()).unwrap()
    };
    let (golden, tiny) = (read("minilm/golden.json"), read("tiny_texts.json"));
    let rows = golden["rows"].as_array().unwrap().iter().map(|row| &row["text"]);
    let mut texts: Vec<String> =
        rows.chain(tiny.as_array().unwrap()).map(|text| text.as_str().unwrap().to_owned()).collect();
    texts.push(texts.concat());
    texts
}
