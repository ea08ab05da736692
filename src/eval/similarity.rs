//! How alike two vectors are, in f64; larger is more alike.

/// The measures that the STS literature reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Measure {
    /// a·b / (‖a‖ ‖b‖); 0 if either is 0.
    Cosine,
    /// −Σ |a − b|
    Manhattan,
    /// −‖a − b‖
    Euclidean,
    /// a·b
    Dot,
}

impl Measure {
    pub(crate) const ALL: [Self; 4] = [Self::Cosine, Self::Manhattan, Self::Euclidean, Self::Dot];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cosine => "cosine",
            Self::Manhattan => "manhattan",
            Self::Euclidean => "euclidean",
            Self::Dot => "dot",
        }
    }

    /// # Panics
    /// If the vectors differ in length.
    pub(crate) fn of(self, a: &[f32], b: &[f32]) -> f64 {
        assert_eq!(a.len(), b.len(), "vectors of one length");
        let pairs = a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        match self {
            Self::Cosine => {
                let (mut aa, mut bb, mut ab) = (0.0, 0.0, 0.0);
                for (a, b) in pairs {
                    aa += a * a;
                    bb += b * b;
                    ab += a * b;
                }
                // one root: √(x²) is x to the bit, so that equal vectors have 1 and not 1 ± an ulp, whose order
                // among themselves would be noise in a rank correlation
                let norms = (aa * bb).sqrt();
                if norms > 0.0 { ab / norms } else { 0.0 }
            }
            Self::Manhattan => -pairs.map(|(a, b)| (a - b).abs()).sum::<f64>(),
            Self::Euclidean => -pairs.map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt(),
            Self::Dot => pairs.map(|(a, b)| a * b).sum(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Measure;

    #[test]
    fn measures_are_the_formulas() {
        let (a, b) = ([3.0, 4.0, 0.0], [0.0, 4.0, -3.0]);
        let got = Measure::ALL.map(|m| m.of(&a, &b));
        for (got, want) in got.into_iter().zip([16.0 / 25.0, -6.0, -18f64.sqrt(), 16.0]) {
            assert!((got - want).abs() < 1e-15, "{got} {want}");
        }
    }

    #[test]
    fn cosine_of_equal_vectors_is_one_to_the_bit() {
        for n in 1..200u32 {
            let v: Vec<f32> = (0..n).map(|i| ((i * 7919 + n) % 1009) as f32 / 777.0 - 0.6).collect();
            assert_eq!(Measure::Cosine.of(&v, &v), 1.0, "{n} components");
        }
    }

    #[test]
    fn cosine_at_zero_is_zero() {
        assert_eq!(Measure::Cosine.of(&[0.0, 0.0], &[1.0, 2.0]), 0.0);
    }
}
