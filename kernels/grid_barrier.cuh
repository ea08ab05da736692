// grid_barrier.cuh - a barrier of all blocks of a cooperative launch, or of those of a cluster, where the hardware has one.
//
// Of a grid: every block has a word of its own in global memory, which
// counts its arrivals, of this launch and of all before: only its block writes it, so no atomic is needed, and nothing is set
// back between launches. Whoever waits looks at all words, one a thread.
//
// words [gridDim.x] uint32, zeros before the first launch. All launches on the same words have the same grid, and each brings
// all its blocks through the same number of arrivals; so at a launch's start all words are equal, and a block finds in its own
// what to count from. They count in turns of 2^32.
//
// What that costs: a fence and a store, then one round of loads from L2 after the last store has got there, and two barriers of the
// block. Lost: a counter that all blocks add to, 132 additions to one address one after another, and an atomic.
// Method: Xiao and Feng, "Inter-block GPU communication via fast barrier synchronization", 2010 (lock-free), without its master.
#pragma once
#include "simt.cuh"

struct GridBarrier {
  uint32_t* words;    // null: of the block's cluster
  uint32_t arrivals;  // this block's, and at that count of all others the barrier is passed
};
DEV GridBarrier cluster_barrier() { return GridBarrier{nullptr, 0}; }
DEV GridBarrier grid_barrier(uint32_t* words) { return GridBarrier{words, ld_acquire_global(words + blockIdx.x)}; }

// What the block's threads have written is known to all that wait.
DEV void arrive_at(GridBarrier& b) {
  b.arrivals++;
  sync_block();  // all of them have written
  if (!b.words) cluster_arrive();
  else if (threadIdx.x == 0) st_release_global(b.words + blockIdx.x, b.arrivals);
}
DEV void wait_at(const GridBarrier& b) {
  if (!b.words) {
    cluster_wait();
    return;
  }
  for (int i = threadIdx.x; i < (int)gridDim.x; i += blockDim.x) wait_global(b.words + i, b.arrivals);
  sync_block();  // each thread has seen some of the words, and all rely on all of them
}
