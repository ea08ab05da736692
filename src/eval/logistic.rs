//! Logistic regression with an L2 penalty, as scikit-learn's `LogisticRegression` defines it.
//!
//! Minimises C Σ loss + ½ ‖w‖² with an intercept that is not penalised; two classes with one weight vector,
//! more with a softmax. Features stay f32, everything else is f64.

use super::lbfgs::minimize;

/// On the gradient of the mean loss, as in scikit-learn.
const TOLERANCE: f64 = 1e-6;
const MAX_ITERATIONS: usize = 2000;

/// Features and classes; rows may be picked by index without a copy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Samples<'a> {
    /// `[samples, dim]`
    pub(crate) features: &'a [f32],
    pub(crate) dim: usize,
    /// From 0, below `classes`.
    pub(crate) labels: &'a [u32],
    pub(crate) classes: usize,
}

impl Samples<'_> {
    fn row(&self, i: usize) -> &[f32] {
        &self.features[i * self.dim..(i + 1) * self.dim]
    }
}

/// Weights of a fitted classifier: `outputs` rows of `dim` weights and an intercept.
#[derive(Debug, Clone)]
pub(crate) struct Classifier {
    dim: usize,
    weights: Vec<f64>,
}

impl Classifier {
    /// The class of a feature vector; the first of equals.
    pub(crate) fn predict(&self, features: &[f32]) -> u32 {
        let x: Vec<f64> = features.iter().map(|&v| f64::from(v)).collect();
        let scores: Vec<f64> = self.weights.chunks_exact(self.dim + 1).map(|w| score(w, &x)).collect();
        if let [score] = scores[..] {
            return u32::from(score > 0.0);
        }
        let mut best = 0;
        for (class, score) in scores.iter().enumerate() {
            if *score > scores[best] {
                best = class;
            }
        }
        best as u32
    }

    /// The share of `rows` whose class is predicted.
    pub(crate) fn accuracy(&self, samples: Samples<'_>, rows: &[usize]) -> f64 {
        let right = rows.iter().filter(|&&i| self.predict(samples.row(i)) == samples.labels[i]).count();
        right as f64 / rows.len() as f64
    }
}

/// Fits on `rows` of the samples. `start` may be the solution for another C, which saves iterations and, as
/// the minimum is unique, changes nothing but those.
///
/// # Panics
/// If there are fewer than two classes or no rows.
pub(crate) fn fit(samples: Samples<'_>, rows: &[usize], c: f64, start: Option<&Classifier>) -> Classifier {
    assert!(samples.classes >= 2 && !rows.is_empty(), "something to tell apart");
    let dim = samples.dim;
    let outputs = if samples.classes == 2 { 1 } else { samples.classes };
    let mut weights = start.map_or_else(|| vec![0.0; outputs * (dim + 1)], |s| s.weights.clone());
    let n = rows.len() as f64;
    let penalty = 1.0 / (c * n);
    let mut scores = vec![0.0; outputs];
    let mut x = vec![0.0; dim];
    minimize(&mut weights, TOLERANCE, MAX_ITERATIONS, |weights, gradient| {
        gradient.fill(0.0);
        let mut loss = 0.0;
        for &i in rows {
            // widened once for all classes
            x.iter_mut().zip(samples.row(i)).for_each(|(wide, &x)| *wide = f64::from(x));
            scores.iter_mut().zip(weights.chunks_exact(dim + 1)).for_each(|(s, w)| *s = score(w, &x));
            loss += loss_and_residuals(&mut scores, samples.labels[i] as usize);
            for (gradient, residual) in gradient.chunks_exact_mut(dim + 1).zip(&scores) {
                add(gradient, residual / n, &x);
            }
        }
        let mut norm = 0.0;
        for (gradient, weights) in gradient.chunks_exact_mut(dim + 1).zip(weights.chunks_exact(dim + 1)) {
            for (g, w) in gradient[..dim].iter_mut().zip(&weights[..dim]) {
                *g += penalty * w;
                norm += w * w;
            }
        }
        loss / n + penalty * norm / 2.0
    });
    Classifier { dim, weights }
}

/// Negative log-likelihood of `label`; scores become its gradient: predicted probability − truth.
fn loss_and_residuals(scores: &mut [f64], label: usize) -> f64 {
    if let [score] = scores {
        let truth = label as f64;
        // log(1 + eᶻ) − truth z, without overflow
        let loss = score.max(0.0) - truth * *score + (-score.abs()).exp().ln_1p();
        *score = 1.0 / (1.0 + (-*score).exp()) - truth;
        return loss;
    }
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let at_label = scores[label] - max;
    scores.iter_mut().for_each(|s| *s = (*s - max).exp());
    let sum: f64 = scores.iter().sum();
    scores.iter_mut().for_each(|s| *s /= sum);
    scores[label] -= 1.0;
    sum.ln() - at_label
}

/// Partial sums of a dot product: enough independent ones that the adder's latency does not show.
const LANES: usize = 8;

/// w · x + intercept, the intercept behind the weights.
fn score(weights: &[f64], x: &[f64]) -> f64 {
    let (weights, intercept) = weights.split_at(x.len());
    let mut sums = [0.0; LANES];
    let (w_chunks, w_rest) = weights.as_chunks::<LANES>();
    let (x_chunks, x_rest) = x.as_chunks::<LANES>();
    for (w, x) in w_chunks.iter().zip(x_chunks) {
        for lane in 0..LANES {
            sums[lane] += w[lane] * x[lane];
        }
    }
    let rest: f64 = w_rest.iter().zip(x_rest).map(|(w, x)| w * x).sum();
    sums.iter().sum::<f64>() + rest + intercept[0]
}

/// gradient += residual (x, 1)
fn add(gradient: &mut [f64], residual: f64, x: &[f64]) {
    let (weights, intercept) = gradient.split_at_mut(x.len());
    weights.iter_mut().zip(x).for_each(|(g, x)| *g += residual * x);
    intercept[0] += residual;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fisher's irises, every fifth plant: sepal length and width, petal length and width.
    const IRIS: [([f32; 4], u32); 30] = [
        ([5.1, 3.5, 1.4, 0.2], 0),
        ([5.4, 3.9, 1.7, 0.4], 0),
        ([5.4, 3.7, 1.5, 0.2], 0),
        ([5.7, 4.4, 1.5, 0.4], 0),
        ([5.4, 3.4, 1.7, 0.2], 0),
        ([5.0, 3.0, 1.6, 0.2], 0),
        ([4.8, 3.1, 1.6, 0.2], 0),
        ([5.0, 3.2, 1.2, 0.2], 0),
        ([5.0, 3.5, 1.3, 0.3], 0),
        ([5.1, 3.8, 1.9, 0.4], 0),
        ([7.0, 3.2, 4.7, 1.4], 1),
        ([5.7, 2.8, 4.5, 1.3], 1),
        ([5.0, 2.0, 3.5, 1.0], 1),
        ([6.7, 3.1, 4.4, 1.4], 1),
        ([5.9, 3.2, 4.8, 1.8], 1),
        ([6.6, 3.0, 4.4, 1.4], 1),
        ([5.5, 2.4, 3.8, 1.1], 1),
        ([6.0, 3.4, 4.5, 1.6], 1),
        ([5.5, 2.6, 4.4, 1.2], 1),
        ([5.7, 3.0, 4.2, 1.2], 1),
        ([6.3, 3.3, 6.0, 2.5], 2),
        ([7.6, 3.0, 6.6, 2.1], 2),
        ([6.5, 3.2, 5.1, 2.0], 2),
        ([6.4, 3.2, 5.3, 2.3], 2),
        ([6.9, 3.2, 5.7, 2.3], 2),
        ([7.2, 3.2, 6.0, 1.8], 2),
        ([7.4, 2.8, 6.1, 1.9], 2),
        ([7.7, 3.0, 6.1, 2.3], 2),
        ([6.9, 3.1, 5.4, 2.1], 2),
        ([6.7, 3.0, 5.2, 2.3], 2),
    ];

    // scikit-learn 1.9: LogisticRegression(C=2, tol=1e-10) on the last two classes, weights and intercept
    const SKLEARN_BINARY: [f64; 5] = [
        0.856_627_406_498_425_2,
        0.039_352_494_446_485_59,
        1.982_125_484_510_233_4,
        1.597_817_835_312_445_3,
        -18.484_390_141_905_4,
    ];
    // C=0.5 on all three
    const SKLEARN_MULTI: [f64; 15] = [
        -0.299_977_603_466_176_8,
        0.339_985_593_927_208_6,
        -1.208_780_775_077_418,
        -0.478_242_754_760_648_5,
        5.725_700_112_684_757,
        -0.224_795_118_866_583_65,
        -0.380_402_684_108_164_97,
        0.137_297_964_556_248_7,
        -0.258_346_710_774_215_56,
        3.419_915_116_456_069_3,
        0.524_772_722_332_762_5,
        0.040_417_090_180_957_04,
        1.071_482_810_521_169,
        0.736_589_465_534_863_9,
        -9.145_615_229_140_704,
    ];

    fn samples<'a>(features: &'a [f32], labels: &'a [u32], classes: usize) -> Samples<'a> {
        Samples { features, dim: 4, labels, classes }
    }

    fn irises(classes: u32) -> (Vec<f32>, Vec<u32>, Vec<usize>) {
        let plants: Vec<_> = IRIS.iter().filter(|(_, c)| 3 - classes <= *c).collect();
        let features = plants.iter().flat_map(|(f, _)| *f).collect();
        let labels: Vec<u32> = plants.iter().map(|(_, c)| c - (3 - classes)).collect();
        (features, labels, (0..plants.len()).collect())
    }

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (got, want) in got.iter().zip(want) {
            assert!((got - want).abs() < 1e-4 * want.abs().max(1.0), "{got:?} {want:?}");
        }
    }

    #[test]
    fn two_classes_match_scikit_learn() {
        let (features, labels, rows) = irises(2);
        let fitted = fit(samples(&features, &labels, 2), &rows, 2.0, None);
        close(&fitted.weights, &SKLEARN_BINARY);
        let again = fit(samples(&features, &labels, 2), &rows, 2.0, Some(&fitted));
        assert_eq!(again.weights, fitted.weights, "the minimum is left alone");
        let other = fit(samples(&features, &labels, 2), &rows, 0.25, None);
        close(&fit(samples(&features, &labels, 2), &rows, 2.0, Some(&other)).weights, &SKLEARN_BINARY);
    }

    #[test]
    fn three_classes_match_scikit_learn() {
        let (features, labels, rows) = irises(3);
        let fitted = fit(samples(&features, &labels, 3), &rows, 0.5, None);
        close(&fitted.weights, &SKLEARN_MULTI);
        assert_eq!(fitted.accuracy(samples(&features, &labels, 3), &rows), 1.0);
    }
}
