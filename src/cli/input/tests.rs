use super::*;
use std::io::{Cursor, Write};

fn fields(text: &str, id: Option<&str>) -> Fields {
    Fields { text: text.into(), id: id.map(str::to_owned) }
}

fn read_all(inputs: Inputs, skip: u64, block_bytes: usize) -> Result<Vec<Row>, Failure> {
    let mut rows = Vec::new();
    for message in inputs.read(skip, block_bytes) {
        match message? {
            Some(block) => rows.extend(block.rows),
            None => return Ok(rows),
        }
    }
    panic!("the reader ended without saying so")
}

fn write(dir: &tempfile::TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn texts(rows: &[Row]) -> Vec<&str> {
    rows.iter().map(|r| r.text.as_deref().unwrap()).collect()
}

fn error<T>(result: Result<T, Failure>) -> String {
    match result {
        Err(Failure::Error(message)) => message,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("no error"),
    }
}

fn split(bytes: &[u8], max: usize) -> Vec<Result<Vec<u8>, u64>> {
    let mut lines = Lines::new(Cursor::new(bytes), max);
    let mut out = Vec::new();
    while let Some(line) = lines.next().unwrap() {
        out.push(match line {
            Line::Whole(line) => Ok(line.to_vec()),
            Line::TooLong(n) => Err(n),
        });
    }
    out
}

#[test]
fn lines_map_one_to_one() {
    let whole = |lines: &[&str]| lines.iter().map(|l| Ok(l.as_bytes().to_vec())).collect::<Vec<_>>();
    assert_eq!(split(b"", 9), whole(&[]));
    assert_eq!(split(b"\n", 9), whole(&[""]));
    assert_eq!(split(b"a\n\nb", 9), whole(&["a", "", "b"]));
    assert_eq!(split(b"a\r\n\r\nb\r\n", 9), whole(&["a", "", "b"]));
    assert_eq!(split(b"a\rb\n", 9), whole(&["a\rb"]));
    assert_eq!(split(b"\xef\xbb\xbfa\n\xef\xbb\xbfb", 9), whole(&["a", "\u{feff}b"]));
}

#[test]
fn lines_at_the_limit() {
    for end in ["", "\n", "\r\n"] {
        assert_eq!(split(format!("1234{end}").as_bytes(), 4), [Ok(b"1234".to_vec())], "{end:?}");
    }
    assert_eq!(split(b"12345", 4), [Err(5)]);
    assert_eq!(split(b"12345\nab\n", 4), [Err(5), Ok(b"ab".to_vec())]);
    let mut long = vec![b'x'; 100_000];
    long.extend(b"\nab");
    assert_eq!(split(&long, 4), [Err(100_000), Ok(b"ab".to_vec())]);
}

#[test]
fn jsonl_takes_text_and_id() {
    let fields = fields("body", Some("key"));
    let parse = |line: &str| jsonl::parse(line.as_bytes(), &fields);
    let ok = |id: &str, text: &str| (Some(id.to_owned()), Ok(text.to_owned()));
    assert_eq!(parse(r#"{"key": "a\"b", "x": [1, {"body": 2}], "body": "é\n"}"#), ok(r#""a\"b""#, "é\n"));
    assert_eq!(parse(r#" {"body":"t","key":18446744073709551615} "#), ok("18446744073709551615", "t"));
    assert_eq!(parse(r#"{"body":"old","key":1,"body":"new"}"#), ok("1", "new"));
    assert_eq!(parse(r#"{"body":"t","key":null}"#), ok("null", "t"));
}

#[test]
fn jsonl_names_what_is_wrong() {
    let fields = fields("text", Some("id"));
    let cases: [(&[u8], &str); 11] = [
        (b"", "empty line"),
        (b"{\"text\":\"a\",\"id\":1", "not a JSON object: EOF"),
        (b"{\"text\":\"a\",\"id\":1} x", "trailing characters at column 21"),
        (b"[1]", "expected an object"),
        (b"{\"id\":1}", "no field 'text' (--field"),
        (b"{\"id\":1,\"text\":null}", "field 'text' is null"),
        (b"{\"id\":1,\"text\":[\"a\"]}", "is an array"),
        (b"{\"text\":\"a\"}", "no field 'id' (--id-field"),
        (b"{\"text\":\"a\",\"id\":{}}", "id field 'id' is an object"),
        (b"{\"text\":\"a\",\"id\":123456789012345678901}", "cannot be kept exactly"),
        (b"{\"text\":\"\xff\",\"id\":1}", "not UTF-8 at byte 10"),
    ];
    for (line, expected) in cases {
        let (_, text) = jsonl::parse(line, &fields);
        let message = text.unwrap_err();
        assert!(message.contains(expected), "{message} does not contain {expected}");
    }
    // a bad text does not lose the row's id
    assert_eq!(jsonl::parse(b"{\"id\":7}", &fields).0.as_deref(), Some("7"));
}

#[test]
fn compressed_files_read_as_plain_ones() {
    let dir = tempfile::tempdir().unwrap();
    let plain: String = (0..5000).map(|i| format!("line {i} of the file\n")).collect();
    let (head, tail) = plain.split_at(40_000);
    // several members and frames, as `cat a.gz b.gz` makes; a skippable zstd frame between
    let gz = [gzip(head.as_bytes()), gzip(tail.as_bytes())].concat();
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let zst = [zstd(head.as_bytes()), skippable, zstd(tail.as_bytes())].concat();
    let files = [
        write(&dir, "a.txt", plain.as_bytes()),
        write(&dir, "a.txt.gz", &gz),
        write(&dir, "a.txt.zst", &zst),
    ];
    let read = |file: &PathBuf| {
        let inputs = Inputs::check(std::slice::from_ref(file), None, fields("text", None), 1 << 20).unwrap();
        read_all(inputs, 0, 10_000).unwrap()
    };
    let expected: Vec<&str> = plain.lines().collect();
    for file in &files {
        assert_eq!(texts(&read(file)), expected, "{}", file.display());
    }
}

#[test]
fn compressed_files_cut_short_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let plain: String = (0..50_000).map(|i| format!("line {i}\n")).collect();
    for (name, bytes) in [("a.gz", gzip(plain.as_bytes())), ("a.zst", zstd(plain.as_bytes()))] {
        for kept in [0, bytes.len() / 2, bytes.len() - 1] {
            let file = write(&dir, name, &bytes[..kept]);
            let inputs = Inputs::check(&[file], None, fields("text", None), 1 << 20).unwrap();
            let message = error(read_all(inputs, 0, 1000));
            assert!(message.contains(name), "{name} at {kept}: {message}");
        }
    }
}

#[test]
fn zstd_checksum_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = zstd(b"some text that is long enough to be worth a frame\n");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let inputs = Inputs::check(&[write(&dir, "a.zst", &bytes)], None, fields("text", None), 1 << 20).unwrap();
    assert!(error(read_all(inputs, 0, 1000)).contains("checksum"));
}

#[test]
fn skip_goes_over_files_and_keeps_line_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let files = [write(&dir, "a", b"a1\na2\n"), write(&dir, "b", b""), write(&dir, "c", b"c1\nc2\nc3")];
    let inputs = || Inputs::check(&files, None, fields("text", None), 1 << 20).unwrap();
    let all = read_all(inputs(), 0, 1000).unwrap();
    assert_eq!(texts(&all), ["a1", "a2", "c1", "c2", "c3"]);
    for skip in 0..=5 {
        assert_eq!(read_all(inputs(), skip as u64, 1000).unwrap(), all[skip..]);
    }
    assert_eq!(all[3].place.to_string(), format!("{}:2", files[2].display()));
    assert!(error(read_all(inputs(), 6, 1000)).contains("5 rows and the interrupted run had done 6"));
}

#[test]
fn blocks_grow_and_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(&dir, "a", "0123456789\n".repeat(100_000).as_bytes());
    let inputs = Inputs::check(&[file], None, fields("text", None), 1 << 20).unwrap();
    let rows: Vec<usize> =
        inputs.read(0, 64 * 1024).into_iter().filter_map(|m| m.unwrap()).map(|b| b.rows.len()).collect();
    assert!(rows[0] < 200, "{}", rows[0]);
    assert!(rows.windows(2).take(4).all(|w| w[1] > w[0]));
    assert!(rows.iter().all(|&n| n <= 64 * 1024 / 18 + 1));
    assert_eq!(rows.iter().sum::<usize>(), 100_000);
}

#[test]
fn check_refuses_what_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let check = |name: &str, format, fields: Fields| {
        error(Inputs::check(&[dir.path().join(name)], format, fields, 1 << 20))
    };
    assert!(check("", None, fields("text", None)).contains("is a directory"));
    assert!(check("absent", None, fields("text", None)).contains("No such file"));
    assert!(check("a.parquet", None, fields("text", None)).contains("JSON Lines"));
    assert!(check("a.csv.gz", None, fields("text", None)).contains("--input-format"));
    write(&dir, "a.txt", b"");
    assert!(check("a.txt", None, fields("text", Some("id"))).contains("--id-field is for JSON Lines"));
}

#[test]
fn format_is_by_name_unless_said() {
    let by_name = |name: &str, format| open::by_name(Path::new(name), format).unwrap();
    assert_eq!(by_name("d/a.JSONL.gz", None), (open::Compression::Gzip, Format::Jsonl));
    assert_eq!(by_name("a.ndjson", Some(Format::Lines)), (open::Compression::None, Format::Lines));
    assert_eq!(by_name("a.zst", None), (open::Compression::Zstd, Format::Lines));
    assert_eq!(by_name("a.csv", Some(Format::Lines)), (open::Compression::None, Format::Lines));
}
