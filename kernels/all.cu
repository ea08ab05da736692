// all.cu - every kernel that ships, as the one translation unit of kernels/prebuilt/berthier.fatbin.
// conformance.cu is not among them: those kernels test the wrappers, and have an image of their own.
#include "embed_layernorm.cu"
#include "gemm.cu"
#include "gemm_hopper.cu"
#include "gemm_few_rows.cu"
#include "folded_layernorm.cu"
#include "attention.cu"
#include "attention_hopper.cu"
#include "residual_layernorm.cu"
#include "rotary.cu"
#include "first_rows.cu"
#include "pool.cu"
#include "persistent_encoder.cu"
