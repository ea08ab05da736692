use super::super::input::{Place, Row};
use super::super::journal::Fingerprint;
use super::*;
use berthier::TokenCount;
use tempfile::TempDir;

const DIM: usize = 3;

fn plan(out: &Path) -> Plan {
    Plan::new(out, None, None, false, false).unwrap()
}

fn claim(plan: &Plan, resume: bool, overwrite: bool) -> Result<Claim, String> {
    Claim::new(plan, resume, overwrite).map_err(message)
}

fn message(failure: Failure) -> String {
    let Failure::Error(message) = failure else { panic!("{failure:?}") };
    message
}

fn begin(plan: &Plan, resume: bool) -> Writer {
    Writer::begin(claim(plan, resume, false).unwrap(), plan, DIM, Fingerprint::new())
        .map_err(message)
        .unwrap()
}

/// Rows `range` of an endless input: every fifth is bad, every third is cut.
fn block(range: std::ops::Range<u64>) -> Computed {
    let mut block = Computed { rows: vec![], vectors: vec![], tokens: vec![] };
    for i in range {
        let bad = i % 5 == 4;
        block.rows.push(Row {
            place: Place { file: "in".into(), line: i + 1 },
            id: Some(format!("\"id{i}\"")),
            text: if bad { Err("no \"text\"".into()) } else { Ok(String::new()) },
        });
        let x = if bad { f32::NAN } else { i as f32 };
        block.vectors.extend([x, x / 3.0, -x]);
        let total = if i % 3 == 2 { 9 } else { 4 };
        block.tokens.push(if bad { TokenCount { used: 0, total: 0 } } else { TokenCount { used: 4, total } });
    }
    block
}

fn names(dir: &TempDir) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Header text and numbers of an npy file, read by the format's own rules.
fn read_npy(bytes: &[u8]) -> (String, &[u8]) {
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + length) % 64, 0);
    let (header, data) = bytes[10..].split_at(length);
    assert_eq!(header.last(), Some(&b'\n'));
    (String::from_utf8(header.to_vec()).unwrap().trim_end().to_owned(), data)
}

#[test]
fn npy_is_readable() {
    let dir = tempfile::tempdir().unwrap();
    for (name, dtype, descr, size) in
        [("a.npy", Dtype::Float32, "<f4", 4), ("b.npy", Dtype::Float16, "<f2", 2)]
    {
        let out = dir.path().join(name);
        let plan = Plan::new(&out, None, Some(dtype), false, false).unwrap();
        let mut writer = begin(&plan, false);
        writer.write(block(0..7)).unwrap();
        assert_eq!(writer.finish().unwrap().rows, 7);
        let bytes = std::fs::read(&out).unwrap();
        let (header, data) = read_npy(&bytes);
        assert_eq!(header, format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': (7, 3), }}"));
        assert_eq!(data.len(), 7 * DIM * size);
        let value = |i: usize| match dtype {
            Dtype::Float32 => f32::from_le_bytes(data[i * 4..][..4].try_into().unwrap()),
            Dtype::Float16 | Dtype::Int8 | Dtype::Uint8 | Dtype::Binary | Dtype::Ubinary => {
                half::f16::from_le_bytes(data[i * 2..][..2].try_into().unwrap()).to_f32()
            }
        };
        assert_eq!(value(6 * DIM), 6.0);
        // the nearest to 2/3, ties to even
        let nearest = match dtype {
            Dtype::Float32 => f32::from_bits(0x3F2A_AAAB),
            Dtype::Float16 | Dtype::Int8 | Dtype::Uint8 | Dtype::Binary | Dtype::Ubinary => {
                half::f16::from_bits(0x3955).to_f32()
            }
        };
        assert_eq!(value(2 * DIM + 1), nearest);
        assert!((4 * DIM..5 * DIM).all(|i| value(i).is_nan()), "the bad row is NaN");
    }
}

#[test]
fn npy_header_takes_any_shape() {
    let bytes = npy::header(Dtype::Float32, u64::MAX, usize::MAX);
    let (header, data) = read_npy(&bytes);
    assert!(header.ends_with(&format!("({}, {}), }}", u64::MAX, usize::MAX)));
    assert!(data.is_empty());
}

#[test]
fn jsonl_rows_hold_what_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, ids, mark| {
        let out = dir.path().join(name);
        let plan = Plan::new(&out, None, None, ids, mark).unwrap();
        let mut writer = begin(&plan, false);
        writer.write(block(0..6)).unwrap();
        writer.finish().unwrap();
        std::fs::read_to_string(out).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let plain = write("a.jsonl", false, false);
    assert_eq!(plain[1], r#"{"index":1,"embedding":[1.0,0.33333334,-1.0]}"#);
    assert_eq!(plain[4], r#"{"index":4,"error":"in:5: no \"text\"","embedding":null}"#);
    let marked = write("b.jsonl", true, true);
    assert_eq!(
        marked[2],
        r#"{"id":"id2","tokens_used":4,"tokens_total":9,"truncated":true,"embedding":[2.0,0.6666667,-2.0]}"#
    );
    assert!(marked[1].contains(r#""tokens_total":4,"truncated":false"#));
    assert_eq!(names(&dir), ["a.jsonl", "b.jsonl"]);
}

#[test]
fn side_files_follow_the_rows() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a.f32");
    let plan = Plan::new(&out, None, None, true, true).unwrap();
    let mut writer = begin(&plan, false);
    writer.write(block(0..6)).unwrap();
    writer.finish().unwrap();
    assert_eq!(names(&dir), ["a.f32", "a.f32.ids.jsonl", "a.f32.truncated.jsonl"]);
    assert_eq!(std::fs::read(&out).unwrap().len(), 6 * DIM * 4);
    let ids = std::fs::read_to_string(dir.path().join("a.f32.ids.jsonl")).unwrap();
    assert_eq!(ids, (0..6).map(|i| format!("\"id{i}\"\n")).collect::<String>());
    let cut = std::fs::read_to_string(dir.path().join("a.f32.truncated.jsonl")).unwrap();
    assert_eq!(
        cut.lines().next().unwrap(),
        r#"{"row":2,"file":"in","line":3,"tokens_used":4,"tokens_total":9}"#
    );
    assert_eq!(cut.lines().count(), 2);

    // replaced without side files: none of the old ones stays beside it
    let plan = Plan::new(&out, None, None, false, false).unwrap();
    assert!(claim(&plan, false, false).err().unwrap().contains("--overwrite"));
    let claim = claim(&plan, false, true).unwrap();
    Writer::begin(claim, &plan, DIM, Fingerprint::new()).unwrap().finish().unwrap();
    assert_eq!(names(&dir), ["a.f32"]);
}

/// A run that is killed after any of its writes and resumed gives the bytes of one that was not.
#[test]
fn resumed_files_equal_uninterrupted_ones() {
    for name in ["a.npy", "a.f16", "a.jsonl"] {
        let whole = tempfile::tempdir().unwrap();
        let expected = plan_with_sides(&whole, name);
        let mut writer = begin(&expected, false);
        writer.write(block(0..40)).unwrap();
        writer.finish().unwrap();

        for kept in [0, 1, 13] {
            let dir = tempfile::tempdir().unwrap();
            let plan = plan_with_sides(&dir, name);
            let mut writer = begin(&plan, false);
            // the first block is journalled, the second only written, the last half-written
            writer.write(block(0..kept)).unwrap();
            writer.write(block(kept..kept + 5)).unwrap();
            drop(writer);
            let partial = dir.path().join(format!("{name}.partial"));
            let mut bytes = std::fs::read(&partial).unwrap();
            bytes.extend(b"half a row");
            std::fs::write(&partial, bytes).unwrap();
            assert!(!names(&dir).contains(&name.to_owned()), "an unfinished file looks complete");

            let mut writer = begin(&plan, true);
            let done = writer.counts().rows;
            assert!(done >= kept, "{done} rows journalled, {kept} needed");
            writer.write(block(done..40)).unwrap();
            let counts = writer.finish().unwrap();
            assert_eq!((counts.rows, counts.bad, counts.truncated), (40, 8, 11));
            assert_eq!(names(&dir), names(&whole));
            for file in names(&whole) {
                let read = |dir: &TempDir| std::fs::read(dir.path().join(&file)).unwrap();
                assert!(read(&dir) == read(&whole), "{file} differs after a stop at {kept}");
            }
        }
    }
}

fn plan_with_sides(dir: &TempDir, name: &str) -> Plan {
    Plan::new(&dir.path().join(name), None, None, true, true).unwrap()
}

#[test]
fn partial_npy_has_no_header() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir.path().join("a.npy"));
    let mut writer = begin(&plan, false);
    writer.write(block(0..3)).unwrap();
    writer.suspend().unwrap();
    assert_eq!(names(&dir), ["a.npy.partial", "a.npy.partial.json"]);
    assert_eq!(std::fs::read(dir.path().join("a.npy.partial")).unwrap()[..8], [0; 8]);
}

#[test]
fn leftovers_are_refused_unless_empty() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir.path().join("a.npy"));
    // begun and killed before the first row: nothing is lost by starting afresh
    drop(begin(&plan, false));
    assert_eq!(names(&dir).len(), 2);
    let mut writer = begin(&plan, false);
    assert!(claim(&plan, false, true).err().unwrap().contains("another run is writing"));
    writer.write(block(0..3)).unwrap();
    drop(writer);
    let refused = claim(&plan, false, false).err().unwrap();
    assert!(refused.contains("--resume") && refused.contains("--overwrite"), "{refused}");
    claim(&plan, false, true).unwrap().abandon();
    assert!(names(&dir).is_empty());
}

#[test]
fn suspended_without_rows_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan_with_sides(&dir, "a.npy");
    assert_eq!(begin(&plan, false).suspend().unwrap(), 0);
    assert!(names(&dir).is_empty());
}

#[test]
fn partial_shorter_than_its_journal_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir.path().join("a.f32"));
    let mut writer = begin(&plan, false);
    writer.write(block(0..3)).unwrap();
    writer.suspend().unwrap();
    std::fs::write(dir.path().join("a.f32.partial"), b"12").unwrap();
    let claim = claim(&plan, true, false).unwrap();
    let refused = Writer::begin(claim, &plan, DIM, Fingerprint::new()).err().map(message).unwrap();
    assert!(refused.contains("2 bytes, and its journal says 36"), "{refused}");
}

#[test]
fn completed_run_that_was_killed_before_renaming_is_renamed() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(&dir.path().join("a.f32"));
    let mut writer = begin(&plan, false);
    writer.write(block(0..3)).unwrap();
    writer.suspend().unwrap();
    let path = dir.path().join("a.f32.partial.json");
    let journal = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, journal.replace("\"complete\": false", "\"complete\": true")).unwrap();
    assert!(matches!(claim(&plan, true, false).unwrap(), Claim::Completed { rows: 3 }));
    assert_eq!(names(&dir), ["a.f32"]);
}

#[test]
fn plan_refuses_contradictions() {
    let refuse = |out: &str, format, dtype, ids, mark| {
        message(Plan::new(Path::new(out), format, dtype, ids, mark).unwrap_err())
    };
    assert!(refuse("a.bin", None, None, false, false).contains("--output-format"));
    assert!(refuse("a.f32", None, Some(Dtype::Float16), false, false).contains("--dtype"));
    assert!(refuse("a.jsonl", None, Some(Dtype::Float16), false, false).contains("JSON numbers"));
    assert!(refuse("-", Some(Format::Npy), None, false, false).contains("OUT.npy"));
    assert!(refuse("-", Some(Format::Raw), None, true, false).contains("jsonl"));
    assert!(refuse("-", Some(Format::Raw), None, false, true).contains("--on-truncate"));
    assert!(refuse("/", None, None, false, false).contains("is a directory"));
    assert!(refuse("absent/a.npy", None, None, false, false).contains("absent"));
    let plan = Plan::new(Path::new("a.f16"), None, None, false, false).unwrap();
    assert_eq!((plan.format, plan.dtype), (Format::Raw, Dtype::Float16));
    let plan = Plan::new(Path::new("-"), None, None, false, false).unwrap();
    assert_eq!(plan.format, Format::Jsonl);
}

#[test]
fn storable_refuses_what_float16_cannot_hold() {
    assert!(storable(Dtype::Float32, &[1e9]).is_ok());
    assert!(storable(Dtype::Float16, &[65519.0, f32::NAN]).is_ok());
    assert!(storable(Dtype::Float16, &[1.0, 65520.0]).unwrap_err().contains("65520"));
}
