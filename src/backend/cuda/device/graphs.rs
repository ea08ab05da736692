//! CUDA graphs: a small batch's kernels, recorded once and launched as one.
//!
//! Where a batch is so small that the GPU is done with a kernel before the host has launched the next, the host's launches
//! are what the batch waits for. Such a batch is filled up to the sizes of its [`Shape`], so that batches to come have the same
//! launches; what is recorded for a shape then serves them all. Knows nothing of what the kernels are.
#![allow(unsafe_code, reason = "graphs are handed from thread to thread with their backend")]

use super::super::costs::{Choices, EncoderShape, network};
use super::super::tiles::TileTable;
use super::memory::Called;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaGraph, CudaStream};
use std::sync::Arc;

/// What the host takes to launch a kernel into a stream, µs: an estimate, for which 2 to 5 are published.
const HOST_LAUNCH_US: f64 = 4.0;
/// Graphs of a slot: a graph of a hundred kernels takes some hundred KB of the driver's memory.
const MOST_GRAPHS: usize = 64;
/// Tokens that every shape is a multiple of: rows of the smallest tile.
const LEAST_STEP: usize = 16;
/// Steps between a power of two of tokens and the next: less than an eighth of the tokens is filled up in vain.
const STEPS_OF_OCTAVE: usize = 8;
/// Tokens of the sequences that the limit is predicted for.
const USUAL_SEQUENCE: usize = 128;

/// The sizes that a batch is filled up to: what its launches depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) tokens: usize,
    pub(super) batch: usize,
    /// Of each path's work list; 0 where a path has none.
    pub(super) entries: [usize; 2],
    pub(super) normalize: bool,
    pub(super) token_vectors: bool,
    /// Whether the pooling leaves tokens out.
    pub(super) leaves_out: bool,
}

impl Shape {
    /// Of a batch as it is.
    pub(super) fn filled(self) -> Self {
        let step = (self.tokens.next_power_of_two() / STEPS_OF_OCTAVE / 2).max(LEAST_STEP);
        Self {
            tokens: self.tokens.next_multiple_of(step),
            batch: self.batch.next_power_of_two(),
            entries: self.entries.map(|n| if n == 0 { 0 } else { n.next_power_of_two() }),
            ..self
        }
    }

    /// Whether a slot for so many tokens holds it.
    pub(super) fn fits(self, max_tokens: usize) -> bool {
        self.tokens.max(self.batch).max(self.entries.iter().sum()) <= max_tokens
    }
}

/// The most tokens of a batch that the GPU is done with sooner than the host has launched its kernels one by one; a power of
/// two, or 0.
pub(super) fn most_tokens(table: &TileTable, shape: &EncoderShape, choices: Choices) -> usize {
    let launches_are_slower = |tokens: usize| {
        let seqlen = USUAL_SEQUENCE.min(tokens);
        network(table, shape, tokens / seqlen, seqlen, choices)
            .is_some_and(|network| network.us() < network.launches() as f64 * HOST_LAUNCH_US)
    };
    let sizes = (LEAST_STEP.ilog2()..usize::BITS).map(|i| 1 << i);
    sizes.take_while(|&tokens| launches_are_slower(tokens)).last().unwrap_or(0)
}

/// What has been recorded, by shape. The shape that has gone unused for longest makes room for a new one.
pub(super) struct Recorded<G> {
    shapes: Vec<Entry<G>>,
    uses: u64,
}

struct Entry<G> {
    shape: Shape,
    used: u64,
    /// None until the shape is met again: what comes once is not recorded.
    graph: Option<G>,
}

/// What to do with a batch.
enum Step<'a, G> {
    Launch,
    Record(&'a mut Option<G>),
    Replay(&'a G),
}

impl<G> Recorded<G> {
    pub(super) fn new() -> Self {
        Self { shapes: Vec::with_capacity(MOST_GRAPHS), uses: 0 }
    }

    fn step(&mut self, shape: Shape) -> Step<'_, G> {
        self.uses += 1;
        if let Some(i) = self.shapes.iter().position(|entry| entry.shape == shape) {
            let entry = &mut self.shapes[i];
            entry.used = self.uses;
            return match &mut entry.graph {
                Some(graph) => Step::Replay(graph),
                place => Step::Record(place),
            };
        }
        if self.shapes.len() == MOST_GRAPHS {
            let oldest = (0..MOST_GRAPHS).min_by_key(|&i| self.shapes[i].used).expect("there are some");
            self.shapes.swap_remove(oldest);
        }
        self.shapes.push(Entry { shape, used: self.uses, graph: None });
        Step::Launch
    }
}

/// A recorded graph, with the stream it is launched into.
pub(super) struct Graph(CudaGraph);

// SAFETY: graphs may be used from any thread, by one at a time: the backend that owns this one is
unsafe impl Send for Graph {}

impl Recorded<Graph> {
    /// Launches what `launch` puts into the stream: by itself, or as the graph that it was recorded in; says whether as a graph. All
    /// graphs of one value read and write the same memory.
    pub(super) fn launch(
        &mut self,
        shape: Shape,
        stream: &Arc<CudaStream>,
        launch: impl Fn() -> Called<()>,
    ) -> Called<bool> {
        match self.step(shape) {
            Step::Launch => launch().map(|()| false),
            Step::Replay(graph) => graph.0.launch().map(|()| true),
            Step::Record(place) => {
                // of this thread alone: others may be loading a model onto another GPU
                stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
                let launched = launch();
                let captured = stream.end_capture(CUgraphInstantiate_flags(0));
                launched?;
                match captured {
                    Ok(Some(graph)) => place.insert(Graph(graph)).0.launch().map(|()| true),
                    // a graph takes memory; if there is none, the batch is computed all the same
                    Ok(None) | Err(_) => launch().map(|()| false),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::{Element, Gpu};

    fn shape(tokens: usize) -> Shape {
        Shape { tokens, batch: 3, entries: [0, 12], normalize: true, token_vectors: false, leaves_out: false }
    }

    #[test]
    fn shapes_hold_their_batch_and_little_more() {
        for tokens in 1..5000 {
            let filled = shape(tokens).filled();
            assert!(filled.tokens >= tokens && filled.tokens.is_multiple_of(LEAST_STEP), "{tokens}");
            assert!(filled.tokens - tokens < LEAST_STEP.max(tokens / STEPS_OF_OCTAVE + 1), "{tokens}");
            assert_eq!(filled.filled(), filled, "{tokens}");
        }
        let filled = shape(5).filled();
        assert_eq!((filled.tokens, filled.batch, filled.entries), (16, 4, [0, 16]));
    }

    #[test]
    fn graphs_are_for_what_the_host_is_too_slow_for() {
        let most = |gpu: &str, name: &str| {
            let table = TileTable::new(Gpu::known(gpu).unwrap(), Element::F16);
            let shape = EncoderShape::known(name).unwrap();
            let most = most_tokens(&table, &shape, Choices::default());
            let at = |tokens: usize| {
                let seqlen = tokens.min(128);
                let network = network(&table, &shape, tokens / seqlen, seqlen, Choices::default()).unwrap();
                network.us() / (network.launches() as f64 * HOST_LAUNCH_US)
            };
            assert!(most == 0 || at(most) < 1.0, "{gpu} {name}");
            assert!(at((2 * most).max(LEAST_STEP)) >= 1.0, "{gpu} {name}");
            most
        };
        // a small model on a large GPU, and a large one on a small GPU, whose weights alone take longer
        assert!((64..=1024).contains(&most("h100", "minilm")), "{}", most("h100", "minilm"));
        assert_eq!(most("l4", "large"), 0);
        assert!(most("h100", "minilm") >= most("l4", "minilm"));
    }

    #[test]
    fn a_shape_is_recorded_when_it_comes_again_and_the_oldest_makes_room() {
        let mut recorded = Recorded::<usize>::new();
        let mut meet = |tokens: usize| match recorded.step(shape(tokens)) {
            Step::Launch => "launch",
            Step::Record(place) => {
                *place = Some(tokens);
                "record"
            }
            Step::Replay(&graph) => {
                assert_eq!(graph, tokens, "another shape's graph");
                "replay"
            }
        };
        assert_eq!([meet(1), meet(1), meet(1), meet(1)], ["launch", "record", "replay", "replay"]);
        for tokens in 2..=MOST_GRAPHS {
            assert_eq!(meet(tokens), "launch");
        }
        assert_eq!(meet(1), "replay");
        // no room: the second is what was met longest ago
        assert_eq!(
            [meet(MOST_GRAPHS + 1), meet(1), meet(3), meet(2)],
            ["launch", "replay", "record", "launch"]
        );
    }
}
