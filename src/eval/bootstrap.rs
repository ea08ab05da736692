//! Paired bootstrap: how far a difference of two scores may be chance of the data.
//!
//! Efron & Tibshirani, An Introduction to the Bootstrap (1993), percentile intervals. Both systems are scored
//! on the same resamples, so that what they share cancels.

use super::quantile;
use berthier::Threads;

/// Steele, Lea & Flood (2014): a counter through a mixing function. Not for secrets.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64(u64);

impl SplitMix64 {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, by the high half of a product; off uniform by less than n / 2⁶⁴.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    /// Fisher and Yates's shuffle.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

/// A difference and where it may lie.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Interval {
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// The middle 95 % of `difference` over resamples of `n` items with replacement. It is given how often each
/// item is there.
pub(crate) fn paired_interval(
    n: usize,
    resamples: usize,
    seed: u64,
    threads: &Threads,
    difference: impl Fn(&[u32]) -> f64 + Send + Sync,
) -> Interval {
    // a generator for each resample, so that the result does not hang on the threads
    let mut seeds = SplitMix64::new(seed);
    let seeds: Vec<u64> = (0..resamples).map(|_| seeds.next()).collect();
    let mut differences = threads.map(&seeds, |&seed| {
        let mut random = SplitMix64::new(seed);
        let mut counts = vec![0u32; n];
        (0..n).for_each(|_| counts[random.below(n)] += 1);
        difference(&counts)
    });
    // a resample without spread has no correlation
    differences.retain(|d| !d.is_nan());
    differences.sort_by(f64::total_cmp);
    Interval { low: quantile(&differences, 0.025), high: quantile(&differences, 0.975) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::num::NonZeroUsize;

    #[test]
    fn splitmix_matches_the_published_sequence() {
        // the reference implementation's first numbers for seed 1234567 (prng.di.unimi.it)
        let mut random = SplitMix64::new(1_234_567);
        let first = [(); 3].map(|()| random.next());
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn interval_of_a_mean_is_that_of_the_normal_approximation() {
        // 400 items, half 0 and half 1: the mean is 0.5, its standard error 0.025
        let items: Vec<f64> = (0..400).map(|i| f64::from(i % 2)).collect();
        let mean = |counts: &[u32]| {
            items.iter().zip(counts).map(|(v, &c)| v * f64::from(c)).sum::<f64>() / items.len() as f64
        };
        let threads = |n| Threads::new(NonZeroUsize::new(n)).unwrap();
        let interval = paired_interval(400, 4000, 1, &threads(1), mean);
        assert!((interval.low - (0.5 - 1.96 * 0.025)).abs() < 0.004, "{interval:?}");
        assert!((interval.high - (0.5 + 1.96 * 0.025)).abs() < 0.004, "{interval:?}");
        assert_eq!(interval, paired_interval(400, 4000, 1, &threads(2), mean));
        let fine =
            |counts: &[u32]| counts.iter().enumerate().map(|(i, &c)| (i * i) as f64 * f64::from(c)).sum();
        let of_seed = |seed| paired_interval(400, 20, seed, &threads(1), fine);
        assert_ne!(of_seed(1), of_seed(2));
    }

    #[test]
    fn shuffle_keeps_the_items() {
        let mut items: Vec<u32> = (0..100).collect();
        SplitMix64::new(3).shuffle(&mut items);
        assert_ne!(items, (0..100).collect::<Vec<_>>());
        items.sort_unstable();
        assert_eq!(items, (0..100).collect::<Vec<_>>());
    }
}
