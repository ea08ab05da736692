//! The best few of many scores.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// A row and its score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Hit {
    pub(crate) row: usize,
    pub(crate) score: f32,
}

/// As the heap has it: the greatest is the worst hit, so that it is the one at hand.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Worst(Hit);

impl Eq for Worst {}

impl Ord for Worst {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.score.total_cmp(&self.0.score).then(self.0.row.cmp(&other.0.row))
    }
}

impl PartialOrd for Worst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Keeps the `k` best hits of those it is offered; of equal scores the lower rows.
#[derive(Debug)]
pub(crate) struct Top {
    k: usize,
    heap: BinaryHeap<Worst>,
}

impl Top {
    pub(crate) fn new(k: usize) -> Self {
        Self { k, heap: BinaryHeap::with_capacity(k.min(1 << 10)) }
    }

    /// NaN is never kept.
    #[inline]
    pub(crate) fn offer(&mut self, hit: Hit) {
        if self.heap.len() < self.k {
            if !hit.score.is_nan() {
                self.heap.push(Worst(hit));
            }
        } else if let Some(mut worst) = self.heap.peek_mut()
            && hit.score >= worst.0.score
            && Worst(hit) < *worst
        {
            *worst = Worst(hit);
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        other.heap.into_iter().for_each(|Worst(hit)| self.offer(hit));
    }

    /// Best first.
    pub(crate) fn into_sorted(self) -> Vec<Hit> {
        self.heap.into_sorted_vec().into_iter().map(|Worst(hit)| hit).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_kept_and_ties_go_to_the_lower_row() {
        let scores = [1.0, 3.0, f32::NAN, 3.0, 2.0, 3.0, f32::INFINITY, 0.0];
        let rows = |k: usize| -> Vec<usize> {
            let mut top = Top::new(k);
            // offered backwards, so that ties come in the wrong order
            for (row, &score) in scores.iter().enumerate().rev() {
                top.offer(Hit { row, score });
            }
            top.into_sorted().iter().map(|h| h.row).collect()
        };
        assert_eq!(rows(3), [6, 1, 3]);
        assert_eq!(rows(100), [6, 1, 3, 5, 4, 0, 7]);
        assert!(rows(0).is_empty());
    }
}
