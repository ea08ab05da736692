//! One JSON object a line. Numbers have as many digits as tell one f32 from the next.

use super::writer::Record;
use berthier::Quantizer;
use serde_json::json;
use std::io::Write;

/// Adds a row: its id or index, tokens if they are marked, and the vector (quantised, if it is) or what is wrong.
pub(crate) fn row(
    out: &mut Vec<u8>,
    record: &Record<'_>,
    quantizer: Option<&Quantizer>,
    ids: bool,
    mark_truncated: bool,
) {
    match ids {
        true => push(out, format_args!("{{\"id\":{}", record.id.unwrap_or("null"))),
        false => push(out, format_args!("{{\"index\":{}", record.index)),
    }
    let name = if record.token_dim > 0 { "token_embeddings" } else { "embedding" };
    match record.vector {
        Ok(vector) => {
            if mark_truncated {
                let tokens = record.tokens;
                push(
                    out,
                    format_args!(
                        ",\"tokens_used\":{},\"tokens_total\":{},\"truncated\":{}",
                        tokens.used,
                        tokens.total,
                        tokens.truncated()
                    ),
                );
            }
            push(out, format_args!(",\"{name}\":"));
            // writing to memory does not fail, and neither do finite numbers
            let _ = match quantizer {
                None if record.token_dim > 0 => {
                    let vectors: Vec<&[f32]> = vector.chunks_exact(record.token_dim).collect();
                    serde_json::to_writer(&mut *out, &vectors)
                }
                None => serde_json::to_writer(&mut *out, vector),
                Some(quantizer) => {
                    let bytes = quantizer.quantize(vector, vector.len());
                    match quantizer.signed() {
                        false => serde_json::to_writer(&mut *out, &bytes),
                        true => {
                            let signed: Vec<i8> = bytes.into_iter().map(u8::cast_signed).collect();
                            serde_json::to_writer(&mut *out, &signed)
                        }
                    }
                }
            };
            out.extend(b"}\n");
        }
        Err(message) => {
            let error = json!(format!("{}: {message}", record.place));
            push(out, format_args!(",\"error\":{error},\"{name}\":null}}\n"));
        }
    }
}

/// Adds a line of the list of cut rows.
pub(crate) fn truncated(out: &mut Vec<u8>, record: &Record<'_>) {
    let file = json!(&*record.place.file);
    push(
        out,
        format_args!(
            "{{\"row\":{},\"file\":{file},\"line\":{},\"tokens_used\":{},\"tokens_total\":{}}}\n",
            record.index, record.place.line, record.tokens.used, record.tokens.total
        ),
    );
}

fn push(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}
