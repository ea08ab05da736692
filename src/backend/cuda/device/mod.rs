//! The CUDA backend: one model on one GPU, through the driver.
//!
//! Weights are converted and copied once, buffers are sized once from the token budget. Two batches are in flight: while one
//! computes, the next is staged and copied, and the vectors of the one before come back.
#![allow(unsafe_code, reason = "what a device that hangs holds is not freed")]

use super::costs::{Choices, EncoderShape};
use super::persistent::{Clusters, PERSISTENT_TOKENS, PersistentLimits, blocks, limits, shared_bytes};
use super::tiles::{Element, TileTable};
use super::work_list::AttentionKernels;
use crate::backend::{Backend, BackendOptions, Capacity, DeviceTime, Launches, PersistentKernel, Precision};
use crate::batch::PackedBatch;
use crate::error::{Error, Result};
use crate::model::{self, ModelDesc};
use driver::Opened;
use forward::Forward;
use kernels::Kernels;
use memory::Called;
use ops::{Products, Queue};
use persistent::{PersistentEncoder, Team};
use slot::{Route, Slot};
use std::cell::Cell;
use std::collections::VecDeque;
use std::mem::ManuallyDrop;
use std::time::Duration;
use stopwatch::Stopwatch;
use sweep::Sweep;
use weights::{Weights, out_of_memory};
use workspace::Workspace;

mod driver;
mod forward;
mod graphs;
mod kernels;
mod memory;
mod ops;
mod patience;
mod persistent;
mod slot;
mod stopwatch;
mod support;
mod sweep;
mod tensor_maps;
mod weights;
mod workspace;

pub(crate) use driver::devices;

/// Batches that may be submitted and not collected.
const IN_FLIGHT: usize = 2;
/// Tokens of a batch at most, whatever is asked for: sizes stay within what kernels count with.
const MOST_TOKENS: usize = 1 << 20;
/// Tokens of the batch that shows whether activations fit f16.
const PROBE_TOKENS: usize = 32;

/// Loads the model onto a GPU; the seam's `open` says what may go wrong.
pub(crate) fn open(
    ordinal: usize,
    desc: &ModelDesc,
    weights: &model::Weights,
    options: &BackendOptions,
) -> Result<Box<dyn Backend>> {
    Ok(Box::new(CudaBackend::new(ordinal, desc, weights, options)?))
}

/// One model on one GPU.
struct CudaBackend {
    desc: ModelDesc,
    table: TileTable,
    products: Products,
    resident: ManuallyDrop<Resident>,
    /// Submitted and not collected, with their slots.
    pending: VecDeque<(usize, PackedBatch)>,
    next_slot: usize,
    max_tokens: usize,
    batch_invariant: bool,
    /// Batches of so many tokens at most are filled up to a shape whose kernels can be launched as a graph.
    shaped_tokens: usize,
    /// Whether they are.
    graphs: bool,
    /// What a batch may take beyond a hundred times what it should.
    patience: Duration,
    /// Whether the device did not answer in time: every call that frees something would wait for it.
    hung: bool,
    /// Whether bf16 was taken because f16 would overflow.
    fell_back: bool,
    /// Of the batches collected since they are timed.
    timed: Option<DeviceTime>,
    /// Of all batches.
    launches: Launches,
}

/// What the driver holds for a backend. Not freed on a device that hangs.
struct Resident {
    kernels: Kernels,
    weights: Weights,
    workspace: Workspace,
    /// Of models and batches that go in one launch.
    persistent: Option<PersistentEncoder>,
    slots: Vec<Slot>,
    /// Since caches were first swept.
    sweep: Option<Sweep>,
    /// Last: the rest is freed while it lives.
    device: Opened,
}

impl CudaBackend {
    fn new(
        ordinal: usize,
        desc: &ModelDesc,
        weights: &model::Weights,
        options: &BackendOptions,
    ) -> Result<Self> {
        support::check(desc)?;
        let precision = options.precision.choose("a GPU", &[Precision::Fp16, Precision::Bf16])?;
        let new = |element| Self::with_element(Opened::new(ordinal)?, desc, weights, options, element);
        if precision == Precision::Bf16 {
            return new(Element::Bf16);
        }
        let mut backend = new(Element::F16)?;
        if options.precision == Precision::Auto {
            if backend.resident.weights.overflow || !backend.is_finite()? {
                drop(backend);
                backend = new(Element::Bf16)?;
                backend.fell_back = true;
            }
        } else if backend.resident.weights.overflow {
            let message = "fp16: weights of this model exceed 65504, which bf16 holds".into();
            return Err(Error::InvalidOption { name: "precision", message });
        }
        Ok(backend)
    }

    fn with_element(
        device: Opened,
        desc: &ModelDesc,
        weights: &model::Weights,
        options: &BackendOptions,
        element: Element,
    ) -> Result<Self> {
        let mut table = TileTable::new(device.gpu.clone(), element);
        let kernels = Kernels::load(&device.context, &table).map_err(|e| device.failed(e))?;
        table.ask_clusters(|tile, size| kernels.active_clusters(tile.name, size));
        let longest = desc.longest_sequence();
        let weights = Weights::new(&device, desc, weights, element, workspace_bytes(desc, longest))?;
        let shape = EncoderShape::of("", desc);
        let choices = Choices { batch_invariant: options.batch_invariant, ..Choices::default() };
        let chosen = || workspace::budget(&table, &shape, desc, choices);
        let wanted = options.max_tokens.map_or_else(chosen, |tokens| tokens.min(MOST_TOKENS).max(longest));
        let attention = AttentionKernels::choose(&table, &shape.attention(choices))
            .expect("`support` refused head sizes without a kernel");
        let (max_tokens, workspace, slots) = allocate(&device, desc, attention, wanted, weights.bytes())?;
        let shared_bytes = shared_bytes(&table);
        let clusters = persistent::clusters(&kernels);
        let persistent = match persistent_limits(&table, &shape, clusters, options)? {
            PersistentLimits { grid: 0, cluster: 0, .. } => None,
            limits => {
                let sizes = [blocks(&table, &shape), shared_bytes, max_tokens];
                let teams = (clusters, limits);
                let encoder = PersistentEncoder::new(&device, desc, &weights.model, &workspace, sizes, teams);
                let needed = weights.bytes() + workspace_bytes(desc, max_tokens);
                Some(encoder.map_err(|e| out_of_memory(&device, e, needed, needed))?)
            }
        };
        // copies from pageable memory may go on when their calls are back, and our streams do not wait for them
        device.context.synchronize().map_err(|e| device.failed(e))?;
        let shaped_tokens = graphs::most_tokens(&table, &shape, choices);
        let resident = Resident { kernels, weights, workspace, persistent, slots, sweep: None, device };
        Ok(Self {
            desc: desc.clone(),
            table,
            products: Products::new(shape, element, options.batch_invariant),
            resident: ManuallyDrop::new(resident),
            pending: VecDeque::with_capacity(IN_FLIGHT),
            next_slot: 0,
            max_tokens,
            batch_invariant: options.batch_invariant,
            shaped_tokens,
            graphs: options.cuda_graphs,
            patience: options.patience,
            hung: false,
            fell_back: false,
            timed: None,
            launches: Launches::default(),
        })
    }

    /// Whether a sequence of ids from all over the vocabulary has a finite vector.
    fn is_finite(&mut self) -> Result<bool> {
        let tokens = PROBE_TOKENS.min(self.desc.longest_sequence());
        let ids: Vec<u32> = (0..tokens).map(|i| (i * self.desc.vocab_size / tokens) as u32).collect();
        let mut batch = PackedBatch::default();
        batch.push_at(0, &ids, &vec![0; tokens], self.desc.positions.of(&ids));
        let mut vector = vec![0.0; self.desc.dim()];
        self.submit(batch)?;
        self.collect(&mut vector)?;
        Ok(vector.iter().all(|v| v.is_finite()))
    }

    /// Stages, copies, computes and copies back, without waiting.
    fn enqueue(&mut self, slot: usize, batch: &PackedBatch) -> Called<()> {
        let Resident { kernels, weights, workspace, persistent, slots, device, .. } = &mut *self.resident;
        device.context.bind_to_thread()?;
        let slot = &mut slots[slot];
        let queue = || Queue {
            stream: &device.compute,
            kernels,
            table: &self.table,
            products: &self.products,
            partials: workspace.partials.all(),
            follows_kernel: Cell::new(false),
        };
        let one_launch =
            persistent.as_ref().and_then(|persistent| Some((persistent, persistent.team(batch)?)));
        if let Some((persistent, team)) = one_launch {
            let shape = slot.plan_one_launch(batch);
            let route = if device.maps_host_memory { Route::Mapped } else { Route::InLine };
            let inputs = slot.upload(device, batch, shape, route)?;
            let (cu_seqlens, vectors) = (&batch.cu_seqlens, slot.vectors());
            let count = match team {
                Team::Grid => &mut self.launches.grid,
                Team::Clusters(_) => &mut self.launches.clusters,
            };
            if persistent.launch(&queue(), team, cu_seqlens, &inputs, vectors, batch.normalize)? {
                *count += 1;
                return slot.download(device, result_len(&self.desc, batch));
            }
            device.compute.synchronize()?; // the batch is staged again
        }
        let as_it_is = slot.plan(batch);
        let filled = as_it_is.filled();
        let shaped = as_it_is.tokens <= self.shaped_tokens && filled.fits(self.max_tokens);
        let shape = if shaped { filled } else { as_it_is };
        // a small batch alone has nothing that its copies could go on beside
        let route = if shaped && self.pending.is_empty() { Route::InLine } else { Route::Overlapped };
        let inputs = slot.upload(device, batch, shape, route)?;
        let vectors = slot.vectors();
        let launch = || {
            let queue = queue();
            let forward = Forward {
                queue: &queue,
                desc: &self.desc,
                model: &weights.model,
                workspace,
                inputs: &inputs,
            };
            forward.run(vectors, batch.normalize, batch.token_vectors)
        };
        let as_graph = match shaped && self.graphs {
            true => slot.graphs.launch(shape, &device.compute, launch)?,
            false => launch().map(|()| false)?,
        };
        match as_graph {
            true => self.launches.graph += 1,
            false => self.launches.kernel_by_kernel += 1,
        }
        slot.download(device, result_len(&self.desc, batch))
    }
}

/// Up to which sizes batches go in one launch.
fn persistent_limits(
    table: &TileTable,
    shape: &EncoderShape,
    clusters: Clusters,
    options: &BackendOptions,
) -> Result<PersistentLimits> {
    let possible = shape.persistent && blocks(table, shape) > 0 && !options.batch_invariant;
    let choice = options.persistent_kernel;
    let every = |cluster| PersistentLimits { grid: PERSISTENT_TOKENS, cluster, recorded: false };
    let why_not = match (choice, possible) {
        (PersistentKernel::Never, _) | (PersistentKernel::Auto, false) => return Ok(PersistentLimits::NONE),
        (PersistentKernel::Auto, true) => return Ok(limits(table, shape, clusters, false)),
        (PersistentKernel::Always, true) => return Ok(limits(table, shape, clusters, true)),
        (PersistentKernel::Grid, true) => return Ok(every(0)),
        (PersistentKernel::Clusters, true) if clusters.most > 0 => return Ok(every(PERSISTENT_TOKENS)),
        (PersistentKernel::Clusters, true) => "this GPU has no clusters for it",
        (PersistentKernel::Always | PersistentKernel::Grid | PersistentKernel::Clusters, false) => {
            match options.batch_invariant {
                true => "its bits are not those of larger batches (batch_invariant)",
                false => "it does not compute this model (docs/devices.md, \"One launch\")",
            }
        }
    };
    Err(Error::InvalidOption { name: "persistent_kernel", message: format!("{choice}: {why_not}") })
}

/// Workspace and slots for so many tokens, or for half as many where there is no memory for that, and so on down to one
/// sequence of the model's length.
fn allocate(
    device: &Opened,
    desc: &ModelDesc,
    attention: AttentionKernels,
    wanted: usize,
    weight_bytes: usize,
) -> Result<(usize, Workspace, Vec<Slot>)> {
    let least = desc.longest_sequence();
    let mut tokens = wanted.max(least);
    loop {
        let slots =
            || (0..IN_FLIGHT).map(|_| Slot::new(device, desc, attention, tokens)).collect::<Called<_>>();
        let both = Workspace::new(device, desc, tokens).and_then(|workspace| Ok((workspace, slots()?)));
        match both {
            Ok((workspace, slots)) => return Ok((tokens, workspace, slots)),
            Err(e) if driver::is_out_of_memory(e) && tokens > least => tokens = (tokens / 2).max(least),
            Err(e) => {
                let needed = weight_bytes + workspace_bytes(desc, tokens);
                return Err(out_of_memory(device, e, needed, weight_bytes));
            }
        }
    }
}

/// Floats that a batch gives.
fn result_len(desc: &ModelDesc, batch: &PackedBatch) -> usize {
    match batch.token_vectors {
        true => batch.total_tokens() * desc.hidden_size,
        false => batch.len() * desc.dim(),
    }
}

/// What [`allocate`] takes on the device.
fn workspace_bytes(desc: &ModelDesc, tokens: usize) -> usize {
    Workspace::bytes(desc, tokens) + IN_FLIGHT * Slot::bytes(desc, tokens)
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        let why = if self.fell_back { " (fp16 would overflow)" } else { "" };
        format!("{}, {}{why}", self.resident.device.name, self.precision())
    }

    fn kind(&self) -> String {
        let gpu = &self.resident.device.gpu;
        let (major, minor) = gpu.compute_capability;
        let element = self.table.element();
        if self.batch_invariant {
            // every tile gives the same bits
            format!("cuda sm_{major}{minor} {element} batch-invariant")
        } else {
            let one_launch = match &self.resident.persistent {
                Some(encoder) => format!(", {}", encoder.describe()),
                None => String::new(),
            };
            let (name, sm_count) = (&gpu.name, gpu.sm_count);
            let clusters: String = self.table.clusters().iter().map(|n| format!(" {n}")).collect();
            let clusters = if clusters.is_empty() { clusters } else { format!(", clusters{clusters}") };
            format!(
                "cuda sm_{major}{minor} {element}, {name} with {sm_count} multiprocessors{clusters}{one_launch}"
            )
        }
    }

    fn precision(&self) -> Precision {
        match self.table.element() {
            Element::F16 => Precision::Fp16,
            Element::Bf16 => Precision::Bf16,
        }
    }

    fn capacity(&self) -> Capacity {
        Capacity {
            max_tokens: self.max_tokens,
            in_flight: IN_FLIGHT,
            weight_bytes: self.resident.weights.bytes(),
            workspace_bytes: workspace_bytes(&self.desc, self.max_tokens),
        }
    }

    fn submit(&mut self, batch: PackedBatch) -> Result<()> {
        assert!(self.pending.len() < IN_FLIGHT, "at most {IN_FLIGHT} batches in flight");
        assert!(batch.total_tokens() <= self.max_tokens, "a batch of {} tokens", batch.total_tokens());
        let slot = self.next_slot;
        self.next_slot = (slot + 1) % IN_FLIGHT;
        if !batch.is_empty() {
            self.enqueue(slot, &batch).map_err(|e| self.resident.device.failed(e))?;
        }
        self.pending.push_back((slot, batch));
        Ok(())
    }

    fn gives_token_vectors(&self) -> bool {
        true
    }

    fn collect(&mut self, out: &mut [f32]) -> Result<PackedBatch> {
        let (slot, batch) = self.pending.pop_front().expect("a batch was submitted");
        assert_eq!(out.len(), result_len(&self.desc, &batch), "one vector per sequence or token");
        if !batch.is_empty() {
            let flops = batch.cu_seqlens.windows(2).map(|w| self.desc.flops((w[1] - w[0]) as usize)).sum();
            let Resident { slots, device, .. } = &mut *self.resident;
            let limit = patience::limit(self.patience, &device.gpu, flops);
            if !slots[slot].collect(out, limit).map_err(|e| device.failed(e))? {
                self.hung = true;
                return Err(device.hangs("a batch", limit));
            }
            if let Some(sum) = &mut self.timed
                && let Some(time) = slots[slot].time().map_err(|e| device.failed(e))?
            {
                *sum += time;
            }
            slot::maximum_of_none(&self.desc, &batch, out);
        }
        Ok(batch)
    }

    fn start_timing(&mut self) -> Result<()> {
        let Resident { slots, device, .. } = &mut *self.resident;
        for slot in slots {
            slot.stopwatch = Some(Stopwatch::new(&device.context).map_err(|e| device.failed(e))?);
        }
        self.timed = Some(DeviceTime::default());
        Ok(())
    }

    fn stop_timing(&mut self) -> Option<DeviceTime> {
        self.resident.slots.iter_mut().for_each(|slot| slot.stopwatch = None);
        self.timed.take()
    }

    fn launches(&self) -> Option<Launches> {
        Some(self.launches)
    }

    fn sweep_caches(&mut self) -> Result<usize> {
        let Resident { sweep, device, .. } = &mut *self.resident;
        device.context.bind_to_thread().map_err(|e| device.failed(e))?;
        let bytes = Sweep::bytes(device);
        let sweep = match sweep {
            Some(sweep) => sweep,
            None => sweep.insert(Sweep::new(device).map_err(|e| out_of_memory(device, e, bytes, 0))?),
        };
        if !sweep.run(device, self.patience).map_err(|e| device.failed(e))? {
            self.hung = true;
            return Err(device.hangs("a sweep of its cache", self.patience));
        }
        Ok(bytes)
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        if self.hung {
            return;
        }
        self.resident.device.settle();
        // SAFETY: dropped once, here, and not used again
        unsafe { ManuallyDrop::drop(&mut self.resident) };
    }
}
