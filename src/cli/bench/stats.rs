//! Samples of one quantity, and what is said of them.

use crate::eval::{SplitMix64, quantile};
use serde_json::{Value, json};

/// Resamples of an interval: its ends then vary by less than a tenth of its width.
const RESAMPLES: usize = 2000;

/// Samples of one quantity under one name, by which runs are compared.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Series {
    /// `latency text 16x1`: what, how, at which point.
    pub(super) name: String,
    pub(super) unit: &'static str,
    /// Whether less of it is better; else more.
    pub(super) less_is_better: bool,
    /// In the order in which they were taken.
    pub(super) samples: Vec<f64>,
}

impl Series {
    pub(super) fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "less_is_better": self.less_is_better, "samples": self.samples,
        })
    }
}

pub(super) fn sorted(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values
}

/// The middle value, or the mean of the two in the middle. `sorted` rises and is not empty.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let n = sorted.len();
    (sorted[(n - 1) / 2] + sorted[n / 2]) / 2.0
}

/// The value that a share of the samples does not exceed (nearest rank); none where there are too few samples
/// for one of them to lie beyond it.
pub(super) fn percentile(sorted: &[f64], share: f64) -> Option<f64> {
    // in hundredths of a percent: 0.999 is not a number of floating point
    let beyond = ((1.0 - share) * 1e4).round() / 1e4;
    (sorted.len() as f64 * beyond >= 1.0 - 1e-9).then(|| quantile(sorted, share))
}

/// The ratio of two medians, and the middle 95 % of it over resamples of both runs (Efron & Tibshirani 1993).
/// Within a run samples are taken as independent of each other.
pub(super) fn ratio_of_medians(this: &[f64], that: &[f64]) -> (f64, f64, f64) {
    let (this, that) = (sorted(this.iter().copied()), sorted(that.iter().copied()));
    let mut random = SplitMix64::new(0);
    let mut resampled = |values: &[f64]| {
        let mut indices: Vec<usize> = (0..values.len()).map(|_| random.below(values.len())).collect();
        indices.sort_unstable();
        median(&indices.into_iter().map(|i| values[i]).collect::<Vec<_>>())
    };
    let ratios = sorted((0..RESAMPLES).map(|_| resampled(&this) / resampled(&that)));
    (median(&this) / median(&that), quantile(&ratios, 0.025), quantile(&ratios, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_the_nearest_rank_where_samples_tell() {
        let values = sorted((1..=100).rev().map(f64::from));
        assert_eq!([0.5, 0.9, 0.99].map(|p| percentile(&values, p)), [50.0, 90.0, 99.0].map(Some));
        assert_eq!(percentile(&values, 0.999), None);
        assert_eq!(percentile(&values[..99], 0.99), None);
        assert_eq!(percentile(&[1.0, 2.0], 0.5), Some(1.0));
        let thousand = sorted((1..=1000).map(f64::from));
        assert_eq!(percentile(&thousand, 0.999), Some(999.0));
    }

    #[test]
    fn median_of_an_even_number_is_the_mean_of_two() {
        assert_eq!(median(&[1.0, 2.0, 9.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
    }

    #[test]
    fn ratio_of_medians_has_its_interval_around_it() {
        let that: Vec<f64> = (0..50).map(|i| 100.0 + f64::from(i % 10)).collect();
        let this: Vec<f64> = that.iter().map(|v| v * 2.0).collect();
        let (ratio, low, high) = ratio_of_medians(&this, &that);
        assert!((ratio - 2.0).abs() < 1e-12 && low < ratio && ratio < high, "{low} {ratio} {high}");
        assert!(low > 1.9 && high < 2.1, "{low} {high}");
        assert_eq!(ratio_of_medians(&[3.0], &[2.0]), (1.5, 1.5, 1.5));
        // wider where the samples spread more
        let wild: Vec<f64> = (0..50).map(|i| 100.0 + 10.0 * f64::from(i % 10)).collect();
        let (_, wild_low, wild_high) = ratio_of_medians(&wild, &that);
        assert!(wild_high - wild_low > high / 2.0 - low / 2.0);
    }
}
