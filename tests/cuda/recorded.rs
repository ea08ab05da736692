//! What `tools/gpu-check` records of a bench: what it writes of the logs is what the tables read, and it is taken.

use berthier::backend::cuda::costs::EncoderShape;
use berthier::backend::cuda::persistent::{Clusters, PersistentLimits, limits};
use berthier::backend::cuda::{Element, EpilogueKind, Gemm, Gpu, RecordedTables, TileTable};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// As `bench.cpp` writes them, of a GPU and times that there are not: the slowest by prediction are the quickest.
const KERNELS: &str = r#"{"device": "Invented 9", "architecture": 90, "driver": 13000, "multiprocessors": 132, "l2_bytes": 52428800, "clock_khz": 1830000}
{"kernel": "gemm_wgmma_16x64x64_s8_f16", "encoder": "base", "op": "up", "m": 16, "n": 3072, "k": 768, "splits": 1, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [4, 5, 6], "hot_us": [3, 4, 5]}
{"kernel": "gemm_16x64x64_s4_f16", "encoder": "base", "op": "up", "m": 16, "n": 3072, "k": 768, "splits": 4, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [1, 2, 3], "hot_us": [5, 6, 7]}
{"kernel": "gemm_256x128x32_s4_f16", "encoder": "base", "op": "up", "m": 64, "n": 3072, "k": 768, "splits": 1, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [1, 2, 3], "hot_us": [1, 2, 3]}
{"kernel": "attention_short_d64_f16", "encoder": "base", "op": "attention", "tokens": 16, "length": 16, "heads": 12, "head_dim": 64, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [1, 2, 3], "hot_us": [1, 2, 3]}
{"kernel": "gemm_128x256x32_s4_f16", "encoder": "base", "op": "up", "m": 64, "n": 3072, "k": 768, "splits": 1, "error": "out of time"}
"#;

/// As `rivals.py` writes them: one encoder's times the three ways, at these tokens and texts.
const SIZES: [[usize; 2]; 9] =
    [[16, 1], [16, 4], [16, 8], [32, 1], [64, 1], [64, 2], [128, 1], [128, 2], [128, 8]];

fn latency(sizes: [usize; 4], way: &str, us: [f64; SIZES.len()]) -> String {
    let points = SIZES.iter().zip(us).flat_map(|([tokens, texts], us)| {
        let point = |more: String| format!(r#"{{"tokens": {tokens}, "texts": {texts}{more}}}"#);
        let launched = if way == "never" || tokens * texts > 256 { "graph" } else { way };
        let of_gpu =
            format!(r#", "gpu_us": {{"p50": {us}, "p99": null}}, "gpu_launches": {{"{launched}": 9}}"#);
        // from text the GPU's clock is not read
        [point(String::new()), point(of_gpu)]
    });
    let points: Vec<String> = points.collect();
    let said = format!(r#"{{"device": "Invented 9, fp16", "points": [{}]}}"#, points.join(", "));
    format!(
        "{{\"berthier\": \"latency\", \"sizes\": {sizes:?}, \"one_launch\": \"{way}\", \"said\": {said}}}\n"
    )
}

fn gpu(name: &str) -> Gpu {
    Gpu { name: name.into(), ..Gpu::known("h200").unwrap() }
}

fn with(name: &str, tables: RecordedTables<'_>) -> TileTable {
    TileTable::with_records(gpu(name), Element::Bf16, tables).unwrap_or_else(|what| panic!("{what}"))
}

fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("recorded").join(name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What `recorded.py` prints; none without Python.
fn recorded_py(arguments: &[&Path]) -> Option<String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu-check/recorded.py");
    let Ok(output) = Command::new("python3").arg("-B").arg(script).args(arguments).output() else {
        println!("SKIP: no python3 to make tables of a bench's logs");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Its rows of a log.
pub(crate) fn rows_of(kind: &str, name: &str, log: &str) -> Option<String> {
    let path = scratch(name).join("bench.log");
    fs::write(&path, log).unwrap();
    recorded_py(&[Path::new(kind), &path])
}

#[test]
fn recorded_tiles_are_taken_where_they_were_measured() {
    let Some(records) = rows_of("tiles", "tiles", KERNELS) else { return };
    let table = |name: &str| with(name, RecordedTables { tiles: &records, ..RecordedTables::default() });
    let predicted = with("Invented 9", RecordedTables::default());
    let gemm = |m, weights_in_l2, batch_invariant| Gemm {
        m,
        n: 3072,
        k: 768,
        epilogue: EpilogueKind { activation: true, ..EpilogueKind::default() },
        weights_in_l2,
        batch_invariant,
    };
    let taken = |table: &TileTable, gemm: Gemm| {
        let launch = table.gemm(&gemm);
        (launch.tile.name, launch.grid[1])
    };
    let recorded = table("Invented 9");
    for (rows, in_l2, expected) in [
        (1..=16, false, ("gemm_16x64x64_s4", 4)),
        (1..=16, true, ("gemm_wgmma_16x64x64_s8", 1)),
        (33..=64, false, ("gemm_256x128x32_s4", 1)),
        (33..=64, true, ("gemm_256x128x32_s4", 1)),
    ] {
        for m in rows {
            assert_eq!(taken(&recorded, gemm(m, in_l2, false)), expected, "{m} rows\n{records}");
            let other = taken(&table("H200"), gemm(m, in_l2, false));
            assert_eq!(other, taken(&predicted, gemm(m, in_l2, false)), "of another GPU");
        }
    }
    // what was not measured, and what bits that may not depend on the batch do not allow
    for gemm in [gemm(17, false, false), gemm(65, false, false), gemm(16, false, true), gemm(64, false, true)]
    {
        assert_eq!(taken(&recorded, gemm), taken(&predicted, gemm), "{gemm:?}");
    }
    assert_ne!(
        taken(&predicted, gemm(64, false, false)),
        ("gemm_256x128x32_s4", 1),
        "the test shows nothing"
    );
}

/// Up to the last size that was quicker without a slower one before it.
#[test]
fn recorded_limits_of_one_launch_are_taken_where_they_were_measured() {
    let [minilm, base, large] = [[384, 1536, 6, 12], [768, 3072, 12, 12], [1024, 4096, 24, 16]];
    let [small, refused, untold] = [[256, 1024, 4, 4], [512, 2048, 4, 8], [512, 2048, 8, 8]];
    let log = [
        KERNELS.lines().next().unwrap(),
        "\n[bench] latency, 99 s left\n",
        // quicker on the grid in all that it takes, but for some shorter texts; in clusters up to 64 tokens, with 128 only than
        // kernels one by one; more texts than are looked at are slower
        &latency(minilm, "never", [80.0, 90.0, 91.0, 80.0, 80.0, 90.0, 95.0, 99.0, 140.0]),
        &latency(minilm, "grid", [60.0, 98.0, 99.0, 61.0, 62.0, 99.0, 70.0, 98.0, 139.0]),
        &latency(minilm, "clusters", [40.0, 45.0, 95.0, 45.0, 61.9, 89.0, 75.0, 45.0, 139.0]),
        // quicker again beyond 64 tokens, which does not count; no clusters on the GPU
        &latency(base, "never", [170.0, 240.0, 241.0, 180.0, 200.0, 240.0, 250.0, 340.0, 700.0]),
        &latency(base, "grid", [140.0, 340.0, 341.0, 160.0, 200.0, 340.0, 249.0, 339.0, 700.0]),
        "{\"sizes\": [768, 3072, 12, 12], \"one_launch\": \"clusters\", \"said\": {\"points\": []}}\n",
        // a cluster is quicker with 16 tokens, but not four of them side by side
        &latency(small, "never", [50.0; SIZES.len()]),
        &latency(small, "grid", [60.0; SIZES.len()]),
        &latency(small, "clusters", [40.0, 51.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0, 40.0]),
        // of another one the driver refused a launch, or it is not told how it was launched
        &latency(refused, "never", [170.0; SIZES.len()]),
        &latency(refused, "grid", [140.0; SIZES.len()]).replacen(r#"{"grid""#, r#"{"graph": 5, "grid""#, 1),
        &latency(refused, "clusters", [150.0; SIZES.len()]),
        &latency(untold, "never", [170.0; SIZES.len()]),
        &latency(untold, "grid", [140.0; SIZES.len()]),
        &latency(untold, "clusters", [150.0; SIZES.len()])
            .replace(r#", "gpu_launches": {"clusters": 9}"#, ""),
        // one way is missing, and the last line is torn
        &latency(large, "never", [170.0; SIZES.len()]),
        &latency(large, "grid", [140.0; SIZES.len()]),
        "{\"sizes\": [1024, 4096, 24, 16], \"one_launch\": \"clus",
    ]
    .concat();
    let Some(records) = rows_of("one_launch", "one-launch", &log) else { return };
    let expected = ["256\t1024\t4\t4\t0\t0", "384\t1536\t6\t12\t256\t64", "768\t3072\t12\t12\t32\t0"];
    assert_eq!(records.lines().collect::<Vec<_>>(), expected.map(|row| format!("Invented 9\t{row}")));
    let of = |name: &str, shape: &str| {
        let table = with(name, RecordedTables { one_launch: &records, ..RecordedTables::default() });
        limits(&table, &EncoderShape::known(shape).unwrap(), Clusters::assumed(&table), false)
    };
    let recorded = |grid, cluster| PersistentLimits { grid, cluster, recorded: true };
    assert_eq!(of("Invented 9", "minilm"), recorded(256, 64));
    assert_eq!(of("Invented 9", "base"), recorded(32, 0));
    for (name, shape) in [("Invented 9", "large"), ("H200", "minilm"), ("H200", "base")] {
        assert!(!of(name, shape).recorded, "{shape} of {name} was not measured");
    }
}

#[test]
fn recorded_tables_reject_other_lines() {
    let of =
        |tables: RecordedTables<'_>| TileTable::with_records(gpu("H200"), Element::F16, tables).map(|_| ());
    let of_tiles = |tiles: &str| of(RecordedTables { tiles, ..RecordedTables::default() });
    let row = "H200\t3072\t768\tl2\t1\t16\tgemm_16x64x64_s4\t4";
    assert_eq!(of_tiles(row), Ok(()));
    for wrong in
        [row.replace("l2", "L3"), row.replace("_s4", "_s9"), row.replace("\t4", ""), row.replace("3072", "n")]
    {
        assert!(of_tiles(&wrong).unwrap_err().contains(&wrong), "{wrong}");
    }
    let of_one_launch = |one_launch: &str| of(RecordedTables { one_launch, ..RecordedTables::default() });
    let row = "H200\t384\t1536\t6\t12\t128\t64";
    assert_eq!(of_one_launch(row), Ok(()));
    for wrong in [
        row.replace("\t64", ""),
        row.replace("384", "-384"),
        // more than the kernel takes
        row.replace("128", "272"),
        row.replace("64", "272"),
        format!("{row}\t1"),
        row.replace("H200", "L4").replace("12", "twelve"),
    ] {
        let message = of_one_launch(&wrong).unwrap_err();
        assert!(message.contains(&wrong) && message.contains("one_launch.tsv"), "{message}");
    }
}

/// In place of what was there of the same GPU, and of the tables that the report has.
#[test]
fn reports_are_recorded_in_the_tables_that_ship() {
    let (report, tables) = (scratch("report"), scratch("tables"));
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/backend/cuda");
    for name in ["tiles.tsv", "one_launch.tsv"] {
        fs::copy(shipped.join(name), tables.join(name)).unwrap();
        let _ = fs::remove_file(report.join(name));
    }
    let read = |name: &str| fs::read_to_string(tables.join(name)).unwrap();
    let comments = |text: &str| text.lines().filter(|line| line.starts_with('#')).count();
    let before = read("one_launch.tsv");
    let tile = "Invented 9\t3072\t768\tl2\t1\t16\tgemm_16x64x64_s4\t4";
    for (one_launch, expected) in [
        ("Invented 9\t384\t1536\t6\t12\t128\t64\nInvented 9\t768\t3072\t12\t12\t32\t0\n", 2),
        ("Invented 8\t384\t1536\t6\t12\t64\t0\n", 3),
        ("Invented 9\t384\t1536\t6\t12\t256\t16\n", 2),
    ] {
        fs::write(report.join("one_launch.tsv"), one_launch).unwrap();
        if recorded_py(&[Path::new("record"), &report, &tables]).is_none() {
            return;
        }
        let after = read("one_launch.tsv");
        assert!(one_launch.lines().all(|row| after.lines().any(|line| line == row)), "{after}");
        let invented = after.lines().filter(|line| line.starts_with("Invented")).count();
        assert_eq!((invented, comments(&after)), (expected, comments(&before)), "{after}");
        assert!(!after.contains("No GPU has been measured"), "{after}");
        fs::write(report.join("tiles.tsv"), format!("{tile}\n")).unwrap();
    }
    assert!(read("tiles.tsv").lines().filter(|line| *line == tile).count() == 1);
    let both = (read("tiles.tsv"), read("one_launch.tsv"));
    with("Invented 9", RecordedTables { tiles: &both.0, one_launch: &both.1 });
}
