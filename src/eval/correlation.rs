//! Pearson's and Spearman's correlation, also of resampled data.
//!
//! As `scipy.stats.pearsonr` and `spearmanr`: in f64, ties share the mean of their ranks, and a side without
//! spread gives NaN.

/// Pearson's r.
///
/// # Panics
/// If the sides differ in length.
pub(crate) fn pearson(x: &[f64], y: &[f64]) -> f64 {
    assert_eq!(x.len(), y.len(), "pairs");
    moments(x.iter().zip(y).map(|(&x, &y)| (x, y, 1.0)))
}

/// Pearson's r where pair `i` is there `counts[i]` times.
///
/// # Panics
/// If the lengths differ.
pub(crate) fn pearson_counted(x: &[f64], y: &[f64], counts: &[u32]) -> f64 {
    assert_eq!((x.len(), x.len()), (y.len(), counts.len()), "pairs");
    moments(x.iter().zip(y).zip(counts).map(|((&x, &y), &count)| (x, y, f64::from(count))))
}

/// In two passes: the textbook's one-pass formula cancels.
fn moments(pairs: impl Iterator<Item = (f64, f64, f64)> + Clone) -> f64 {
    let (mut n, mut sum_x, mut sum_y) = (0.0, 0.0, 0.0);
    for (x, y, count) in pairs.clone() {
        n += count;
        sum_x += count * x;
        sum_y += count * y;
    }
    let (mean_x, mean_y) = (sum_x / n, sum_y / n);
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y, count) in pairs {
        let (x, y) = (x - mean_x, y - mean_y);
        xx += count * x * x;
        yy += count * y * y;
        xy += count * x * y;
    }
    (xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0)
}

/// Spearman's ρ: Pearson's r of the ranks.
///
/// # Panics
/// If the sides differ in length.
pub(crate) fn spearman(x: &[f64], y: &[f64]) -> f64 {
    pearson(&Ranked::new(x).ranks(), &Ranked::new(y).ranks())
}

/// Values sorted once, so that the ranks of any resample cost no further sort.
#[derive(Debug, Clone)]
pub(crate) struct Ranked {
    /// Indices by rising value.
    order: Vec<u32>,
    /// Where each run of equal values ends in `order`.
    ends: Vec<u32>,
}

impl Ranked {
    /// # Panics
    /// From 2³² values on.
    pub(crate) fn new(values: &[f64]) -> Self {
        let n = u32::try_from(values.len()).expect("fewer than 2^32 pairs");
        let mut order: Vec<u32> = (0..n).collect();
        let value = |i: u32| values[i as usize];
        order.sort_by(|&a, &b| value(a).total_cmp(&value(b)));
        let mut ends = Vec::new();
        for run in order.chunk_by(|&a, &b| value(a) == value(b)) {
            ends.push(ends.last().copied().unwrap_or(0) + run.len() as u32);
        }
        Self { order, ends }
    }

    /// Ranks from 1; equal values share the mean of their ranks.
    pub(crate) fn ranks(&self) -> Vec<f64> {
        self.ranks_counted(&vec![1; self.order.len()])
    }

    /// The ranks where value `i` is there `counts[i]` times; those that are not there have some rank, which
    /// does not matter.
    ///
    /// # Panics
    /// If there is not one count for each value.
    pub(crate) fn ranks_counted(&self, counts: &[u32]) -> Vec<f64> {
        assert_eq!(counts.len(), self.order.len(), "a count for each value");
        let mut ranks = vec![0.0; counts.len()];
        let (mut start, mut before) = (0, 0u64);
        for &end in &self.ends {
            let run = &self.order[start..end as usize];
            let count: u64 = run.iter().map(|&i| u64::from(counts[i as usize])).sum();
            // ranks before + 1 to before + count
            let mean = before as f64 + (count as f64 + 1.0) / 2.0;
            run.iter().for_each(|&i| ranks[i as usize] = mean);
            before += count;
            start = end as usize;
        }
        ranks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_ties_are_averaged() {
        assert_eq!(Ranked::new(&[3.0, 1.0, 3.0, 2.0]).ranks(), [3.5, 1.0, 3.5, 2.0]);
        assert_eq!(Ranked::new(&[5.0, 5.0, 5.0]).ranks(), [2.0, 2.0, 2.0]);
        assert_eq!(Ranked::new(&[0.0, -0.0, -1.0]).ranks(), [2.5, 2.5, 1.0]);
        assert!(Ranked::new(&[]).ranks().is_empty());
    }

    #[test]
    fn pearson_matches_anscombe() {
        // Anscombe (1973), Graphs in Statistical Analysis: sets I and IV; numpy.corrcoef to all digits
        let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
        let y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68];
        assert!((pearson(&x, &y) - 0.816_420_516_344_84).abs() < 1e-12);
        let x = [8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 8.0, 19.0, 8.0, 8.0, 8.0];
        let y = [6.58, 5.76, 7.71, 8.84, 8.47, 7.04, 5.25, 12.50, 5.56, 7.91, 6.89];
        assert!((pearson(&x, &y) - 0.816_521_436_888_50).abs() < 1e-12);
    }

    #[test]
    fn spearman_matches_scipy() {
        // the example of scipy.stats.spearmanr's documentation, and one with ties on both sides
        assert!(
            (spearman(&[1.0, 2.0, 3.0, 4.0, 5.0], &[5.0, 6.0, 7.0, 8.0, 7.0]) - 0.820_782_681_668_123_3)
                .abs()
                < 1e-14
        );
        let (x, y) = ([1.0, 2.0, 2.0, 3.0, 3.0, 3.0], [2.0, 1.0, 2.0, 4.0, 4.0, 3.0]);
        assert!((spearman(&x, &y) - 0.810_443_200_858_753_4).abs() < 1e-14, "{}", spearman(&x, &y));
    }

    #[test]
    fn a_side_without_spread_has_no_correlation() {
        assert!(spearman(&[1.0, 1.0], &[1.0, 2.0]).is_nan());
        assert!(pearson(&[], &[]).is_nan());
    }

    #[test]
    fn counted_equals_repeated() {
        let (x, y) = ([0.3, -1.0, 0.3, 2.0, 5.0], [1.0, 1.0, 4.0, 3.0, 2.0]);
        let counts = [2, 0, 1, 3, 1];
        let repeat = |v: &[f64]| -> Vec<f64> {
            v.iter().zip(counts).flat_map(|(&v, n)| std::iter::repeat_n(v, n as usize)).collect()
        };
        assert!((pearson_counted(&x, &y, &counts) - pearson(&repeat(&x), &repeat(&y))).abs() < 1e-14);
        let ranks = |v: &[f64]| Ranked::new(v).ranks_counted(&counts);
        let counted = pearson_counted(&ranks(&x), &ranks(&y), &counts);
        assert!((counted - spearman(&repeat(&x), &repeat(&y))).abs() < 1e-14);
    }
}
