//! Quantised vectors are, to the byte, those of sentence-transformers.

use berthier::{Error, Quantizer, Ranges};
use std::collections::BTreeMap;
use std::path::Path;

struct Golden {
    dim: usize,
    vectors: Vec<f32>,
    /// Those that the calibrated outputs have their ranges from.
    calibration: Vec<f32>,
    outputs: BTreeMap<String, Vec<u8>>,
}

fn golden() -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quantize/golden.json");
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let bytes = |hex: &str| -> Vec<u8> {
        let digits = hex.as_bytes().chunks_exact(2);
        digits.map(|two| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap()).collect()
    };
    let outputs: BTreeMap<String, Vec<u8>> = json
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), bytes(value.as_str()?))))
        .collect();
    let vectors: Vec<f32> =
        outputs["vectors"].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let size = |key: &str| json[key].as_u64().unwrap() as usize;
    let calibration = vectors[..size("calibration_rows") * size("dim")].to_vec();
    Golden { dim: size("dim"), vectors, calibration, outputs }
}

#[test]
fn every_precision_matches_sentence_transformers() {
    let golden = golden();
    let dim = golden.dim;
    let own = || Ranges::of(&golden.vectors, dim);
    let calibrated = || Ranges::of(&golden.calibration, dim);
    for (name, quantizer) in [
        ("int8", Quantizer::int8(own())),
        ("uint8", Quantizer::uint8(own())),
        ("int8 calibrated", Quantizer::int8(calibrated())),
        ("uint8 calibrated", Quantizer::uint8(calibrated())),
        ("binary", Quantizer::binary()),
        ("ubinary", Quantizer::ubinary()),
    ] {
        let want = &golden.outputs[name];
        assert_eq!(want.len(), golden.vectors.len() / dim * quantizer.row_bytes(dim), "{name}");
        assert_eq!(&quantizer.quantize(&golden.vectors, dim), want, "{name}");
        // row by row it is the same
        let mut rows = Vec::new();
        golden.vectors.chunks(dim).for_each(|row| quantizer.quantize_into(row, dim, &mut rows));
        assert_eq!(&rows, want, "{name}");
    }
}

#[test]
fn ranges_do_not_depend_on_the_order_of_rows() {
    let Golden { dim, vectors, .. } = golden();
    let mut backwards = Ranges::new(dim);
    vectors.chunks(dim).rev().for_each(|row| backwards.include(row));
    assert_eq!(backwards, Ranges::of(&vectors, dim));
    let known = Ranges::from_bounds(backwards.low().to_vec(), backwards.high().to_vec()).unwrap();
    assert_eq!(known, backwards);
}

#[test]
fn bounds_that_are_no_ranges_are_refused() {
    for (low, high) in [
        (vec![0.0], vec![]),
        (vec![1.0], vec![0.0]),
        (vec![f32::NAN], vec![0.0]),
        (vec![0.0], vec![f32::INFINITY]),
    ] {
        let refused = Ranges::from_bounds(low, high);
        assert!(matches!(refused, Err(Error::InvalidOption { name: "ranges", .. })), "{refused:?}");
    }
}

#[test]
fn no_vector_quantises_to_nothing() {
    let ranges = Ranges::of(&[], 4);
    assert_eq!(ranges.low(), [0.0; 4]);
    assert!(Quantizer::int8(ranges).quantize(&[], 4).is_empty());
    assert!(Quantizer::binary().quantize(&[], 4).is_empty());
    assert_eq!(Quantizer::binary().row_bytes(9), 2);
}
