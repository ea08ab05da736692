// gemm_tiles.cuh - what gemm.cu and gemm_hopper.cu share: the order of the tiles, and the slab through which sums in the layout of
// the tensor cores' registers come back as rows.
#pragma once
#include "epilogue.cuh"

// ---- which tile a block computes ------------------------------------------------------------------------------------------
// Blocks that run at the same time should form a square of tiles, so that what they read from L2 is least: 108 to 148
// blocks as 8 row tiles by 13 to 18 column tiles. Within a group of 8 row tiles the columns advance slowly; weights of an
// encoder (at most 8 MiB) stay in L2 across groups.
constexpr int ROW_TILES_PER_GROUP = 8;

struct TilePlace { int row, column; };
// Which tile a block computes: groups of row tiles, in them column tiles, in these the rows of the group.
DEV TilePlace place_of_block(int block, int row_tiles, int column_tiles) {
  int per_group = ROW_TILES_PER_GROUP * column_tiles, first = block / per_group * ROW_TILES_PER_GROUP;
  int rows = min(ROW_TILES_PER_GROUP, row_tiles - first), in_group = block % per_group;
  return TilePlace{first + in_group % rows, in_group / rows};
}

// ---- fragments to rows ------------------------------------------------------------------------------------------------------
// A slab: some rows of 64 fp32 sums. Column c of row r lies at c ^ 8 (r % 4) ^ 4 (c / 32): then neither the pairs going in
// (4 rows x 8 banks) nor the quads coming out (8 lanes of a row, 8 columns apart) share a bank.
constexpr int SLAB_ROW_BYTES = SEGMENT * 4;
DEV uint32_t slab_swizzle(int row, int column) { return (uint32_t)(column ^ ((row & 3) << 3) ^ ((column & 32) >> 3)) * 4; }
DEV void load_slab(saddr slab, int row, int column, float (&v)[VECTOR]) {
  saddr at = slab + row * SLAB_ROW_BYTES + slab_swizzle(row, column);
  u128 low = ld_shared_128(at), high = ld_shared_128(at ^ 16);
  v[0] = f32_from_bits(low.x); v[1] = f32_from_bits(low.y); v[2] = f32_from_bits(low.z); v[3] = f32_from_bits(low.w);
  v[4] = f32_from_bits(high.x); v[5] = f32_from_bits(high.y); v[6] = f32_from_bits(high.z); v[7] = f32_from_bits(high.w);
}
