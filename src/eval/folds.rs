//! Cross-validation folds that keep the classes' shares.

use super::SplitMix64;

/// The fold of each sample: its index among the samples of its own class, modulo `folds`. With a seed the
/// samples of a class are shuffled first; without, they are in the order given.
pub(crate) fn modulo_folds(labels: &[u32], folds: usize, seed: Option<u64>) -> Vec<usize> {
    let classes = labels.iter().max().map_or(0, |&c| c as usize + 1);
    let mut members = vec![Vec::new(); classes];
    for (i, &label) in labels.iter().enumerate() {
        members[label as usize].push(i);
    }
    let mut random = seed.map(SplitMix64::new);
    let mut fold = vec![0; labels.len()];
    for class in &mut members {
        if let Some(random) = &mut random {
            random.shuffle(class);
        }
        class.iter().enumerate().for_each(|(rank, &i)| fold[i] = rank % folds);
    }
    fold
}

#[cfg(test)]
mod tests {
    use super::modulo_folds;

    #[test]
    fn classes_are_dealt_out_evenly() {
        let labels = [0, 1, 0, 0, 1, 0, 2];
        assert_eq!(modulo_folds(&labels, 2, None), [0, 0, 1, 0, 1, 1, 0]);
        let labels: Vec<u32> = (0..103).map(|i| u32::from(i % 3 == 0)).collect();
        for seed in [None, Some(1)] {
            let folds = modulo_folds(&labels, 10, seed);
            for class in [0, 1] {
                let sizes: Vec<usize> = (0..10)
                    .map(|f| labels.iter().zip(&folds).filter(|&(&l, &g)| l == class && g == f).count())
                    .collect();
                assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1, "{sizes:?}");
            }
        }
    }

    #[test]
    fn a_seed_decides_the_folds() {
        let labels = [0; 50];
        assert_eq!(modulo_folds(&labels, 5, Some(7)), modulo_folds(&labels, 5, Some(7)));
        assert_ne!(modulo_folds(&labels, 5, Some(7)), modulo_folds(&labels, 5, Some(8)));
        assert!(modulo_folds(&[], 5, Some(7)).is_empty());
    }
}
