//! Measures of a ranking against relevance judgements, as trec_eval and BEIR define them.
//!
//! A ranking is given by the gains of what stands at rank 1, 2, …; 0 is not relevant, or not judged.

/// Normalised discounted cumulative gain of the first `k`: Σ gain / log₂(rank + 1), over the best that the
/// judgements allow. `judged` has the gains of all judged items in any order. 0 if none is relevant.
pub(crate) fn ndcg(ranking: &[f64], judged: &[f64], k: usize) -> f64 {
    let dcg = |gains: &[f64]| -> f64 {
        gains.iter().take(k).enumerate().map(|(i, gain)| gain / (i as f64 + 2.0).log2()).sum()
    };
    let mut best = judged.to_vec();
    best.sort_by(|a, b| b.total_cmp(a));
    let ideal = dcg(&best);
    if ideal > 0.0 { dcg(ranking) / ideal } else { 0.0 }
}

/// Mean of the precisions at the ranks of relevant items, over all `relevant` items; those that the ranking
/// does not reach count 0.
pub(crate) fn average_precision(ranking: &[f64], relevant: usize) -> f64 {
    let (mut found, mut sum) = (0.0, 0.0);
    for (i, _) in ranking.iter().enumerate().filter(|(_, gain)| **gain > 0.0) {
        found += 1.0;
        sum += found / (i as f64 + 1.0);
    }
    if relevant > 0 { sum / relevant as f64 } else { 0.0 }
}

/// 1 / rank of the first relevant item among the first `k`, or 0.
pub(crate) fn reciprocal_rank(ranking: &[f64], k: usize) -> f64 {
    ranking.iter().take(k).position(|&gain| gain > 0.0).map_or(0.0, |i| 1.0 / (i as f64 + 1.0))
}

/// The share of the `relevant` items that is among the first `k`.
pub(crate) fn recall(ranking: &[f64], relevant: usize, k: usize) -> f64 {
    let found = ranking.iter().take(k).filter(|gain| **gain > 0.0).count();
    if relevant > 0 { found as f64 / relevant as f64 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ndcg_matches_the_published_example() {
        // Wikipedia, "Discounted cumulative gain": gains 3 2 3 0 1 2, and 3 and 2 not retrieved
        let ranking = [3.0, 2.0, 3.0, 0.0, 1.0, 2.0];
        let judged = [3.0, 2.0, 3.0, 0.0, 1.0, 2.0, 3.0, 2.0];
        assert!((ndcg(&ranking, &judged, 6) - 0.785).abs() < 5e-4);
        assert!((ndcg(&ranking, &ranking, 6) - 0.961).abs() < 5e-4);
        assert_eq!(ndcg(&[0.0, 1.0], &[1.0], 1), 0.0);
        assert_eq!(ndcg(&[1.0], &[], 10), 0.0);
    }

    #[test]
    fn average_precision_matches_the_published_example() {
        // Manning, Raghavan & Schütze, Introduction to Information Retrieval, exercise 8.8 (system 1): the
        // relevant at ranks 1, 3, 9, 10 of 4 relevant
        let mut ranking = [0.0; 10];
        [0, 2, 8, 9].iter().for_each(|&i| ranking[i] = 1.0);
        assert!((average_precision(&ranking, 4) - 0.6).abs() < 1e-12);
        assert!((average_precision(&ranking, 8) - 0.3).abs() < 1e-12);
        assert_eq!(average_precision(&ranking, 0), 0.0);
    }

    #[test]
    fn recall_and_reciprocal_rank_stop_at_k() {
        let ranking = [0.0, 0.0, 1.0, 2.0];
        assert_eq!([2, 3, 4].map(|k| reciprocal_rank(&ranking, k)), [0.0, 1.0 / 3.0, 1.0 / 3.0]);
        assert_eq!([2, 3, 10].map(|k| recall(&ranking, 4, k)), [0.0, 0.25, 0.5]);
    }
}
