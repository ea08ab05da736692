//! The maths of evaluation: numbers in, numbers out.
//!
//! Knows nothing of models, files or the terminal; of the library it names `Threads` only. Everything here is
//! deterministic: the same numbers, seeds and any number of threads give the same result.

mod bootstrap;
mod correlation;
mod folds;
mod lbfgs;
mod logistic;
mod ranking;
mod similarity;

pub(crate) use bootstrap::{Interval, SplitMix64, paired_interval};
pub(crate) use correlation::{Ranked, pearson, pearson_counted, spearman};
pub(crate) use folds::modulo_folds;
pub(crate) use logistic::{Classifier, Samples, fit};
pub(crate) use ranking::{average_precision, ndcg, recall, reciprocal_rank};
pub(crate) use similarity::Measure;

/// The value that a share of the values does not exceed (nearest rank). `sorted` rises; NaN for no values.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).or(sorted.last()).copied().unwrap_or(f64::NAN)
}

/// NaN for no values.
pub(crate) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, n) = values.into_iter().fold((0.0, 0u32), |(sum, n), v| (sum + v, n + 1));
    sum / f64::from(n)
}

#[cfg(test)]
mod tests {
    use super::{mean, quantile};

    #[test]
    fn quantile_is_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            [0.0, 0.001, 0.05, 0.5, 0.999, 1.0].map(|s| quantile(&values, s)),
            [1.0, 1.0, 5.0, 50.0, 100.0, 100.0]
        );
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn mean_of_nothing_is_nan() {
        assert_eq!(mean([1.0, 2.0, 6.0]), 3.0);
        assert!(mean([]).is_nan());
    }
}
