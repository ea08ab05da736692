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

#[cfg(feature = "cli")]
mod command {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::path::PathBuf;
    use std::process::{Command, Stdio};
    use tempfile::TempDir;

    const DIM: usize = 32;

    fn model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny/current-mean/model")
    }

    /// A folder with texts, in which the command runs.
    struct Place(TempDir);

    impl Place {
        fn new(lines: usize) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let words = ["the", "cat", "sat", "on", "a", "mat", "hello", "world", "dog"];
            let line =
                |i: usize| (0..1 + i % 7).map(|k| words[(i * 5 + k * k) % 9]).collect::<Vec<_>>().join(" ");
            let text: String = (0..lines).map(|i| line(i) + "\n").collect();
            fs::write(dir.path().join("in.txt"), text).unwrap();
            Self(dir)
        }

        /// Exit code, stdout and stderr of `embed`.
        fn embed(&self, args: &[&str]) -> (i32, Vec<u8>, String) {
            let model = model();
            let output = Command::new(env!("CARGO_BIN_EXE_berthier"))
                .current_dir(self.0.path())
                .args(["embed", "--device", "cpu", "--threads", "1", "-m", model.to_str().unwrap()])
                .args(args)
                .stdin(Stdio::null())
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            (output.status.code().unwrap_or(-1), output.stdout, stderr)
        }

        #[track_caller]
        fn ok(&self, args: &[&str]) -> Vec<u8> {
            let (code, stdout, stderr) = self.embed(args);
            assert_eq!(code, 0, "{stderr}");
            stdout
        }

        #[track_caller]
        fn fails(&self, args: &[&str], why: &str) {
            let (code, _, stderr) = self.embed(args);
            assert_eq!(code, 2, "{stderr}");
            assert!(stderr.contains(why), "{stderr}");
        }

        fn read(&self, name: &str) -> Vec<u8> {
            fs::read(self.0.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
        }

        /// Text of the header, and the numbers.
        fn npy(&self, name: &str) -> (String, Vec<u8>) {
            let bytes = self.read(name);
            (String::from_utf8_lossy(&bytes[10..128]).trim().to_owned(), bytes[128..].to_vec())
        }

        fn floats(&self, name: &str) -> Vec<f32> {
            self.npy(name).1.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
    }

    #[test]
    fn files_hold_what_the_library_quantises() {
        let place = Place::new(300);
        place.ok(&["in.txt", "-o", "f.npy"]);
        let vectors = place.floats("f.npy");
        assert_eq!(vectors.len(), 300 * DIM);
        let own = || Ranges::of(&vectors, DIM);
        for (dtype, descr, columns, quantizer) in [
            ("int8", "|i1", DIM, Quantizer::int8(own())),
            ("uint8", "|u1", DIM, Quantizer::uint8(own())),
            ("binary", "|i1", DIM / 8, Quantizer::binary()),
            ("ubinary", "|u1", DIM / 8, Quantizer::ubinary()),
        ] {
            let name = format!("{dtype}.npy");
            place.ok(&["in.txt", "-o", &name, "--dtype", dtype]);
            let (header, bytes) = place.npy(&name);
            let want = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (300, {columns}), }}");
            assert_eq!(header, want);
            assert!(bytes == quantizer.quantize(&vectors, DIM), "{dtype}");
            let kept = place.0.path().join(format!("{name}.ranges.npy"));
            assert_eq!(kept.exists(), dtype.ends_with("int8"), "{dtype}");
        }
        assert_eq!(place.floats("int8.npy.ranges.npy"), [own().low(), own().high()].concat());

        // jsonl: whole numbers
        let lines = place.ok(&["in.txt", "-o", "-", "--dtype", "binary"]);
        let first: serde_json::Value =
            serde_json::from_slice(lines.split(|&b| b == b'\n').next().unwrap()).unwrap();
        let want: Vec<i8> = place.npy("binary.npy").1[..DIM / 8].iter().map(|&b| b as i8).collect();
        assert_eq!(first["embedding"], serde_json::json!(want));
    }

    #[test]
    fn ranges_come_from_where_they_are_said_to() {
        let place = Place::new(200);
        place.ok(&["in.txt", "-o", "f.npy"]);
        let vectors = place.floats("f.npy");
        let quantized =
            |rows: usize| Quantizer::int8(Ranges::of(&vectors[..rows * DIM], DIM)).quantize(&vectors, DIM);
        place.ok(&["in.txt", "-o", "a.npy", "--dtype", "int8", "--calibration-rows", "7"]);
        assert!(place.npy("a.npy").1 == quantized(7));
        assert!(quantized(7) != quantized(200), "some values are clipped");
        // another job with the same ranges
        place.ok(&["in.txt", "-o", "b.npy", "--dtype", "int8", "--ranges", "a.npy.ranges.npy"]);
        assert_eq!(place.read("b.npy"), place.read("a.npy"));
        assert_eq!(place.read("b.npy.ranges.npy"), place.read("a.npy.ranges.npy"));
        // texts of a file
        let text = String::from_utf8(place.read("in.txt")).unwrap();
        let seven: String = text.split_inclusive('\n').take(7).collect();
        fs::write(place.0.path().join("seven.txt"), seven).unwrap();
        place.ok(&["in.txt", "-o", "c.npy", "--dtype", "int8", "--calibration", "seven.txt"]);
        assert_eq!(place.read("c.npy"), place.read("a.npy"));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let place = Place::new(3);
        let out = ["in.txt", "-o", "a.npy"];
        let with = |more: &[&'static str]| [&out[..], more].concat();
        place.fails(&with(&["--calibration-rows", "7"]), "are for --dtype int8 and uint8");
        place.fails(&with(&["--dtype", "binary", "--ranges", "r.npy"]), "are for --dtype int8 and uint8");
        place.fails(&with(&["--dtype", "uint8", "--on-error", "skip"]), "has no NaN");
        place.fails(&["in.txt", "-o", "-", "--dtype", "int8"], "no place for the ranges");
        place.fails(&["in.txt", "-o", "-", "--dtype", "float16"], "JSON numbers have no type");
        place.ok(&["in.txt", "-o", "f.npy"]);
        place.fails(&with(&["--dtype", "uint8", "--ranges", "f.npy"]), "(2, 32) of float32 needed");
        fs::write(place.0.path().join("none.txt"), "").unwrap();
        place.fails(&with(&["--dtype", "uint8", "--calibration", "none.txt"]), "no text to calibrate with");
        assert!(!place.0.path().join("a.npy").exists());
    }

    /// A run that a bad row ends, after some blocks, goes on with the ranges that it began with.
    #[test]
    fn a_resumed_run_keeps_its_ranges() {
        let place = Place::new(4000);
        let text = String::from_utf8(place.read("in.txt")).unwrap();
        let mut file = fs::File::create(place.0.path().join("in.jsonl")).unwrap();
        for (i, line) in text.lines().enumerate() {
            let row = serde_json::json!({"text": line}).to_string();
            writeln!(file, "{}", if i == 3500 { "{" } else { &row }).unwrap();
        }
        let job = |out| ["in.jsonl", "-o", out, "--dtype", "int8", "--calibration-rows", "50"];
        let skipping = |out, more: &[&'static str]| {
            let (code, _, stderr) = place.embed(&[&job(out)[..], &["--on-error", "skip"], more].concat());
            assert_eq!(code, 1, "{stderr}");
        };
        skipping("whole.jsonl", &[]);
        let whole = String::from_utf8(place.read("whole.jsonl")).unwrap();
        assert_eq!(whole.lines().count(), 4000);

        place.fails(&job("a.jsonl"), "3501");
        let kept = String::from_utf8(place.read("a.jsonl.partial")).unwrap();
        assert!(kept.lines().count() > 50 && whole.starts_with(&kept), "some rows are kept");
        // other ranges are another job
        let other = [&job("a.jsonl")[..6], &["51", "--resume"]].concat();
        place.fails(&other, "ranges: was of the first 50 rows, is of the first 51 rows");
        skipping("a.jsonl", &["--resume"]);
        assert!(place.read("a.jsonl") == whole.as_bytes());
        assert_eq!(place.read("a.jsonl.ranges.npy"), place.read("whole.jsonl.ranges.npy"));
        assert!(!place.0.path().join("a.jsonl.ranges.npy.partial").exists());
    }
}
