//! The CUDA kernels as the host sees them: the image, which kernel computes what, and what that costs.
//!
//! `device/` talks to the driver, and is there with the `cuda` feature. The rest is what a launcher needs to know before it
//! does, and what `berthier bench costs` prints where there is no GPU. The kernels are in `kernels/`, described in
//! `kernels/README.md`.

pub mod costs;
#[cfg_attr(not(feature = "cuda"), path = "absent.rs")]
mod device;
mod estimate;
mod gpu;
mod image;
pub mod persistent;
mod recorded;
mod tiles;
mod work_list;

pub(crate) use device::{devices, open};
pub use estimate::{Bound, Estimate, LAUNCH_US};
pub use gpu::{Attributes, Gpu, Multiprocessor};
pub use image::{Kernel, Manifest, Usage, fatbin};
pub use recorded::RecordedTables;
pub use tiles::{
    Element, EpilogueKind, GEMM_TILES, Gemm, GemmLaunch, GemmTile, Multiplier, ROW_SIZES, ReduceLaunch,
    RowLaunch, SPLITK_REDUCE, TIE, TileTable,
};
pub use work_list::{
    ATTENTION_TILES, AttentionLaunch, AttentionShape, AttentionTile, Entry, SHORT_TOKENS, attention,
};
