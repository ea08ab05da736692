//! One test for each way a call can fail that is not about a model's files (those are in `loader_errors.rs`,
//! `loading.rs` and `tokenizer.rs`): the variant, what it names, and what it says.

#![allow(clippy::print_stderr, reason = "a test that skips says so")]

#[path = "common/toy.rs"]
#[allow(dead_code, reason = "a part is used")]
mod toy;

use berthier::backend::DeviceChoice;
use berthier::backend::cpu::Isa;
use berthier::{Embedder, Error, Options};
use std::num::NonZeroUsize;
use std::path::Path;
use toy::Toy;

fn options(dir: &Path) -> Options {
    Options::new(dir.to_str().unwrap()).threads(NonZeroUsize::MIN)
}

fn toy(toy: &Toy, with: impl FnOnce(Options) -> Options) -> berthier::Result<Embedder> {
    let dir = tempfile::tempdir().unwrap();
    toy.write(dir.path());
    Embedder::load(with(options(dir.path())))
}

fn size(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

#[test]
fn model_not_found_names_every_place() {
    let name = "no-such-organisation/no-such-model";
    let Err(Error::ModelNotFound { name: found, tried }) = Embedder::load(Options::new(name)) else {
        panic!()
    };
    assert_eq!(found, name);
    assert!(tried.len() > 1, "{tried:?}");
    let text = Error::ModelNotFound { name: found, tried: tried.clone() }.to_string();
    assert!(tried.iter().all(|place| text.contains(place)), "{text}");
}

#[test]
fn invalid_options_name_the_option_and_what_is_accepted() {
    let none: fn(Options) -> Options = |o| o;
    let model = toy(&Toy::new(), none).unwrap();
    let cases: [(&str, &str, berthier::Result<Embedder>); 6] = [
        ("max_seq_length", "16 positions", toy(&Toy::new(), |o| o.max_seq_length(size(17)))),
        ("max_seq_length", "at least 3", toy(&Toy::new(), |o| o.max_seq_length(size(2)))),
        ("truncate_dim", "1 to 8", toy(&Toy::new(), |o| o.truncate_dim(size(9)))),
        ("prompt_name", "no prompts", toy(&Toy::new(), |o| o.prompt_name("query"))),
        ("pooled_layers", "2", toy(&Toy::new(), |o| o.pooled_layers(size(3)))),
        ("truncate_dim", "1 to 8", model.with_truncate_dim(0)),
    ];
    for (option, part, result) in cases {
        let Err(Error::InvalidOption { name, message }) = result else { panic!("{option}: {part}") };
        assert_eq!(name, option);
        assert!(message.contains(part), "{option}: {message}");
    }
    let Err(Error::InvalidOption { name: "device", message }) = "tpu".parse::<DeviceChoice>() else {
        panic!()
    };
    assert!(message.contains("'tpu': one of"), "{message}");
}

#[test]
fn an_instruction_set_that_is_not_there_is_not_replaced() {
    let mut known = ["portable", "avx2", "avx512"].into_iter().filter_map(|name| name.parse::<Isa>().ok());
    let Some(isa) = known.find(|isa| !Isa::available().contains(isa)) else {
        eprintln!("SKIP: this machine has every instruction set");
        return;
    };
    let Err(Error::DeviceUnavailable { device, message }) = toy(&Toy::new(), |o| o.isa(isa)) else {
        panic!()
    };
    assert_eq!(device, isa.to_string());
    assert!(message.contains("there is portable"), "{message}");
}

#[test]
fn a_bad_row_is_named() {
    let model = toy(&Toy::new(), |o| o).unwrap();
    let row = |ids: &[u32], offsets: &[usize], part: &str| {
        let Err(Error::Row { row, message }) = model.embed_ids(ids, offsets) else { panic!("{part}") };
        assert!(message.contains(part), "{message}: {part}");
        row
    };
    assert_eq!(row(&[2, 3, 2, 32, 3], &[0, 2, 5], "id 32 is not below vocab_size 32"), 1);
    assert_eq!(row(&[2; 20], &[0, 3, 20], "17 ids, the model has 16 positions"), 1);
    assert_eq!(row(&[2, 3], &[0, 0, 2], "no ids"), 0);
    assert_eq!(row(&[2, 3], &[0, 1, 3], "not a range of 2 ids"), 1);
}

#[test]
fn vectors_that_are_not_finite_are_none() {
    let broken = Toy::new().map_tensors(|t| {
        if t.name.contains("word_embeddings") {
            t.values[11 * toy::HIDDEN] = f32::NAN; // "cat"
        }
    });
    let model = toy(&broken, |o| o).unwrap();
    assert_eq!(model.embed(&["the dog"]).unwrap().len(), 1);
    let Err(error) = model.embed(&["dog", "the cat", "a", "cat"]) else { panic!() };
    assert!(error.to_string().starts_with("row 1 and 1 more: the vector is not finite"), "{error}");
    assert!(matches!(error, Error::NonFinite { rows, .. } if rows == [1, 3]));
}

#[test]
fn a_buffer_of_another_length_is_refused() {
    let model = toy(&Toy::new(), |o| o).unwrap();
    for length in [0, 15, 17] {
        let mut out = vec![0.0; length];
        let Err(Error::BufferSize { found, needed }) =
            model.embed_into(&["a", "b"], &mut out, &mut Vec::new())
        else {
            panic!()
        };
        assert_eq!((found, needed), (length, 16));
        assert!(out.iter().all(|&v| v == 0.0));
    }
}
