//! The kernels for `benches/cpu_kernels.rs`. No part of the library's interface.
