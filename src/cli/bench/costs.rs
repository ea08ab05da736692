//! The cost sheet: every CUDA kernel of an encoder on a GPU, with bytes, FLOPs, blocks, waves and a predicted time.
//!
//! Nothing runs: the launches are those that the tile tables choose, the times are of a model of the hardware.

use super::BenchError;
use super::args::CostsArgs;
use berthier::backend::cuda::costs::{Choices, EncoderShape, Network, Step, network, whole_waves};
use berthier::backend::cuda::persistent::{
    BARRIER_US, CLUSTER_BARRIER_US, Clusters, PersistentEstimate, estimate, limits,
};
use berthier::backend::cuda::{Element, Gpu, LAUNCH_US, TileTable};
use berthier::model::ModelDesc;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::Write;

/// The encoder as it is launched unless told otherwise.
const USUAL: Choices = Choices { batch_invariant: false, separate_layernorms: false };
const SEPARATE: Choices = Choices { separate_layernorms: true, ..USUAL };
const INVARIANT: Choices = Choices { batch_invariant: true, ..USUAL };

/// Sequences of the small batches that one launch is predicted for.
const SMALL_BATCHES: [usize; 2] = [1, 8];

/// A small batch in one launch, beside its kernels one by one.
struct OneLaunch {
    batch: usize,
    seqlen: usize,
    on_grid: PersistentEstimate,
    in_clusters: Option<PersistentEstimate>,
    by_kernels: Network,
}

/// One batch on one GPU, in each of the ways that may be chosen.
struct Row {
    usual: Network,
    separate: Network,
    invariant: Network,
}

/// Prints the sheet, as a table or as JSON. `model`: the name and description of a model to take the shape of.
///
/// # Errors
/// [`BenchError`].
pub(crate) fn run(
    args: &CostsArgs,
    model: Option<(&str, &ModelDesc)>,
    out: &mut dyn Write,
) -> Result<(), BenchError> {
    let shapes: Vec<EncoderShape> = match model {
        Some((name, desc)) => vec![EncoderShape::of(name, desc)],
        None if args.shape.is_empty() => {
            EncoderShape::KNOWN.iter().filter_map(|s| EncoderShape::known(s)).collect()
        }
        None => args.shape.iter().filter_map(|s| EncoderShape::known(s)).collect(),
    };
    let lengths: Vec<usize> = args.lengths.iter().map(|n| n.get()).collect();
    let mut text = format!(
        "Predictions, not measurements: f16, each launch {LAUNCH_US} µs after the one before, from the tile tables of \
         berthier {}.\nblocks/SM: as many fit at once; waves: blocks / (SMs × blocks/SM); share: of the GPU's ceiling \
         for dense products.\n",
        env!("CARGO_PKG_VERSION")
    );
    let mut gpus = Vec::new();
    for gpu in args.gpu.iter().filter_map(|name| Gpu::known(name)) {
        let table = TileTable::new(gpu, Element::F16);
        describe(&mut text, table.gpu());
        let (mut networks, mut in_one_launch) = (Vec::new(), Vec::new());
        for shape in &shapes {
            let rows = rows(&table, shape, &lengths)?;
            for row in &rows {
                kernels(&mut text, shape, row, table.gpu());
                networks.extend(
                    [(&row.usual, USUAL), (&row.separate, SEPARATE), (&row.invariant, INVARIANT)]
                        .map(|(network, choices)| network_json(shape, network, choices, table.gpu())),
                );
            }
            summary(&mut text, shape, &rows, table.gpu());
            let small = small_batches(&table, shape, &lengths);
            one_launch(&mut text, &table, shape, &small);
            in_one_launch.extend(small.iter().map(|small| one_launch_json(shape, small)));
        }
        gpus.push(json!({
            "gpu": gpu_json(table.gpu()), "networks": networks, "in_one_launch": in_one_launch,
        }));
    }
    if args.json {
        let json = json!({
            "berthier": env!("CARGO_PKG_VERSION"), "predicted": true, "element": "f16", "launch_us": LAUNCH_US,
            "gpus": gpus,
        });
        writeln!(out, "{json:#}")?;
    } else {
        write!(out, "{text}")?;
    }
    out.flush()?;
    Ok(())
}

/// For each length: the batch that fills its waves, and one sequence.
fn rows(table: &TileTable, shape: &EncoderShape, lengths: &[usize]) -> Result<Vec<Row>, BenchError> {
    let mut rows = Vec::new();
    for &seqlen in lengths {
        let waves = whole_waves(table, shape, seqlen, USUAL).map(|network| network.batch);
        for batch in waves.into_iter().chain([1]) {
            let with = |choices| {
                network(table, shape, batch, seqlen, choices).ok_or_else(|| {
                    BenchError::Unfit(format!(
                        "{}: no kernel for a hidden size of {} with heads of {}: head sizes are 32, 64 and 128",
                        shape.name,
                        shape.hidden_size,
                        shape.head_dim()
                    ))
                })
            };
            rows.push(Row { usual: with(USUAL)?, separate: with(SEPARATE)?, invariant: with(INVARIANT)? });
        }
    }
    Ok(rows)
}

// a String takes every write

fn describe(text: &mut String, gpu: &Gpu) {
    let _ = writeln!(
        text,
        "\n== {}: {} SMs at {:.2} GHz, ceiling {:.0} TFLOP/s, mma.sync {:.0}, memory {:.1} TB/s, L2 {:.1} TB/s and {} MiB",
        gpu.name,
        gpu.sm_count,
        gpu.clock_ghz,
        gpu.ceiling_tflops,
        gpu.mma_tflops,
        gpu.memory_gb_per_s / 1e3,
        gpu.l2_gb_per_s / 1e3,
        gpu.l2_bytes >> 20
    );
}

fn kernels(text: &mut String, shape: &EncoderShape, row: &Row, gpu: &Gpu) {
    let network = &row.usual;
    let _ = writeln!(
        text,
        "\n{} on {}, {} × {} tokens\n{:<11} {:<26} {:>3} {:>7} {:>9} {:>7} {:>9} {:>8} {:>8} {:>7}  bound by",
        shape.name,
        gpu.name,
        network.batch,
        network.seqlen,
        "kernel",
        "",
        "×",
        "blocks",
        "blocks/SM",
        "waves",
        "MFLOP",
        "MB",
        "µs",
        "TFLOP/s"
    );
    for Step { role, kernel, times, estimate: e, .. } in &network.steps {
        let _ = writeln!(
            text,
            "{role:<11} {kernel:<26} {times:>3} {:>7} {:>9} {:>7.2} {:>9.1} {:>8.2} {:>8.2} {:>7.0}  {}",
            e.blocks,
            e.blocks_per_sm,
            e.waves,
            e.flops / 1e6,
            e.bytes / 1e6,
            e.us,
            e.flops / e.us / 1e6,
            e.bound
        );
    }
    let _ = writeln!(
        text,
        "{:<11} {:<26} {:>3} {:>45.2} µs\n{:<11} {:<26} {:>3} {:>45.2} µs  {:.3} M tokens/s, {:.0} % of the ceiling",
        "layer",
        "",
        "",
        network.layer_us(),
        "network",
        "",
        network.launches(),
        network.us(),
        network.tokens_per_s() / 1e6,
        100.0 * network.share_of_ceiling(gpu)
    );
}

fn summary(text: &mut String, shape: &EncoderShape, rows: &[Row], gpu: &Gpu) {
    let _ = writeln!(
        text,
        "\n{} on {}, predicted\n{:>7} {:>7} {:>9} {:>10} {:>9} {:>7} {:>15} {:>18}",
        shape.name,
        gpu.name,
        "length",
        "batch",
        "layer, µs",
        "network, µs",
        "M tok/s",
        "share",
        "norms apart",
        "batch-invariant"
    );
    for Row { usual, separate, invariant } in rows {
        let _ = writeln!(
            text,
            "{:>7} {:>7} {:>9.1} {:>11.1} {:>9.3} {:>5.0} % {:>11.2}× µs {:>14.2}× µs",
            usual.seqlen,
            usual.batch,
            usual.layer_us(),
            usual.us(),
            usual.tokens_per_s() / 1e6,
            100.0 * usual.share_of_ceiling(gpu),
            separate.us() / usual.us(),
            invariant.us() / usual.us()
        );
    }
}

/// The small batches that the persistent kernel takes.
fn small_batches(table: &TileTable, shape: &EncoderShape, lengths: &[usize]) -> Vec<OneLaunch> {
    let sizes = lengths.iter().flat_map(|&seqlen| SMALL_BATCHES.map(|batch| (batch, seqlen)));
    let of = |(batch, seqlen)| {
        let on_grid = estimate(table, shape, batch, seqlen, Clusters::NONE)?;
        let clusters = Clusters::assumed(table);
        let in_clusters = estimate(table, shape, batch, seqlen, clusters).filter(|_| clusters.most > 0);
        let by_kernels = network(table, shape, batch, seqlen, USUAL)?;
        Some(OneLaunch { batch, seqlen, on_grid, in_clusters, by_kernels })
    };
    sizes.filter_map(of).collect()
}

fn one_launch(text: &mut String, table: &TileTable, shape: &EncoderShape, small: &[OneLaunch]) {
    let Some(first) = small.first() else { return };
    let clusters = Clusters::assumed(table);
    let limits = limits(table, shape, clusters, false);
    let _ = writeln!(
        text,
        "\n{} on {} in one launch (persistent_encoder), predicted: {} barriers, of {} blocks of the grid an assumed {BARRIER_US} µs each, \
         of {} clusters of {} blocks {CLUSTER_BARRIER_US} µs; chosen up to {} tokens on the grid, {} a cluster\n{:>7} {:>7} {:>9} {:>12} \
         {:>18} {:>15} {:>15} {:>12} {:>16}",
        shape.name,
        table.gpu().name,
        first.on_grid.barriers,
        first.on_grid.blocks,
        clusters.most,
        clusters.blocks,
        limits.grid,
        limits.cluster,
        "length",
        "batch",
        "grid, µs",
        "barriers, µs",
        "wait for weights",
        "activations, MB",
        "in clusters, µs",
        "barriers, µs",
        "by kernels, µs"
    );
    for OneLaunch { batch, seqlen, on_grid: e, in_clusters, by_kernels } in small {
        let of_clusters = |value: fn(&PersistentEstimate) -> f64| match in_clusters {
            Some(e) => format!("{:.1}", value(e)),
            None => "–".into(),
        };
        let _ = writeln!(
            text,
            "{seqlen:>7} {batch:>7} {:>9.1} {:>11.1} {:>14.1} {:>18.1} {:>15} {:>12} {:>15.1}",
            e.us,
            e.barriers_us,
            e.weights_us,
            e.activation_bytes / 1e6,
            of_clusters(|e| e.us),
            of_clusters(|e| e.barriers_us),
            by_kernels.us()
        );
    }
}

fn one_launch_json(shape: &EncoderShape, small: &OneLaunch) -> Value {
    let OneLaunch { batch, seqlen, on_grid, in_clusters, by_kernels } = small;
    let of = |e: &PersistentEstimate| {
        json!({
            "us": e.us, "blocks": e.blocks, "clusters": e.clusters, "barriers": e.barriers, "barriers_us": e.barriers_us,
            "weights_us": e.weights_us, "weight_bytes": e.weight_bytes, "activation_bytes": e.activation_bytes,
        })
    };
    json!({
        "shape": shape.name, "batch": batch, "seqlen": seqlen, "on_grid": of(on_grid),
        "in_clusters": in_clusters.as_ref().map(of), "barrier_us": BARRIER_US, "cluster_barrier_us": CLUSTER_BARRIER_US,
        "by_kernels_us": by_kernels.us(),
    })
}

fn gpu_json(gpu: &Gpu) -> Value {
    json!({
        "name": gpu.name, "compute_capability": [gpu.compute_capability.0, gpu.compute_capability.1],
        "sm_count": gpu.sm_count, "clock_ghz": gpu.clock_ghz, "ceiling_tflops": gpu.ceiling_tflops,
        "mma_tflops": gpu.mma_tflops, "memory_gb_per_s": gpu.memory_gb_per_s, "l2_gb_per_s": gpu.l2_gb_per_s,
        "l2_bytes": gpu.l2_bytes,
    })
}

fn network_json(shape: &EncoderShape, network: &Network, choices: Choices, gpu: &Gpu) -> Value {
    let kernels: Vec<Value> = network
        .steps
        .iter()
        .map(|Step { role, kernel, times, launches, estimate: e, .. }| {
            json!({
                "role": role, "kernel": kernel, "times": times, "launches": launches, "flops": e.flops, "bytes": e.bytes,
                "blocks": e.blocks, "blocks_per_sm": e.blocks_per_sm, "waves": e.waves, "us": e.us,
                "bound": e.bound.to_string(),
            })
        })
        .collect();
    json!({
        "shape": shape.name, "batch": network.batch, "seqlen": network.seqlen,
        "total_tokens": network.total_tokens(), "folded_layernorms": choices.folds(shape),
        "batch_invariant": choices.batch_invariant, "kernels": kernels, "layer_us": network.layer_us(),
        "us": network.us(), "launches": network.launches(), "tokens_per_s": network.tokens_per_s(),
        "flops": network.flops, "share_of_ceiling": network.share_of_ceiling(gpu),
    })
}
