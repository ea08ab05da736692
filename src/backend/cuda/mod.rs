//! The CUDA kernels as the host sees them: the image, which kernel computes what, and what that costs.
//!
//! Nothing here talks to a driver: it is what a launcher needs to know before it does, and what `berthier bench costs`
//! prints where there is no GPU. The kernels are in `kernels/`, described in `kernels/README.md`.

pub mod costs;
#[cfg(feature = "cuda")]
mod device;
mod estimate;
mod gpu;
mod image;
mod tiles;
mod work_list;

#[cfg(feature = "cuda")]
pub(crate) use device::{CudaBackend, devices};
pub use estimate::{Bound, Estimate, LAUNCH_US};
pub use gpu::{Attributes, Gpu, Multiprocessor};
pub use image::{Kernel, Manifest, Usage, fatbin};
pub use tiles::{
    Element, EpilogueKind, GEMM_TILES, Gemm, GemmLaunch, GemmTile, ROW_SIZES, ReduceLaunch, RowLaunch,
    SPLITK_REDUCE, TIE, TileTable,
};
pub use work_list::{ATTENTION_TILES, AttentionLaunch, AttentionTile, Entry, SHORT_TOKENS, attention};
