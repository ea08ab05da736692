//! What some families have and most lack: rotary positions, norms in front, norms of queries and keys, local attention. Their
//! fixtures against sentence-transformers, and random models whose attention is so sharp that each of these shows.

use crate::golden::{self, Golden};
use crate::models::{
    BF16_TOLERANCE, TOLERANCE, backend_of, batch, bits, compare, desc, positioned, run, sequences,
};
use crate::stand_in::on_stand_in;
use berthier::backend::{Device, Precision};
use berthier::model::{
    Activation, AttentionBias, AttentionSpan, FeedForward, LayerGroups, LayerWeights, ModelDesc, Norms,
    Positions, Tensor, Weights,
};
use berthier::{Embedder, Options};

const ROTARY: Positions = Positions::Rotary { global_base: 1e4, local_base: 1e4, divisor: 1.0 };

/// A fixture of each family of its own; others of `families/` have sizes that there are no kernels for.
const FIXTURES: [&str; 5] =
    ["gte-new", "jina-bert-v2-qk-norm", "jina-embeddings-v3", "modernbert-old-keys", "nomic-bert-old-keys"];

/// To the models' limits, in one call and one by one with the same bits.
#[test]
fn families_match_sentence_transformers() {
    on_stand_in("families::families_match_sentence_transformers", &[], || {
        let mut computed = Vec::new();
        for folder in golden::folders("families") {
            let name = folder.file_name().unwrap().to_str().unwrap();
            let model = folder.join("model");
            for (precision, tolerance) in [(Precision::Fp16, TOLERANCE), (Precision::Bf16, BF16_TOLERANCE)] {
                let options = Options::new(model.to_str().expect("a UTF-8 path")).device(Device::Cuda(0));
                let embedder = match Embedder::load(options.precision(precision).batch_invariant(true)) {
                    Ok(embedder) => embedder,
                    Err(e) => {
                        let e = e.to_string();
                        assert!(e.contains("head size") || e.contains("a multiple of 8"), "{name}: {e}");
                        continue;
                    }
                };
                if precision == Precision::Fp16 {
                    computed.push(name.to_owned());
                }
                is_near(name, &embedder, &Golden::read(&folder), tolerance);
            }
        }
        for name in FIXTURES {
            assert!(computed.iter().any(|c| c == name), "{name} is not among {computed:?}");
        }
    });
}

fn is_near(name: &str, embedder: &Embedder, golden: &Golden, tolerance: f32) {
    let (texts, want) = (golden.texts(), golden.vectors());
    let longest = golden.rows.iter().map(|row| row.ids.len()).max();
    assert_eq!(longest, Some(golden.max_seq_length), "{name}: a text is as long as the model allows");
    let largest = want.iter().flatten().fold(0f32, |a, v| a.max(v.abs()));
    let got = embedder.embed(&texts).unwrap();
    for (row, want) in want.iter().enumerate() {
        for (i, (g, w)) in got.row(row).iter().zip(want).enumerate() {
            let text = &golden.rows[row].name;
            assert!(
                (g - w).abs() <= tolerance * largest,
                "{name}, {}, {text}: component {i}: {g}, reference {w}, largest {largest}",
                embedder.device_name()
            );
        }
        let alone = embedder.embed(&texts[row..=row]).unwrap();
        assert_eq!(bits(alone.row(0)), bits(got.row(row)), "{name}: row {row} alone");
    }
}

/// Random weights with queries so large that few keys count: with those of `Weights::random`, softmax is nearly even.
fn sharp(desc: &ModelDesc) -> Weights {
    let mut weights = Weights::random(desc, 7);
    for (l, layer) in weights.layers.iter_mut().enumerate() {
        let query = &layer.query.weight;
        let values: Vec<f32> = query.to_f32().iter().map(|v| 8.0 * v).collect();
        layer.query.weight = Tensor::from_f32(&format!("{l}.query.weight"), query.shape(), &values);
    }
    weights
}

/// In both precisions, at lengths on both sides of the attention's borders.
fn check(desc: &ModelDesc, weights: &Weights) {
    let seqs = sequences(&[1, 16, 17, 64, 65, 130, 2], desc);
    let rows: Vec<usize> = (0..seqs.len()).collect();
    for (precision, tolerance) in [(Precision::Fp16, TOLERANCE), (Precision::Bf16, BF16_TOLERANCE)] {
        let mut cuda = backend_of(Device::Cuda(0), desc, weights, precision, false);
        compare(desc, weights, &mut *cuda, &|| positioned(desc, &rows, &seqs), tolerance);
    }
}

/// That what differs between two models shows, far beyond what [`check`] allows.
fn differ(a: (&ModelDesc, &Weights), b: (&ModelDesc, &Weights)) {
    let seqs = sequences(&[64, 130], a.0);
    let vectors = |(desc, weights): (&ModelDesc, &Weights)| {
        let mut reference = backend_of(Device::Reference, desc, weights, Precision::Auto, false);
        run(&mut *reference, positioned(desc, &[0, 1], &seqs), desc.dim())
    };
    let (a, b) = (vectors(a), vectors(b));
    let largest = a.iter().fold(0f32, |a, v| a.max(v.abs()));
    let difference = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!(difference > 4.0 * TOLERANCE * largest, "{difference} of {largest}");
}

/// Three layers of which the first and the last see all tokens, as ModernBERT has them.
fn modernbert() -> (ModelDesc, Weights) {
    let desc = ModelDesc {
        norms: Norms::Pre,
        num_hidden_layers: 3,
        positions: Positions::Rotary { global_base: 5e3, local_base: 50.0, divisor: 1.0 },
        attention_span: AttentionSpan::Mixed { reach: 9, local: vec![false, true, false] },
        feed_forward: FeedForward::Gated,
        type_vocab_size: 0,
        ..desc()
    };
    let mut weights = sharp(&desc);
    weights.layers[0].attention_norm = None;
    (desc, weights)
}

#[test]
fn rotary_positions_match_reference() {
    on_stand_in("families::rotary_positions_match_reference", &[], || {
        let scaled = Positions::Rotary { global_base: 400.0, local_base: 400.0, divisor: 1.3 };
        let nomic = ModelDesc {
            positions: ROTARY,
            feed_forward: FeedForward::Gated,
            hidden_act: Activation::Silu,
            ..desc()
        };
        let of_heads = |hidden_size, num_attention_heads| ModelDesc {
            positions: scaled,
            hidden_size,
            num_attention_heads,
            num_hidden_layers: 1,
            ..desc()
        };
        for desc in [nomic.clone(), of_heads(96, 3), of_heads(128, 2), of_heads(256, 2)] {
            check(&desc, &sharp(&desc));
        }
        let weights = sharp(&nomic);
        for positions in [scaled, Positions::None] {
            differ((&nomic, &weights), (&ModelDesc { positions, ..nomic.clone() }, &weights));
        }
    });
}

#[test]
fn norms_in_front_match_reference() {
    on_stand_in("families::norms_in_front_match_reference", &[], || {
        let (desc, weights) = modernbert();
        check(&desc, &weights);
        // each base is that of its layers
        for (global_base, local_base) in [(50.0, 50.0), (5e3, 5e3)] {
            let positions = Positions::Rotary { global_base, local_base, divisor: 1.0 };
            differ((&desc, &weights), (&ModelDesc { positions, ..desc.clone() }, &weights));
        }
        // what no family has: a norm in front of the first layer, layers that share their weights
        let shared = LayerWeights::Shared(LayerGroups { groups: 1, inner: 1 });
        for desc in [
            ModelDesc { norms: Norms::Pre, ..crate::models::desc() },
            ModelDesc { norms: Norms::Pre, layer_weights: shared, ..crate::models::desc() },
        ] {
            check(&desc, &sharp(&desc));
        }
    });
}

#[test]
fn norms_of_queries_and_keys_match_reference() {
    on_stand_in("families::norms_of_queries_and_keys_match_reference", &[], || {
        let jina = ModelDesc {
            norms: Norms::PostQueryKey,
            attention_bias: AttentionBias::Alibi,
            positions: Positions::None,
            feed_forward: FeedForward::Gated,
            ..desc()
        };
        // with rotary positions, as no family has it; rows of 544 have a kernel of their own
        let rotary = ModelDesc { norms: Norms::PostQueryKey, positions: ROTARY, ..desc() };
        let wide =
            ModelDesc { hidden_size: 544, num_attention_heads: 17, num_hidden_layers: 1, ..rotary.clone() };
        for desc in [&jina, &rotary, &wide] {
            check(desc, &Weights::random(desc, 7));
        }
        let weights = Weights::random(&jina, 7);
        let mut without = weights.clone();
        for layer in &mut without.layers {
            (layer.query_norm, layer.key_norm) = (None, None);
        }
        differ((&jina, &weights), (&jina, &without));
    });
}

#[test]
fn batch_invariant_bits_of_the_families_do_not_depend_on_the_batch() {
    let name = "families::batch_invariant_bits_of_the_families_do_not_depend_on_the_batch";
    on_stand_in(name, &[("BERTHIER_EMU_ORDER", "shuffle")], || {
        let (modernbert, weights) = modernbert();
        let rotary = ModelDesc { norms: Norms::PostQueryKey, positions: ROTARY, ..desc() };
        for (desc, weights) in [(&modernbert, &weights), (&rotary, &Weights::random(&rotary, 7))] {
            let seqs = sequences(&[5, 40, 1, 160, 64], desc);
            let mut cuda = backend_of(Device::Cuda(0), desc, weights, Precision::Fp16, true);
            let dim = desc.dim();
            let all = run(&mut *cuda, batch(&[0, 1, 2, 3, 4], &seqs), dim);
            let backwards = run(&mut *cuda, batch(&[4, 3, 2, 1, 0], &seqs), dim);
            for row in 0..5 {
                let want = bits(&all[row * dim..][..dim]);
                assert_eq!(want, bits(&backwards[(4 - row) * dim..][..dim]), "row {row}, backwards");
                assert_eq!(want, bits(&run(&mut *cuda, batch(&[row], &seqs), dim)), "row {row} alone");
            }
        }
    });
}
