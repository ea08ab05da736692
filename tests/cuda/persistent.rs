//! Small batches in one launch (`kernels/persistent_encoder.cu`): which batches go that way, that their vectors are right, and what
//! happens where they cannot.

use crate::models::{batch, desc, matches_reference, run, sequences};
use crate::stand_in::on_stand_in;
use berthier::backend::{Backend, BackendOptions, Device, PersistentKernel, Precision, open};
use berthier::batch::PackedBatch;
use berthier::model::{AttentionBias, FeedForward, ModelDesc, Pooling, Positions, Weights};
use berthier::{Error, Threads};
use std::num::NonZeroUsize;
use std::time::Duration;

fn options(persistent_kernel: PersistentKernel) -> BackendOptions {
    let threads = Threads::new(NonZeroUsize::new(1)).unwrap();
    let (precision, max_tokens) = (Precision::Fp16, Some(512));
    BackendOptions { precision, max_tokens, persistent_kernel, ..BackendOptions::new(threads) }
}

fn backend(desc: &ModelDesc, options: &BackendOptions) -> Box<dyn Backend> {
    open(Device::Cuda(0), desc, &Weights::random(desc, 7), options)
        .unwrap_or_else(|e| panic!("{desc:?}: {e}"))
}

fn always(desc: &ModelDesc, precision: Precision) -> Box<dyn Backend> {
    backend(desc, &BackendOptions { precision, ..options(PersistentKernel::Always) })
}

/// The kernels that have run, one a line of the trace, since `from`.
fn ran(trace: &str, from: usize) -> Vec<String> {
    let text = std::fs::read_to_string(trace).unwrap_or_default();
    text.lines().skip(from).map(|line| line.split(' ').next().unwrap_or("").to_owned()).collect()
}

/// Families, head sizes, widths that are no multiple of a line, poolings, prompts that are left out, both precisions.
#[test]
fn models_match_reference() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/persistent-models.txt");
    let switches = [("BERTHIER_EMU_TRACE", trace), ("BERTHIER_EMU_MULTIPROCESSORS", "7")];
    on_stand_in("persistent::models_match_reference", &switches, || {
        let _ = std::fs::remove_file(trace);
        let pad = Positions::AfterPadding { pad: 1 };
        let base = desc();
        for desc in [
            base.clone(),
            ModelDesc { positions: pad, type_vocab_size: 0, intermediate_size: 328, ..base.clone() },
            ModelDesc {
                hidden_size: 192,
                num_attention_heads: 3,
                pooling: vec![Pooling::Cls],
                ..base.clone()
            },
            ModelDesc {
                hidden_size: 128,
                num_attention_heads: 1,
                pooling: vec![Pooling::LastToken],
                ..base.clone()
            },
            ModelDesc { layer_norm_eps: 3e-3, pooling: vec![Pooling::WeightedMean], ..base.clone() },
            ModelDesc { pooling: vec![Pooling::MeanSqrtLen], ..base },
        ] {
            for (precision, tolerance) in [(Precision::Fp16, 4e-3), (Precision::Bf16, 32e-3)] {
                let mut cuda = always(&desc, precision);
                matches_reference(&desc, &mut *cuda, &[1, 16, 17, 2], tolerance);
                matches_reference(&desc, &mut *cuda, &[65, 130], tolerance);
            }
        }
        let ran = ran(trace, 0);
        assert!(!ran.is_empty() && ran.iter().all(|name| name.starts_with("persistent_encoder")), "{ran:?}");
    });
}

/// A prompt that the pooling leaves out, longer than some sequences.
#[test]
fn what_is_left_out_matches_reference() {
    let switches = [("BERTHIER_EMU_MULTIPROCESSORS", "5")];
    on_stand_in("persistent::what_is_left_out_matches_reference", &switches, || {
        for pooling in [Pooling::Mean, Pooling::Cls] {
            let desc = ModelDesc { pooling: vec![pooling], num_hidden_layers: 1, ..desc() };
            let seqs = sequences(&[2, 9, 20], &desc);
            let make = || PackedBatch { skip_tokens: 3, ..batch(&[0, 1, 2], &seqs) };
            let got = run(&mut *always(&desc, Precision::Fp16), make(), desc.dim());
            let options = BackendOptions { precision: Precision::Auto, ..options(PersistentKernel::Auto) };
            let mut reference = open(Device::Reference, &desc, &Weights::random(&desc, 7), &options).unwrap();
            let want = run(&mut *reference, make(), desc.dim());
            let largest = want.iter().fold(0f32, |a, v| a.max(v.abs()));
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                assert!((g - w).abs() <= 4e-3 * largest, "{pooling:?}, component {i}: {g}, {w}");
            }
        }
    });
}

/// By size and by what is asked for, batch by batch; with the same bits when others came in between.
#[test]
fn batches_go_in_one_launch_where_they_may() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/persistent-batches.txt");
    let switches = [("BERTHIER_EMU_TRACE", trace), ("BERTHIER_EMU_MULTIPROCESSORS", "6")];
    on_stand_in("persistent::batches_go_in_one_launch_where_they_may", &switches, || {
        let _ = std::fs::remove_file(trace);
        let desc = desc();
        let seqs = sequences(&[40, 130, 127], &desc);
        let mut cuda = always(&desc, Precision::Fp16);
        let mut launches = |batch: PackedBatch| {
            let before = ran(trace, 0).len();
            let floats =
                if batch.token_vectors { batch.total_tokens() } else { batch.len() } * desc.hidden_size;
            let mut out = vec![f32::NAN; floats];
            cuda.submit(batch).unwrap();
            cuda.collect(&mut out).unwrap();
            (out, ran(trace, before))
        };
        let (first, kernels) = launches(batch(&[0], &seqs));
        assert_eq!(kernels, ["persistent_encoder_f16"]);
        let (_, kernels) = launches(batch(&[1, 2], &seqs));
        assert!(
            kernels.len() > 10 && !kernels.contains(&"persistent_encoder_f16".into()),
            "257 tokens: {kernels:?}"
        );
        let (_, kernels) = launches(PackedBatch { token_vectors: true, ..batch(&[0], &seqs) });
        assert!(!kernels.contains(&"persistent_encoder_f16".into()), "token vectors: {kernels:?}");
        let (again, kernels) = launches(batch(&[0], &seqs));
        assert_eq!(kernels, ["persistent_encoder_f16"]);
        assert_eq!(again, first, "the same bits");
    });
}

/// Two in flight: the second's ids are staged while the first computes.
#[test]
fn batches_in_flight_do_not_meet() {
    for streams in ["late", "eager"] {
        let switches = [("BERTHIER_EMU_STREAMS", streams), ("BERTHIER_EMU_MULTIPROCESSORS", "3")];
        on_stand_in("persistent::batches_in_flight_do_not_meet", &switches, || {
            let desc = ModelDesc { num_hidden_layers: 1, ..desc() };
            let seqs = sequences(&[5, 40, 1, 33], &desc);
            let mut cuda = always(&desc, Precision::Fp16);
            let batches: [&[usize]; 4] = [&[0], &[1, 2], &[3], &[2, 0]];
            let want = batches.map(|rows| run(&mut *cuda, batch(rows, &seqs), desc.dim()));
            cuda.submit(batch(batches[0], &seqs)).unwrap();
            for i in 0..batches.len() {
                if let Some(next) = batches.get(i + 1) {
                    cuda.submit(batch(next, &seqs)).unwrap();
                }
                let mut out = vec![f32::NAN; want[i].len()];
                cuda.collect(&mut out).unwrap();
                assert_eq!(out, want[i], "batch {i}");
            }
        });
    }
}

/// Said by the option, by the model, and by whether bits may depend on the batch; the kind of a device tells.
#[test]
fn one_launch_is_taken_as_asked_for() {
    on_stand_in("persistent::one_launch_is_taken_as_asked_for", &[], || {
        let desc = ModelDesc { num_hidden_layers: 1, ..desc() };
        let one_launch =
            |options: &BackendOptions, desc| backend(desc, options).kind().contains("in one launch");
        assert!(one_launch(&options(PersistentKernel::Always), &desc));
        assert!(!one_launch(&options(PersistentKernel::Never), &desc));
        // on an H200 a batch of two layers' launches takes longer than the kernel's barriers
        assert!(one_launch(&options(PersistentKernel::Auto), &desc));
        let invariant = |kernel| BackendOptions { batch_invariant: true, ..options(kernel) };
        assert!(!one_launch(&invariant(PersistentKernel::Auto), &desc));
        let gated = ModelDesc { feed_forward: FeedForward::Gated, ..desc.clone() };
        let biased = ModelDesc { attention_bias: AttentionBias::RelativeBuckets, ..desc.clone() };
        let maximum = ModelDesc { pooling: vec![Pooling::Max], ..desc.clone() };
        for other in [&gated, &biased, &maximum] {
            assert!(!one_launch(&options(PersistentKernel::Auto), other));
        }
        let refused = |options: &BackendOptions, desc: &ModelDesc| {
            let error =
                open(Device::Cuda(0), desc, &Weights::random(desc, 7), options).err().expect("refused");
            assert!(matches!(error, Error::InvalidOption { name: "persistent_kernel", .. }), "{error}");
            error.to_string()
        };
        assert!(refused(&options(PersistentKernel::Always), &gated).contains("does not compute this model"));
        assert!(refused(&invariant(PersistentKernel::Always), &desc).contains("batch_invariant"));
    });
}

/// A block that is lost has the others wait for ever: the batch's time runs out, and the device is said to hang.
#[test]
fn a_launch_that_never_ends_is_an_error() {
    let switches = [("BERTHIER_EMU_HANG_DEVICE", "2"), ("BERTHIER_EMU_MULTIPROCESSORS", "3")];
    on_stand_in("persistent::a_launch_that_never_ends_is_an_error", &switches, || {
        let desc = ModelDesc { num_hidden_layers: 1, ..desc() };
        let patience = Duration::from_millis(300);
        let mut cuda = backend(&desc, &BackendOptions { patience, ..options(PersistentKernel::Always) });
        let make = || batch(&[0], &sequences(&[5], &desc));
        run(&mut *cuda, make(), desc.dim());
        cuda.submit(make()).unwrap();
        let error = cuda.collect(&mut vec![0.0; desc.dim()]).expect_err("it never ends");
        assert!(
            matches!(&error, Error::DeviceLost { message, .. } if message.contains("it hangs")),
            "{error}"
        );
    });
}

/// Every batch of it, once memory has grown.
#[test]
fn batches_in_one_launch_allocate_nothing() {
    let switches = [("BERTHIER_EMU_MULTIPROCESSORS", "3")];
    on_stand_in("persistent::batches_in_one_launch_allocate_nothing", &switches, || {
        let desc = ModelDesc { num_hidden_layers: 1, ..desc() };
        let mut cuda = always(&desc, Precision::Fp16);
        let seqs = sequences(&[40, 7, 39, 8], &desc);
        let mut out = vec![f32::NAN; 2 * desc.dim()];
        let mut calls = [0; 6];
        for (i, calls) in calls.iter_mut().enumerate() {
            let make = PackedBatch { skip_tokens: 1, ..batch(&[[0, 1], [2, 3]][i / 2 % 2], &seqs) };
            let before = crate::counting::calls();
            cuda.submit(make).unwrap();
            let back = cuda.collect(&mut out).unwrap();
            *calls = crate::counting::calls() - before;
            drop(back);
        }
        assert!(calls[0] > 0 && calls[1] > 0, "the counter counts: each slot's first batch grows");
        assert_eq!(calls[2..], [0; 4], "{calls:?}");
    });
}

/// One text on a cluster, several side by side, the grid where a text is too long for that or the GPU has no clusters; the bits are
/// the same whichever it is.
#[test]
fn texts_go_to_clusters_where_there_are_any() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/persistent-clusters.txt");
    let mut vectors = Vec::new();
    // clusters of 16, of 8 where the driver refuses those, none
    for (gpu, most) in [("90", "16"), ("90", "8"), ("80", "16")] {
        let switches = [
            ("BERTHIER_EMU_TRACE", trace),
            ("BERTHIER_EMU_MULTIPROCESSORS", "36"),
            ("BERTHIER_EMU_ARCH", gpu),
            ("BERTHIER_EMU_MOST_CLUSTER", most),
        ];
        let out = concat!(env!("CARGO_TARGET_TMPDIR"), "/persistent-clusters.bin");
        on_stand_in("persistent::texts_go_to_clusters_where_there_are_any", &switches, || {
            let _ = std::fs::remove_file(trace);
            let desc = ModelDesc { num_hidden_layers: 2, ..desc() };
            let seqs = sequences(&[9, 30, 12], &desc);
            let mut cuda = always(&desc, Precision::Fp16);
            let emulated = |name: &str| std::env::var(name).expect("a switch of this test");
            let size = match emulated("BERTHIER_EMU_ARCH").as_str() {
                "80" => 0,
                _ => emulated("BERTHIER_EMU_MOST_CLUSTER").parse().unwrap(),
            };
            assert_eq!(cuda.kind().contains(&format!("clusters of {size}")), size > 0, "{}", cuda.kind());
            let mut all = Vec::new();
            for rows in [&[0][..], &[1, 0, 2]] {
                let before = ran_lines(trace).len();
                all.extend(run(&mut *cuda, batch(rows, &seqs), desc.dim()));
                let launches = ran_lines(trace).split_off(before);
                // 30 tokens, and 9 and 12 beside them
                let blocks = match size {
                    0 => None,
                    _ => Some(size * rows.len().min(2)),
                };
                assert_eq!(launches.len(), 1, "{launches:?}");
                assert_eq!(launches[0].contains(" cluster "), blocks.is_some(), "{launches:?}");
                if let Some(blocks) = blocks {
                    assert!(launches[0].contains(&format!("grid {blocks},1,1")), "{launches:?}");
                }
            }
            std::fs::write(out, bytes_of(&all)).unwrap();
        });
        vectors.extend(std::fs::read(out));
    }
    assert!(vectors.windows(2).all(|pair| pair[0] == pair[1]), "the same bits on every team");
}

/// Whatever is predicted of the batch: a long text in a cluster, several short ones on the grid.
#[test]
fn teams_are_taken_as_asked_for() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/persistent-teams.txt");
    for gpu in ["90", "80"] {
        let switches = [
            ("BERTHIER_EMU_TRACE", trace),
            ("BERTHIER_EMU_MULTIPROCESSORS", "36"),
            ("BERTHIER_EMU_ARCH", gpu),
        ];
        on_stand_in("persistent::teams_are_taken_as_asked_for", &switches, || {
            let _ = std::fs::remove_file(trace);
            let desc = ModelDesc { num_hidden_layers: 1, ..desc() };
            let has_clusters = std::env::var("BERTHIER_EMU_ARCH").expect("a switch of this test") == "90";
            // blocks of a text, and of two
            let teams =
                [(PersistentKernel::Grid, [None; 2]), (PersistentKernel::Clusters, [Some(16), Some(32)])];
            for (kernel, of_clusters) in teams {
                if of_clusters[0].is_some() && !has_clusters {
                    let refused = open(Device::Cuda(0), &desc, &Weights::random(&desc, 7), &options(kernel));
                    let error = refused.err().expect("refused").to_string();
                    assert!(error.contains("clusters: this GPU has no clusters"), "{error}");
                    continue;
                }
                let mut cuda = backend(&desc, &options(kernel));
                for (lengths, blocks) in [&[150][..], &[9, 12]].into_iter().zip(of_clusters) {
                    let before = ran_lines(trace).len();
                    matches_reference(&desc, &mut *cuda, lengths, 4e-3);
                    let launches = ran_lines(trace).split_off(before);
                    assert!(!launches.is_empty());
                    for launch in launches {
                        assert!(launch.starts_with("persistent_encoder"), "{launch}");
                        assert_eq!(launch.contains(" cluster "), blocks.is_some(), "{launch}");
                        assert!(
                            blocks.is_none_or(|n| launch.contains(&format!("grid {n},1,1 "))),
                            "{launch}"
                        );
                    }
                }
            }
        });
    }
}

/// Lines of the trace: kernels with their launches.
fn ran_lines(trace: &str) -> Vec<String> {
    std::fs::read_to_string(trace).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A driver that does not let the blocks run at once, whatever it has said: batches go kernel by kernel then, and it is not asked again.
#[test]
fn a_refused_launch_goes_kernel_by_kernel() {
    let trace = concat!(env!("CARGO_TARGET_TMPDIR"), "/persistent-refused.txt");
    for gpu in ["80", "90"] {
        let switches = [
            ("BERTHIER_EMU_TRACE", trace),
            ("BERTHIER_EMU_ARCH", gpu),
            ("BERTHIER_EMU_REFUSE_TOGETHER", "1"),
        ];
        on_stand_in("persistent::a_refused_launch_goes_kernel_by_kernel", &switches, || {
            let _ = std::fs::remove_file(trace);
            let desc = ModelDesc { num_hidden_layers: 1, ..desc() };
            let mut cuda = always(&desc, Precision::Fp16);
            for lengths in [&[5, 20][..], &[33]] {
                matches_reference(&desc, &mut *cuda, lengths, 4e-3);
            }
            let ran = ran(trace, 0);
            assert!(ran.len() > 10, "{ran:?}");
            assert!(!ran.iter().any(|name| name.starts_with("persistent_encoder")), "{ran:?}");
            let told = cuda.launches().expect("a GPU launches");
            assert!(told.kernel_by_kernel > 0 && (told.grid, told.clusters) == (0, 0), "{told:?}");
        });
    }
}
