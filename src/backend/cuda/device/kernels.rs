//! The image on one device: its kernels by name, and how one is launched.
#![allow(unsafe_code, reason = "launches")]

use super::super::image::{Manifest, fatbin};
use super::super::persistent::{PERSISTENT_ENCODER, shared_bytes};
use super::super::tiles::{Element, PORTABLE_CLUSTER, TileTable};
use super::memory::{Called, Slice};
use super::persistent;
use cudarc::driver::sys::{self, CUfunction_attribute as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaStream};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

/// The most parameters that a kernel has (`embed_layernorm`).
const MOST_PARAMETERS: usize = 13;

/// `Epilogue` of `kernels/epilogue.cuh`: 72 bytes, passed by value.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Epilogue {
    pub(super) bias: u64,
    pub(super) residual: u64,
    pub(super) row_stats: u64,
    pub(super) norm_stats: u64,
    pub(super) norm_scale: u64,
    pub(super) norm_shift: u64,
    pub(super) norm_eps: f32,
    pub(super) norm_columns: i32,
    pub(super) norm_target: i32,
    pub(super) activation: i32,
    pub(super) gated: i32,
    pub(super) reserved: i32,
}

const _: () = assert!(size_of::<Epilogue>() == 72 && std::mem::offset_of!(Epilogue, gated) == 64);

/// A parameter of a kernel.
#[derive(Debug, Clone, Copy)]
pub(super) enum Argument {
    Address(u64),
    Int(i32),
    Float(f32),
    Epilogue(Epilogue),
    TensorMap(sys::CUtensorMap),
    Model(persistent::Model),
    Batch(persistent::Batch),
}

/// When the blocks of a launch begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begin {
    AfterPredecessor,
    /// While the kernel before ends, where kernels can (programmatic dependent launch).
    WithPredecessor,
    /// All at once, or the launch fails: they wait for each other (a cooperative launch).
    AllBlocks,
}

/// Blocks of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub(super) blocks: [usize; 2],
    /// Blocks of a cluster, of a kernel that leaves it to its launch, which run at once, or the launch fails; 1: none.
    pub(super) cluster: usize,
}

impl From<[usize; 2]> for Grid {
    fn from(blocks: [usize; 2]) -> Self {
        Self { blocks, cluster: 1 }
    }
}

impl<T> From<Slice<T>> for Argument {
    fn from(slice: Slice<T>) -> Self {
        Self::Address(slice.address())
    }
}

impl From<usize> for Argument {
    fn from(n: usize) -> Self {
        Self::Int(i32::try_from(n).expect("sizes of a launch fit an int: the workspace's limits see to it"))
    }
}

impl From<bool> for Argument {
    fn from(b: bool) -> Self {
        Self::Int(i32::from(b))
    }
}

struct Kernel {
    function: CudaFunction,
    threads: u32,
    /// What it may be launched with.
    most_dynamic_shared: usize,
}

impl Kernel {
    /// What lives as long as the attributes do.
    fn config(
        &self,
        blocks: [usize; 2],
        dynamic_shared: usize,
        stream: sys::CUstream,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: size(blocks[0]),
            gridDimY: size(blocks[1]),
            gridDimZ: 1,
            blockDimX: self.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: size(dynamic_shared),
            hStream: stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: size(attributes.len()),
        }
    }
}

fn size(n: usize) -> u32 {
    u32::try_from(n).expect("grids are as large as a batch's tiles")
}

/// The attribute of a launch in clusters of so many blocks along x.
fn in_clusters_of(blocks: usize) -> sys::CUlaunchAttribute {
    let (x, y, z) = (size(blocks), 1, 1);
    sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue {
            clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y, z },
        },
    }
}

/// The kernels of one element type.
pub(super) struct Kernels {
    /// Whether they wait for the one before, so that they may be launched before it has ended.
    wait: bool,
    /// By their names without the element type's suffix.
    by_name: HashMap<String, Kernel>,
}

impl Kernels {
    /// Loads the image and looks up every kernel that fits on the GPU.
    pub(super) fn load(context: &Arc<CudaContext>, table: &TileTable) -> Called<Self> {
        let module = context.load_module(Ptx::from_binary(fatbin().to_vec()))?;
        let mut by_name = HashMap::new();
        let suffix = match table.element() {
            Element::F16 => "_f16",
            Element::Bf16 => "_bf16",
        };
        for (symbol, kernel) in &Manifest::get().kernels {
            // `_bf16` does not end in `_f16`
            let Some(name) = symbol.strip_suffix(suffix) else { continue };
            if table.blocks_per_sm(name, None) == 0 {
                continue;
            }
            let function = module.load_function(symbol)?;
            let most_dynamic_shared = match name {
                PERSISTENT_ENCODER => shared_bytes(table),
                _ => kernel.dynamic_shared,
            };
            let dynamic_shared = i32::try_from(most_dynamic_shared).unwrap_or(i32::MAX);
            // beyond 48 KiB it has to be asked for
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(attribute, dynamic_shared)?;
            let threads = u32::try_from(kernel.threads).unwrap_or(u32::MAX);
            let kernel = Kernel { function, threads, most_dynamic_shared };
            by_name.insert(name.to_owned(), kernel);
        }
        Ok(Self { wait: Manifest::get().waits_for_predecessor(table.gpu().compute_capability), by_name })
    }

    fn kernel(&self, name: &str) -> &Kernel {
        self.by_name.get(name).unwrap_or_else(|| panic!("{name} is in the image and fits the GPU"))
    }

    /// Clusters of `blocks` blocks of a kernel that the GPU of the current context holds at once; 0 where it does not hold one, or
    /// the driver does not say, or the kernel is not for this GPU.
    pub(super) fn active_clusters(&self, name: &str, blocks: usize) -> usize {
        let Some(kernel) = self.by_name.get(name) else { return 0 };
        let function = kernel.function.cu_function();
        if blocks > PORTABLE_CLUSTER {
            let attribute = FunctionAttribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
            if kernel.function.set_attribute(attribute, 1).is_err() {
                return 0;
            }
        }
        let mut attributes = [in_clusters_of(blocks)];
        let config = kernel.config([blocks, 1], kernel.most_dynamic_shared, null_mut(), &mut attributes);
        let mut clusters = 0;
        // SAFETY: the function is of the current context, and the attributes live until the call is back
        let asked =
            unsafe { sys::cuOccupancyMaxActiveClusters(&raw mut clusters, function, &raw const config) };
        asked.result().map_or(0, |()| usize::try_from(clusters).unwrap_or(0))
    }

    /// Puts a kernel into the stream, whose context is current. What directly follows another kernel should begin while that one
    /// ends: launching costs a small batch more than computing.
    ///
    /// # Safety
    /// The arguments are those that the kernel's header names, in that order; arrays are as long as it says for this grid,
    /// and live until the stream has come past the launch.
    ///
    /// # Panics
    /// If there is no such kernel, or the launch is not one that it allows.
    pub(super) unsafe fn launch(
        &self,
        stream: &CudaStream,
        begin: Begin,
        name: &str,
        Grid { blocks, cluster }: Grid,
        dynamic_shared: usize,
        arguments: &[Argument],
    ) -> Called<()> {
        let kernel = self.kernel(name);
        assert!(
            dynamic_shared <= kernel.most_dynamic_shared,
            "{name}: {dynamic_shared} bytes of shared memory"
        );
        assert!(arguments.len() <= MOST_PARAMETERS, "{name}: {} parameters", arguments.len());
        let mut parameters = [null_mut::<c_void>(); MOST_PARAMETERS];
        for (parameter, argument) in parameters.iter_mut().zip(arguments) {
            *parameter = match argument {
                Argument::Address(value) => (&raw const *value).cast_mut().cast(),
                Argument::Int(value) => (&raw const *value).cast_mut().cast(),
                Argument::Float(value) => (&raw const *value).cast_mut().cast(),
                Argument::Epilogue(value) => (&raw const *value).cast_mut().cast(),
                Argument::TensorMap(value) => (&raw const *value).cast_mut().cast(),
                Argument::Model(value) => (&raw const *value).cast_mut().cast(),
                Argument::Batch(value) => (&raw const *value).cast_mut().cast(),
            };
        }
        let early = (
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        );
        let at_once = (
            sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE,
            sys::CUlaunchAttributeValue { cooperative: 1 },
        );
        let (id, value) = if begin == Begin::AllBlocks { at_once } else { early };
        let wanted = match begin {
            Begin::AfterPredecessor => false,
            Begin::WithPredecessor => self.wait,
            Begin::AllBlocks => true,
        };
        let mut attributes = [sys::CUlaunchAttribute { id, pad: [0; 4], value }, in_clusters_of(cluster)];
        let used = &mut attributes[usize::from(!wanted)..1 + usize::from(cluster > 1)];
        let config = kernel.config(blocks, dynamic_shared, stream.cu_stream(), used);
        let function = kernel.function.cu_function();
        // SAFETY: function and stream are of one context; the arguments are the caller's promise, and the driver copies
        // them before it returns
        let launched = unsafe {
            sys::cuLaunchKernelEx(&raw const config, function, parameters.as_mut_ptr(), null_mut())
        };
        launched.result()
    }
}
