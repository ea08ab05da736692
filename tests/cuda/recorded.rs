//! Tiles recorded by `tools/gpu-check`: what it writes of a bench's log is what the tables read, and it is taken.

use berthier::backend::cuda::{Element, EpilogueKind, Gemm, Gpu, TileTable};
use std::path::Path;
use std::process::Command;

/// As `bench.cpp` writes them, of a GPU and times that there are not: the slowest by prediction are the quickest.
const LOG: &str = r#"{"device": "Invented 9", "architecture": 90, "driver": 13000, "multiprocessors": 132, "l2_bytes": 52428800, "clock_khz": 1830000}
{"kernel": "gemm_wgmma_16x64x64_s8_f16", "encoder": "base", "op": "up", "m": 16, "n": 3072, "k": 768, "splits": 1, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [4, 5, 6], "hot_us": [3, 4, 5]}
{"kernel": "gemm_16x64x64_s4_f16", "encoder": "base", "op": "up", "m": 16, "n": 3072, "k": 768, "splits": 4, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [1, 2, 3], "hot_us": [5, 6, 7]}
{"kernel": "gemm_256x128x32_s4_f16", "encoder": "base", "op": "up", "m": 64, "n": 3072, "k": 768, "splits": 1, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [1, 2, 3], "hot_us": [1, 2, 3]}
{"kernel": "attention_short_d64_f16", "encoder": "base", "op": "attention", "tokens": 16, "length": 16, "heads": 12, "head_dim": 64, "bytes": 1, "flops": 1, "sets": 2, "cold_us": [1, 2, 3], "hot_us": [1, 2, 3]}
{"kernel": "gemm_128x256x32_s4_f16", "encoder": "base", "op": "up", "m": 64, "n": 3072, "k": 768, "splits": 1, "error": "out of time"}
"#;

fn gpu(name: &str) -> Gpu {
    Gpu { name: name.into(), ..Gpu::known("h200").unwrap() }
}

#[test]
fn recorded_tiles_are_taken_where_they_were_measured() {
    let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench.log");
    std::fs::write(&log, LOG).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/gpu-check/tiles.py");
    let Ok(output) = Command::new("python3").arg(script).arg(log).output() else {
        println!("SKIP: no python3 to make a table of a bench's log");
        return;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let records = String::from_utf8(output.stdout).unwrap();
    let table = |name: &str| TileTable::with_records(gpu(name), Element::Bf16, &records).unwrap();
    let predicted = TileTable::with_records(gpu("Invented 9"), Element::Bf16, "").unwrap();
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

#[test]
fn a_table_of_tiles_rejects_other_lines() {
    let row = "H200\t3072\t768\tl2\t1\t16\tgemm_16x64x64_s4\t4";
    let of = |text: &str| TileTable::with_records(gpu("H200"), Element::F16, text).map(|_| ());
    assert_eq!(of(row), Ok(()));
    for wrong in
        [row.replace("l2", "L3"), row.replace("_s4", "_s9"), row.replace("\t4", ""), row.replace("3072", "n")]
    {
        assert!(of(&wrong).unwrap_err().contains(&wrong), "{wrong}");
    }
}
