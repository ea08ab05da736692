//! Vectors to small numbers: int8, uint8 and single bits, as `quantize_embeddings` of sentence-transformers gives them.
//!
//! Knows floats; nothing of models or files.

use crate::error::{Error, Result};

/// Buckets of a byte less one: what a range is divided by.
const STEPS: f32 = 255.0;

/// The least and the greatest value of each component: what int8 and uint8 divide into 256 buckets.
///
/// Taken over vectors that are like those to come, a thousand at least: values outside are clipped.
///
/// ```
/// use berthier::{Quantizer, Ranges};
///
/// let vectors = [0.0, -1.0, 0.5, 1.0]; // [2, 2]
/// let ranges = Ranges::of(&vectors, 2);
/// assert_eq!(ranges.high(), [0.5, 1.0]);
/// // in f32, as in numpy, the highest value falls just short of 255
/// assert_eq!(Quantizer::uint8(ranges).quantize(&vectors, 2), [0, 0, 254, 254]);
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Ranges {
    low: Vec<f32>,
    high: Vec<f32>,
    /// Whether a vector was seen.
    seen: bool,
}

impl Ranges {
    /// Of no vector yet; all 0 until the first is included.
    pub fn new(dim: usize) -> Self {
        Self { low: vec![0.0; dim], high: vec![0.0; dim], seen: false }
    }

    /// Of vectors `[n, dim]` row-major.
    ///
    /// # Panics
    /// As [`include`](Self::include).
    pub fn of(vectors: &[f32], dim: usize) -> Self {
        let mut ranges = Self::new(dim);
        ranges.include(vectors);
        ranges
    }

    /// From bounds that are known, `[dim]` each.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] if the two differ in length, or a bound is not finite or above its other.
    pub fn from_bounds(low: Vec<f32>, high: Vec<f32>) -> Result<Self> {
        let refuse = |message: String| Err(Error::InvalidOption { name: "ranges", message });
        if low.len() != high.len() {
            return refuse(format!("{} lower and {} upper bounds", low.len(), high.len()));
        }
        let good = |(low, high): (&f32, &f32)| low.is_finite() && high.is_finite() && low <= high;
        if let Some(i) = low.iter().zip(&high).position(|bounds| !good(bounds)) {
            return refuse(format!(
                "component {i} from {} to {}: two finite numbers that rise",
                low[i], high[i]
            ));
        }
        Ok(Self { low, high, seen: true })
    }

    /// Widens the ranges by vectors `[n, dim]` row-major, which are finite.
    ///
    /// # Panics
    /// If these are not whole vectors.
    pub fn include(&mut self, vectors: &[f32]) {
        let dim = self.low.len();
        assert!(
            vectors.is_empty() || (dim > 0 && vectors.len().is_multiple_of(dim)),
            "vectors of {dim} components"
        );
        for vector in vectors.chunks_exact(dim.max(1)) {
            if !self.seen {
                self.low.copy_from_slice(vector);
                self.high.copy_from_slice(vector);
                self.seen = true;
            }
            for ((low, high), &v) in self.low.iter_mut().zip(&mut self.high).zip(vector) {
                *low = low.min(v);
                *high = high.max(v);
            }
        }
    }

    /// The least value of each component, `[dim]`.
    pub fn low(&self) -> &[f32] {
        &self.low
    }

    /// The greatest value of each component, `[dim]`.
    pub fn high(&self) -> &[f32] {
        &self.high
    }

    /// Components of a vector.
    pub fn dim(&self) -> usize {
        self.low.len()
    }

    /// What one bucket spans, `[dim]`: 1 where a range is empty.
    fn steps(&self) -> Vec<f32> {
        let step = |(low, high): (&f32, &f32)| match (high - low) / STEPS {
            0.0 => 1.0,
            step => step,
        };
        self.low.iter().zip(&self.high).map(step).collect()
    }
}

/// From f32 components to the bytes of small numbers.
///
/// To the byte what `quantize_embeddings(vectors, precision, ranges=…)` of sentence-transformers gives for the same
/// vectors.
#[derive(Debug, Clone)]
pub struct Quantizer {
    to: To,
    /// Added to each byte, wrapping: signed numbers are the unsigned ones less 128.
    offset: u8,
}

#[derive(Debug, Clone)]
enum To {
    Buckets { ranges: Ranges, steps: Vec<f32> },
    Bits,
}

impl Quantizer {
    /// One signed byte a component, in two's complement: its bucket less 128.
    pub fn int8(ranges: Ranges) -> Self {
        Self { offset: 128, ..Self::uint8(ranges) }
    }

    /// One byte a component: its bucket, ⌊(x − low) / ((high − low) / 255)⌋, 0 to 255.
    pub fn uint8(ranges: Ranges) -> Self {
        Self { to: To::Buckets { steps: ranges.steps(), ranges }, offset: 0 }
    }

    /// One bit a component, whether it is above 0, the first in the highest bit of a byte; the byte less 128, in two's
    /// complement. Bits behind the last component are 0.
    pub fn binary() -> Self {
        Self { to: To::Bits, offset: 128 }
    }

    /// As [`binary`](Self::binary), the bytes as they are.
    pub fn ubinary() -> Self {
        Self { to: To::Bits, offset: 0 }
    }

    /// Whether the bytes are signed numbers.
    pub fn signed(&self) -> bool {
        self.offset != 0
    }

    /// The ranges that are divided into buckets, if they are.
    pub fn ranges(&self) -> Option<&Ranges> {
        match &self.to {
            To::Buckets { ranges, .. } => Some(ranges),
            To::Bits => None,
        }
    }

    /// Bytes of a vector of `dim` components.
    pub fn row_bytes(&self, dim: usize) -> usize {
        match self.to {
            To::Buckets { .. } => dim,
            To::Bits => dim.div_ceil(8),
        }
    }

    /// The bytes of vectors `[n, dim]` row-major: `[n, row_bytes(dim)]`.
    ///
    /// # Panics
    /// As [`quantize_into`](Self::quantize_into).
    pub fn quantize(&self, vectors: &[f32], dim: usize) -> Vec<u8> {
        let mut out = Vec::new();
        self.quantize_into(vectors, dim, &mut out);
        out
    }

    /// As [`quantize`](Self::quantize), behind what is in `out`.
    ///
    /// # Panics
    /// If these are not whole vectors, or not of the ranges' width.
    pub fn quantize_into(&self, vectors: &[f32], dim: usize, out: &mut Vec<u8>) {
        assert!(
            vectors.is_empty() || (dim > 0 && vectors.len().is_multiple_of(dim)),
            "vectors of {dim} components"
        );
        for vector in vectors.chunks_exact(dim.max(1)) {
            match &self.to {
                To::Buckets { ranges, steps } => {
                    assert_eq!(ranges.dim(), dim, "vectors as wide as the ranges");
                    let bounds = ranges.low.iter().zip(steps);
                    out.extend(vector.iter().zip(bounds).map(|(v, (low, step))| {
                        // `as` clips to 0 and 255
                        (((v - low) / step).floor() as u8).wrapping_add(self.offset)
                    }));
                }
                To::Bits => out.extend(vector.chunks(8).map(|eight| {
                    let bits = eight.iter().enumerate();
                    bits.fold(0, |byte, (i, &v)| byte | u8::from(v > 0.0) << (7 - i))
                        .wrapping_add(self.offset)
                })),
            }
        }
    }
}
