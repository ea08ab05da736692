//! L-BFGS: the minimum of a smooth convex function from its gradients.
//!
//! Nocedal & Wright, Numerical Optimization, 2nd edition, algorithms 7.4 and 7.5, with a bisection for the weak
//! Wolfe conditions (Lewis & Overton 2013, algorithm 2.6), which a convex function always has a step for.
//! In f64 and deterministic.
//!
//! Why our own: the search direction is 30 lines, nearly all the time goes into the gradient, which is ours
//! either way, and of the libraries `argmin` with its vector traits would bring 32 crates and
//! `linfa-logistic` 57.

/// Pairs of steps and gradient changes that stand for the curvature; scipy's default.
const MEMORY: usize = 10;
/// Nocedal & Wright's constants for quasi-Newton methods.
const SUFFICIENT_DECREASE: f64 = 1e-4;
const CURVATURE: f64 = 0.9;
const MAX_TRIALS: usize = 40;

/// Moves `x` to where the gradient's largest component is at most `tolerance`. `evaluate` gives the value
/// at a point and writes the gradient there. Returns the iterations taken; `max_iterations` of them, or a
/// line on which rounding leaves nothing to gain, end it early.
pub(crate) fn minimize(
    x: &mut Vec<f64>,
    tolerance: f64,
    max_iterations: usize,
    mut evaluate: impl FnMut(&[f64], &mut [f64]) -> f64,
) -> usize {
    let n = x.len();
    let mut gradient = vec![0.0; n];
    let mut value = evaluate(x, &mut gradient);
    let (mut trial, mut trial_gradient) = (vec![0.0; n], vec![0.0; n]);
    // (step, gradient change, 1 / their product), oldest first
    let mut history: Vec<(Vec<f64>, Vec<f64>, f64)> = Vec::new();
    for iteration in 0..max_iterations {
        if gradient.iter().all(|g| g.abs() <= tolerance) {
            return iteration;
        }
        let direction = direction(&gradient, &history);
        let slope = dot(&direction, &gradient);
        // the first step has no curvature to go by
        let mut step = if history.is_empty() { 1.0 / dot(&gradient, &gradient).sqrt() } else { 1.0 };
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut found = false;
        for _ in 0..MAX_TRIALS {
            trial.iter_mut().zip(&*x).zip(&direction).for_each(|((t, x), d)| *t = x + step * d);
            let trial_value = evaluate(&trial, &mut trial_gradient);
            if trial_value > value + SUFFICIENT_DECREASE * step * slope {
                high = step;
            } else if dot(&direction, &trial_gradient) < CURVATURE * slope {
                low = step;
            } else {
                value = trial_value;
                found = true;
                break;
            }
            step = if high.is_finite() { (low + high) / 2.0 } else { 2.0 * step };
        }
        if !found {
            return iteration;
        }
        let moved: Vec<f64> = trial.iter().zip(&*x).map(|(t, x)| t - x).collect();
        let change: Vec<f64> = trial_gradient.iter().zip(&gradient).map(|(t, g)| t - g).collect();
        // above 0 by the curvature condition
        let curvature = dot(&moved, &change);
        if history.len() == MEMORY {
            history.remove(0);
        }
        history.push((moved, change, 1.0 / curvature));
        std::mem::swap(x, &mut trial);
        std::mem::swap(&mut gradient, &mut trial_gradient);
    }
    max_iterations
}

/// −H g, with H from the history (the two-loop recursion).
fn direction(gradient: &[f64], history: &[(Vec<f64>, Vec<f64>, f64)]) -> Vec<f64> {
    let mut q: Vec<f64> = gradient.iter().map(|g| -g).collect();
    let mut alphas = Vec::with_capacity(history.len());
    for (moved, change, scale) in history.iter().rev() {
        let alpha = scale * dot(moved, &q);
        add(&mut q, -alpha, change);
        alphas.push(alpha);
    }
    if let Some((_, change, scale)) = history.last() {
        let initial = 1.0 / (scale * dot(change, change));
        q.iter_mut().for_each(|v| *v *= initial);
    }
    for ((moved, change, scale), alpha) in history.iter().zip(alphas.into_iter().rev()) {
        let beta = scale * dot(change, &q);
        add(&mut q, alpha - beta, moved);
    }
    q
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &mut [f64], factor: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += factor * b);
}

#[cfg(test)]
mod tests {
    use super::minimize;

    #[test]
    fn rosenbrock_is_minimized() {
        // not convex, and the standard test all the same: minimum 0 at (1, 1)
        let mut x = vec![-1.2, 1.0];
        let iterations = minimize(&mut x, 1e-9, 200, |x, g| {
            let (a, b) = (1.0 - x[0], x[1] - x[0] * x[0]);
            g[0] = -2.0 * a - 400.0 * x[0] * b;
            g[1] = 200.0 * b;
            a * a + 100.0 * b * b
        });
        assert!(iterations < 60, "{iterations} iterations");
        assert!(x.iter().all(|v| (v - 1.0).abs() < 1e-8), "{x:?}");
    }

    #[test]
    fn a_stretched_quadratic_is_minimized() {
        let scales: Vec<f64> = (0..50).map(|i| 10f64.powf(f64::from(i) / 12.0)).collect();
        let mut x = vec![1.0; 50];
        minimize(&mut x, 1e-8, 1000, |x, g| {
            g.iter_mut().zip(x).zip(&scales).for_each(|((g, x), s)| *g = s * (x - 3.0));
            x.iter().zip(&scales).map(|(x, s)| s * (x - 3.0).powi(2) / 2.0).sum()
        });
        assert!(x.iter().all(|v| (v - 3.0).abs() < 1e-7), "{x:?}");
    }

    #[test]
    fn the_minimum_is_left_alone() {
        let mut x = vec![2.0];
        let iterations = minimize(&mut x, 1e-9, 10, |x, g| {
            g[0] = x[0] - 2.0;
            (x[0] - 2.0).powi(2) / 2.0
        });
        assert_eq!((iterations, x), (0, vec![2.0]));
    }
}
