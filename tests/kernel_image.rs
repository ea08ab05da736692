//! The committed image of the CUDA kernels, where there is no compiler: it is what the sources give, it has the kernels
//! that the host's tables name, and the tables choose well-formed launches for every shape.

use berthier::backend::cuda::persistent::{PERSISTENT_ENCODER, PERSISTENT_SHARED, PERSISTENT_THREADS};
use berthier::backend::cuda::{
    ATTENTION_TILES, AttentionTile, Element, EpilogueKind, GEMM_TILES, Gemm, GemmLaunch, Gpu, Manifest,
    Multiplier, ROW_SIZES, SPLITK_REDUCE, TIE, TileTable,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn kernels() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files of `folder` and below that the image depends on, by their path from `kernels/`, with `/`.
fn sources(folder: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "cu" || e == "cuh" || e == "flags") {
            let name = path.strip_prefix(kernels()).unwrap().to_str().unwrap().replace('\\', "/");
            found.insert(name, fs::read(&path).unwrap());
        }
    }
}

#[test]
fn the_image_is_made_of_these_sources() {
    let mut files = BTreeMap::new();
    sources(&kernels(), &mut files);
    assert!(files.len() > 10, "{:?}", files.keys());
    let mut digest = Sha256::new();
    for (name, content) in &files {
        digest.update(format!("{name}\n{}\n", content.len()));
        digest.update(content);
    }
    assert_eq!(
        hex(&digest.finalize()),
        Manifest::get().sources_sha256,
        "kernels/ has changed since kernels/prebuilt/ was made of it: run tools/build-kernels and commit what it writes"
    );
}

#[test]
fn the_image_is_the_one_that_the_manifest_describes() {
    let manifest = Manifest::get();
    let image = fs::read(kernels().join("prebuilt/berthier.fatbin")).unwrap();
    assert_eq!(image.len(), manifest.image_bytes);
    assert_eq!(hex(&Sha256::digest(&image)), manifest.image_sha256);
    assert!(image.len() <= 1_250_000, "{} bytes: at most 1.25 MB may be added to a binary", image.len());
    let embedded = berthier::backend::cuda::fatbin();
    if Path::new(env!("BERTHIER_FATBIN")).starts_with(kernels()) {
        assert_eq!(embedded, image);
    }
    assert_eq!(embedded[..4], 0xba55_ed50_u32.to_le_bytes(), "the magic number of a fatbin");
    let flags = fs::read_to_string(kernels().join("nvcc.flags")).unwrap();
    let flags: Vec<&str> = flags.lines().filter(|l| !l.is_empty() && !l.starts_with('#')).collect();
    assert_eq!(flags, manifest.flags);
}

/// Registers and shared memory of each kernel, on each architecture.
#[test]
fn every_kernel_fits_every_architecture_without_local_memory() {
    let manifest = Manifest::get();
    assert_eq!(manifest.architectures, ["sm_80", "sm_86", "sm_90a", "sm_100", "sm_120"]);
    for (name, kernel) in &manifest.kernels {
        assert!(name.ends_with("_f16") || name.ends_with("_bf16"), "{name}: for which element type?");
        for architecture in &manifest.architectures {
            let Some(usage) = kernel.on(architecture) else {
                let of_another = name.contains("_wgmma_") && architecture != "sm_90a";
                assert!(of_another, "{name} is not built for {architecture}");
                continue;
            };
            assert_eq!(usage.local, 0, "{name} on {architecture}: spills or local memory");
        }
    }
    for gpu in Gpu::KNOWN {
        for element in [Element::F16, Element::Bf16] {
            let table = TileTable::new(Gpu::known(gpu).unwrap(), element);
            let suffix = format!("_{element}");
            for name in manifest.kernels.keys().filter_map(|name| name.strip_suffix(&suffix)) {
                let here = !name.contains("_wgmma_") || table.gpu().compute_capability == (9, 0);
                assert_eq!(table.blocks_per_sm(name, None) > 0, here, "{name} on {gpu}");
            }
        }
    }
}

/// The numbers behind the name in every `NAME_TILE(kernel, …)` of a file.
fn table_of(file: &str, macro_name: &str) -> BTreeMap<String, Vec<usize>> {
    let text = fs::read_to_string(kernels().join(file)).unwrap();
    let mut found = BTreeMap::new();
    for line in text.lines().filter_map(|l| l.trim_start().strip_prefix(&format!("{macro_name}("))) {
        let mut columns = line.split(')').next().unwrap().split(',').map(str::trim);
        let name = columns.next().unwrap().to_owned();
        found.insert(name, columns.map(|c| c.parse().unwrap()).collect());
    }
    found
}

fn symbols(name: &str) -> [String; 2] {
    [format!("{name}_f16"), format!("{name}_bf16")]
}

#[test]
fn gemm_tiles_are_those_of_the_source_and_of_the_image() {
    let mut lines = table_of("gemm.cu", "GEMM_TILE");
    lines.extend(table_of("gemm_hopper.cu", "HOPPER_TILE"));
    lines.extend(table_of("gemm_few_rows.cu", "SWAPPED_TILE"));
    for tile in GEMM_TILES {
        let [m, n, k] = tile.block;
        let (columns, threads) = match tile.multiplier {
            Multiplier::Mma { warps, max_splits } => {
                (vec![m, n, k, tile.stages, warps[0], warps[1], max_splits], 32 * warps[0] * warps[1])
            }
            Multiplier::Wgmma { groups_of_tile, cluster } => {
                (vec![m, n, k, tile.stages, groups_of_tile, cluster], 3 * 128)
            }
            Multiplier::FewRows { max_splits } => (vec![m, n, k, tile.stages, max_splits], 128 + 32),
        };
        let line = lines.remove(tile.name).unwrap_or_else(|| panic!("{} is not in the sources", tile.name));
        assert_eq!(line, [&columns[..], &[tile.threads, tile.dynamic_shared]].concat(), "{}", tile.name);
        assert_eq!(tile.threads, threads, "{}", tile.name);
        for symbol in symbols(tile.name) {
            let kernel = &Manifest::get().kernels[&symbol];
            assert_eq!(
                (kernel.threads, kernel.dynamic_shared),
                (tile.threads, tile.dynamic_shared),
                "{symbol}"
            );
        }
    }
    assert!(lines.is_empty(), "tiles of the sources that the host does not know: {lines:?}");
    assert!(symbols(SPLITK_REDUCE).iter().all(|s| Manifest::get().kernels.contains_key(s)));
}

#[test]
fn the_persistent_encoder_is_that_of_the_source_and_of_the_image() {
    let lines = table_of("persistent_encoder.cu", "ENCODER_TILE");
    assert_eq!(lines[PERSISTENT_ENCODER], [PERSISTENT_THREADS, PERSISTENT_SHARED], "{lines:?}");
    assert_eq!(lines.keys().filter(|name| *name != "name").count(), 1, "{lines:?}");
    for symbol in symbols(PERSISTENT_ENCODER) {
        let kernel = &Manifest::get().kernels[&symbol];
        assert_eq!(
            (kernel.threads, kernel.dynamic_shared),
            (PERSISTENT_THREADS, PERSISTENT_SHARED),
            "{symbol}"
        );
    }
}

#[test]
fn attention_tiles_are_those_of_the_source_and_of_the_image() {
    let mut lines = table_of("attention.cu", "ATTENTION_TILE");
    lines.extend(table_of("attention_hopper.cu", "RING_TILE"));
    for tile in ATTENTION_TILES {
        let line = lines.remove(tile.name).unwrap_or_else(|| panic!("{} is not in the sources", tile.name));
        let (sizes, threads, dynamic_shared) = match line[..] {
            [head_dim, heads, tiles_of_block, query_rows, key_rows, _min_blocks, threads, dynamic_shared] => {
                ([head_dim, heads, tiles_of_block, query_rows, key_rows, 0], threads, dynamic_shared)
            }
            [head_dim, groups, pairs, threads, dynamic_shared] => {
                ([head_dim, 1, 1, 64 * groups, 64, pairs], threads, dynamic_shared)
            }
            _ => panic!("{}: {line:?}", tile.name),
        };
        let AttentionTile { head_dim, heads, tiles_of_block, query_rows, key_rows, pairs, .. } = tile;
        assert_eq!(sizes, [head_dim, heads, tiles_of_block, query_rows, key_rows, pairs], "{}", tile.name);
        assert_eq!((threads, dynamic_shared), (tile.threads, tile.dynamic_shared), "{}", tile.name);
        for symbol in symbols(tile.name) {
            let kernel = &Manifest::get().kernels[&symbol];
            assert_eq!(
                (kernel.threads, kernel.dynamic_shared),
                (tile.threads, tile.dynamic_shared),
                "{symbol}"
            );
        }
    }
    assert!(lines.is_empty(), "attention kernels that the host does not know: {lines:?}");
}

#[test]
fn row_kernels_are_those_of_the_image() {
    for op in ["embed_layernorm", "residual_layernorm"] {
        let found: Vec<_> = Manifest::get().kernels.keys().filter(|name| name.starts_with(op)).collect();
        assert_eq!(found.len(), 2 * ROW_SIZES.len(), "{found:?}");
        for (hidden, suffix) in ROW_SIZES {
            for symbol in symbols(&format!("{op}_{suffix}")) {
                let kernel = &Manifest::get().kernels[&symbol];
                assert_eq!(kernel.threads, if hidden > 1024 { 256 } else { 128 }, "{symbol}");
                assert_eq!(kernel.dynamic_shared, 0, "{symbol}");
            }
        }
    }
    for name in ["pool", "l2_normalize", "layernorm_from_stats", "rotary", "first_rows"] {
        assert!(symbols(name).iter().all(|s| Manifest::get().kernels.contains_key(s)), "{name}");
    }
}

/// What must hold of a launch, whatever the shape.
fn assert_well_formed(table: &TileTable, gemm: &Gemm, launch: &GemmLaunch) {
    let context = format!("{gemm:?} on {}: {launch:?}", table.gpu().name);
    let [bm, bn, bk] = launch.tile.block;
    let [blocks, splits] = launch.grid;
    let tiles = gemm.m.div_ceil(bm) * gemm.n.div_ceil(bn);
    let (expected, most_tflops) = match launch.tile.multiplier {
        Multiplier::Mma { .. } => (tiles, table.gpu().mma_tflops),
        Multiplier::Wgmma { cluster, .. } => {
            let clusters = gemm.m.div_ceil(cluster * bm) * gemm.n.div_ceil(bn);
            (cluster * clusters.min(table.gpu().sm_count / cluster), table.gpu().ceiling_tflops)
        }
        Multiplier::FewRows { .. } => (tiles, table.gpu().ceiling_tflops),
    };
    assert_eq!(blocks, expected, "{context}");
    assert!(tiles < 1 << 31 && splits < 1 << 16, "{context}");
    let pieces = gemm.k.div_ceil(bk);
    assert!(splits >= 1 && splits <= launch.tile.max_splits() && splits <= pieces, "{context}");
    assert!((splits - 1) * pieces.div_ceil(splits) < pieces, "a split has no work: {context}");
    let adds_parts = matches!(launch.tile.multiplier, Multiplier::FewRows { .. });
    assert_eq!(launch.reduce.is_some(), splits > 1 && !adds_parts, "{context}");
    if let Some(reduce) = launch.reduce {
        assert_eq!(reduce.partials, splits * gemm.m * gemm.n, "{context}");
        assert!(reduce.grid * reduce.threads >= gemm.m * gemm.n.div_ceil(8), "{context}");
    }
    if gemm.batch_invariant {
        assert_eq!(splits, 1, "{context}");
    }
    let estimate = launch.estimate;
    assert!(estimate.us.is_finite() && estimate.us > 0.0 && estimate.blocks_per_sm > 0, "{context}");
    // no more than the memory and the tensor cores have
    let seconds = estimate.us / 1e6;
    assert!(estimate.flops / seconds < 1.001e12 * most_tflops, "{context}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn prop_gemm_launches_are_well_formed(
        m in prop_oneof![1usize..200, 1usize..70_000],
        n in (1usize..1024).prop_map(|n| 8 * n),
        k in (1usize..1024).prop_map(|k| 8 * k),
        gpu in prop::sample::select(&Gpu::KNOWN[..]),
        activation: bool,
        residual: bool,
        weights_in_l2: bool,
        batch_invariant: bool,
    ) {
        let table = TileTable::new(Gpu::known(gpu).unwrap(), Element::F16);
        let epilogue = EpilogueKind { activation, residual, ..EpilogueKind::default() };
        let gemm = Gemm { m, n, k, epilogue, weights_in_l2, batch_invariant };
        let launch = table.gemm(&gemm);
        assert_well_formed(&table, &gemm, &launch);
        for other in table.gemm_candidates(&gemm) {
            assert_well_formed(&table, &gemm, &other);
            prop_assert!(launch.estimate.us <= TIE * other.estimate.us);
        }
        // split-K may only gain
        let invariant = table.gemm(&Gemm { batch_invariant: true, ..gemm });
        prop_assert!(launch.estimate.us <= TIE * invariant.estimate.us);
    }
}

/// What the driver says of clusters decides: none of a size that it has no room for, and no more than it has room for.
#[test]
fn clusters_are_those_that_fit() {
    let gemm = |m, n, k| Gemm {
        m,
        n,
        k,
        epilogue: EpilogueKind::default(),
        weights_in_l2: false,
        batch_invariant: false,
    };
    let shapes = [gemm(16, 1024, 4096), gemm(64, 384, 1536), gemm(16_896, 2304, 768)];
    let mut table = TileTable::new(Gpu::known("h200").unwrap(), Element::F16);
    let cluster = |launch: &GemmLaunch| match launch.tile.multiplier {
        Multiplier::Mma { .. } => 1,
        Multiplier::Wgmma { cluster, .. } => cluster,
        Multiplier::FewRows { .. } => launch.grid[1],
    };
    for shape in &shapes {
        assert!(cluster(&table.gemm(shape)) > 1, "{:?}", table.gemm(shape));
    }
    table.ask_clusters(|_, size| if size <= 2 { 50 } else { 0 });
    for shape in &shapes {
        for launch in table.gemm_candidates(shape) {
            assert!(cluster(&launch) <= 2, "{launch:?}");
            let stays = matches!(launch.tile.multiplier, Multiplier::Wgmma { cluster: 2, .. });
            assert!(!stays || launch.grid[0] <= 100, "{launch:?}");
        }
    }
    let stays = |launch: &GemmLaunch| launch.tile.name == "gemm_wgmma_128x256x64_s3_c2";
    assert_eq!(table.gemm_candidates(&shapes[2]).find(stays).unwrap().grid[0], 100);
    table.ask_clusters(|_, _| 0);
    for shape in &shapes {
        assert!(table.gemm_candidates(shape).all(|launch| cluster(&launch) == 1));
    }
    assert_eq!(table.gemm(&shapes[2]).tile.name, "gemm_wgmma_128x128x64_s4");
}

/// The model shapes, at every number of rows: more rows never take less time by more than a tile's worth.
#[test]
fn gemm_time_rises_with_the_rows() {
    for gpu in ["a100", "h200", "l4"] {
        let table = TileTable::new(Gpu::known(gpu).unwrap(), Element::F16);
        for (h, inner) in [(384, 1536), (768, 3072), (1024, 4096)] {
            for (n, k) in [(3 * h, h), (h, h), (inner, h), (h, inner)] {
                let us = |m| {
                    let epilogue = EpilogueKind::default();
                    let gemm = Gemm { m, n, k, epilogue, weights_in_l2: false, batch_invariant: false };
                    table.gemm(&gemm).estimate.us
                };
                let times: Vec<f64> = (1..=64).chain((128..=8192).step_by(64)).map(us).collect();
                for pair in times.windows(2) {
                    assert!(TIE * pair[1] >= pair[0], "{gpu} n {n} k {k}: {pair:?}");
                }
            }
        }
    }
}

/// A tile that no encoder takes on any GPU would only make the image larger.
#[test]
fn every_gemm_tile_is_taken_by_some_encoder() {
    let mut taken = BTreeMap::new();
    for gpu in Gpu::KNOWN {
        let table = TileTable::new(Gpu::known(gpu).unwrap(), Element::F16);
        for (h, inner) in [(384, 1536), (768, 3072), (1024, 4096)] {
            for (n, k) in [(3 * h, h), (h, h), (inner, h), (h, inner)] {
                // the last: row tiles of 128 that pairs of them do not divide, at the end of a wave
                for m in (4..15).map(|power| 1 << power).chain([11 * 128]) {
                    let epilogue = EpilogueKind::default();
                    let gemm = Gemm { m, n, k, epilogue, weights_in_l2: false, batch_invariant: false };
                    let launch = table.gemm(&gemm);
                    *taken.entry(launch.tile.name).or_insert(0) += 1;
                    let [bm, bn, _] = launch.tile.block;
                    let name = launch.tile.name;
                    assert!(bm / 2 <= m, "{gpu}: {name} for {m} rows");
                    if ["a100", "h200"].contains(&gpu) && m >= 8192 {
                        assert!(bm * bn >= 64 * 128, "{gpu}: {name} for {m} rows");
                    }
                }
            }
        }
    }
    assert_eq!(taken.len(), GEMM_TILES.len(), "{taken:?}");
}
