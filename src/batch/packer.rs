//! Which sequences go together: sorted by length, cut by a token budget.

use std::cmp::Reverse;
use std::ops::Range;

/// The order in which sequences are computed, and where the batches are cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Indices into the caller's sequences, longest first; equal lengths keep their order. `[n]`
    pub order: Vec<usize>,
    /// Ranges of `order`, each a batch of at most the budget. Never empty ranges.
    pub batches: Vec<Range<usize>>,
}

/// Plans batches of at most `max_tokens` for sequences of the given lengths.
///
/// The total is divided evenly over the fewest batches that may hold it, so that no small remainder is left
/// to run alone. A sequence longer than the budget gets a batch of its own.
pub fn pack(seqlens: &[usize], max_tokens: usize) -> Plan {
    let mut plan = Plan::default();
    plan.pack(seqlens.len(), |i| seqlens[i], max_tokens);
    plan
}

impl Plan {
    /// As [`pack`], for `count` sequences of lengths `seqlen(i)`, in this plan's memory.
    pub fn pack(&mut self, count: usize, seqlen: impl Fn(usize) -> usize, max_tokens: usize) {
        let Self { order, batches } = self;
        order.clear();
        order.extend(0..count);
        // in place: with the index there are no equals whose order would take memory to keep
        order.sort_unstable_by_key(|&i| (Reverse(seqlen(i)), i));

        let total: usize = order.iter().map(|&i| seqlen(i)).sum();
        let even = total.div_ceil(total.div_ceil(max_tokens.max(1)).max(1));
        batches.clear();
        let (mut start, mut tokens) = (0, 0);
        for (at, &i) in order.iter().enumerate() {
            let full = tokens >= even || tokens + seqlen(i) > max_tokens;
            if at > start && full {
                batches.push(start..at);
                (start, tokens) = (at, 0);
            }
            tokens += seqlen(i);
        }
        if start < order.len() {
            batches.push(start..order.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pack_sorts_longest_first_and_keeps_order_among_equals() {
        assert_eq!(pack(&[3, 5, 3, 9], 100).order, [3, 1, 0, 2]);
    }

    #[test]
    fn pack_at_the_budget_is_one_batch() {
        assert_eq!(pack(&[4, 4], 8).batches.as_slice(), std::slice::from_ref(&(0..2)));
        assert_eq!(pack(&[4, 5], 8).batches, [0..1, 1..2]);
    }

    #[test]
    fn pack_leaves_no_small_remainder() {
        // 11 tokens in budgets of 10 would leave 1: two of 6 and 5 instead
        assert_eq!(pack(&[1; 11], 10).batches, [0..6, 6..11]);
    }

    #[test]
    fn pack_gives_a_batch_to_a_sequence_over_the_budget() {
        assert_eq!(pack(&[1, 20, 1], 10).batches, [0..1, 1..3]);
    }

    #[test]
    fn pack_of_nothing_is_nothing() {
        assert_eq!(pack(&[], 10), Plan::default());
    }

    proptest! {
        #[test]
        fn prop_pack_places_each_sequence_once_within_the_budget(
            seqlens in prop::collection::vec(1usize..40, 0..200),
            max_tokens in 40usize..300,
        ) {
            let plan = pack(&seqlens, max_tokens);
            let mut seen = plan.order.clone();
            seen.sort_unstable();
            prop_assert_eq!(seen, (0..seqlens.len()).collect::<Vec<_>>());
            let mut next = 0;
            for b in &plan.batches {
                prop_assert_eq!(b.start, next);
                prop_assert!(b.end > b.start);
                next = b.end;
                let tokens: usize = plan.order[b.clone()].iter().map(|&i| seqlens[i]).sum();
                prop_assert!(tokens <= max_tokens);
            }
            prop_assert_eq!(next, seqlens.len());
        }
    }
}
