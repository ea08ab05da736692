//! JSON Lines rows: one object a line, of which two fields are looked at.

use super::Fields;
use super::lines::utf8;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;
use std::fmt;

/// Above this a JSON reader that stores numbers as f64 cannot tell neighbours apart.
const MAX_EXACT_FLOAT: f64 = 9_007_199_254_740_992.0; // 2^53

/// The id, as JSON, and the text of a line. A row without a usable id is a bad row.
pub(crate) fn parse(line: &[u8], fields: &Fields) -> (Option<String>, Result<String, String>) {
    let object = match utf8(line).and_then(|line| object(line, fields)) {
        Ok(object) => object,
        Err(message) => return (None, Err(message)),
    };
    let id = match fields.id.as_deref().map(|name| id(name, object.id)).transpose() {
        Ok(id) => id,
        Err(message) => return (None, Err(message)),
    };
    let name = &fields.text;
    let text = match object.text {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("field '{name}' is {}, a string is needed", kind(&other))),
        None => Err(format!("no field '{name}' (--field names the text's field)")),
    };
    (id, text)
}

fn object(line: &str, fields: &Fields) -> Result<Object, String> {
    if line.trim().is_empty() {
        return Err("an empty line, a JSON object is needed".into());
    }
    let mut json = serde_json::Deserializer::from_str(line);
    fields.deserialize(&mut json).and_then(|object| json.end().map(|()| object)).map_err(|e| {
        let message = e.to_string();
        // each line is a document of its own, so that its "line 1" says nothing
        let message = message.split(" at line ").next().unwrap_or_default();
        format!("not a JSON object: {message} at column {}", e.column())
    })
}

fn id(name: &str, value: Option<Value>) -> Result<String, String> {
    let value = value.ok_or_else(|| format!("no field '{name}' (--id-field names the id's field)"))?;
    match &value {
        Value::Array(_) | Value::Object(_) => {
            return Err(format!("id field '{name}' is {}, a string or number is needed", kind(&value)));
        }
        Value::Number(n) if n.is_f64() && n.as_f64().is_some_and(|n| n.abs() >= MAX_EXACT_FLOAT) => {
            return Err(format!(
                "id field '{name}' is a number that cannot be kept exactly (make it a string)"
            ));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
    Ok(value.to_string())
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The two fields; of a key that is there twice the last counts, as in other JSON readers.
#[derive(Default)]
pub(crate) struct Object {
    text: Option<Value>,
    id: Option<Value>,
}

impl<'de> DeserializeSeed<'de> for &Fields {
    type Value = Object;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Object, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Fields {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::default();
        while let Some((is_text, is_id)) = map.next_key_seed(Key(self))? {
            if !is_text && !is_id {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let value: Value = map.next_value()?;
            if is_id {
                object.id = Some(value.clone());
            }
            if is_text {
                object.text = Some(value);
            }
        }
        Ok(object)
    }
}

/// Compares a key with the two names without keeping it.
struct Key<'a>(&'a Fields);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = (bool, bool);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(bool, bool), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = (bool, bool);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<(bool, bool), E> {
        Ok((key == self.0.text, self.0.id.as_deref() == Some(key)))
    }
}
