//! Exact search: the rows of a matrix that are most like a query, all of them compared.
//!
//! Knows matrices in memory (or mapped); nothing of models, files or text. Of the library it names `Threads`
//! only. Scores do not depend, to the bit, on the number of threads or on the queries beside.

mod dot;
mod top;

use berthier::Threads;
use dot::{QUERIES_AT_A_TIME, dot, dots};
use half::f16;
use half::slice::HalfFloatSliceExt;
use std::ops::Range;
pub(crate) use top::{Hit, Top};

/// Rows that are taken through all queries of a task while they lie in a core's caches: at 384 f32
/// components, 192 KiB.
const BLOCK_ROWS: usize = 128;
/// Queries of one task where there are many: they are read for every block of rows, so they stay in cache
/// as well.
const TASK_QUERIES: usize = 32;
/// Parts of the matrix for each thread where there are few queries, so that no thread waits for long.
const PARTS_PER_THREAD: usize = 4;

/// A matrix `[rows, dim]`, row-major.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub(crate) data: Data<'a>,
    pub(crate) dim: usize,
}

/// The numbers of a matrix.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Data<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
}

/// What is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Score {
    /// Dot product over both lengths
    Cosine,
    /// Dot product, for vectors that are normalised or meant to keep their length
    Dot,
}

impl<'a> Matrix<'a> {
    pub(crate) fn f32(data: &'a [f32], dim: usize) -> Self {
        Self { data: Data::F32(data), dim }
    }

    pub(crate) fn rows(&self) -> usize {
        let len = match self.data {
            Data::F32(data) => data.len(),
            Data::F16(data) => data.len(),
        };
        len / self.dim
    }

    /// Rows as f32; half precision is widened into `buffer`.
    fn widen<'b>(&self, rows: Range<usize>, buffer: &'b mut Vec<f32>) -> &'b [f32]
    where
        'a: 'b,
    {
        let range = rows.start * self.dim..rows.end * self.dim;
        match self.data {
            Data::F32(data) => &data[range],
            Data::F16(data) => {
                buffer.resize(range.len(), 0.0);
                data[range].convert_to_f32_slice(buffer);
                buffer
            }
        }
    }
}

/// The `k` best rows for each query, best first; of equals the lower row. Rows whose score is NaN are left
/// out. `queries` is `[queries, dim]`.
///
/// # Panics
/// If the queries are not whole vectors of the matrix's width.
pub(crate) fn top_k(
    matrix: Matrix<'_>,
    queries: &[f32],
    k: usize,
    score: Score,
    threads: &Threads,
) -> Vec<Vec<Hit>> {
    let dim = matrix.dim;
    assert!(dim > 0 && queries.len().is_multiple_of(dim), "queries of {dim} components");
    let (rows, count) = (matrix.rows(), queries.len() / dim);
    let norms: Vec<f32> = queries.chunks_exact(dim).map(|q| norm(q, score)).collect();
    let search = |rows: Range<usize>, part: Range<usize>| {
        scan(matrix, rows, &queries[part.start * dim..part.end * dim], &norms[part], k, score)
    };

    if count >= TASK_QUERIES * threads.count() {
        // each task takes some queries through the whole matrix
        let parts: Vec<_> =
            (0..count).step_by(TASK_QUERIES).map(|q| q..count.min(q + TASK_QUERIES)).collect();
        let found = threads.map(&parts, |part| search(0..rows, part.clone()));
        return found.into_iter().flatten().map(Top::into_sorted).collect();
    }
    // each task takes all queries through a part of the matrix
    let part_rows = rows.div_ceil(PARTS_PER_THREAD * threads.count()).next_multiple_of(BLOCK_ROWS);
    let parts: Vec<_> = (0..rows).step_by(part_rows.max(1)).map(|r| r..rows.min(r + part_rows)).collect();
    let mut found = threads.map(&parts, |part| search(part.clone(), 0..count)).into_iter();
    let mut merged = found.next().unwrap_or_else(|| (0..count).map(|_| Top::new(k)).collect());
    for part in found {
        merged.iter_mut().zip(part).for_each(|(merged, part)| merged.merge(part));
    }
    merged.into_iter().map(Top::into_sorted).collect()
}

/// The best of `rows` for each query.
fn scan(
    matrix: Matrix<'_>,
    rows: Range<usize>,
    queries: &[f32],
    norms: &[f32],
    k: usize,
    score: Score,
) -> Vec<Top> {
    let dim = matrix.dim;
    let mut tops: Vec<Top> = norms.iter().map(|_| Top::new(k)).collect();
    let mut buffer = Vec::new();
    let mut row_norms = Vec::with_capacity(BLOCK_ROWS);
    for first in rows.clone().step_by(BLOCK_ROWS) {
        let block = matrix.widen(first..rows.end.min(first + BLOCK_ROWS), &mut buffer);
        row_norms.clear();
        row_norms.extend(block.chunks_exact(dim).map(|row| norm(row, score)));
        let groups = queries.chunks(QUERIES_AT_A_TIME * dim).zip(norms.chunks(QUERIES_AT_A_TIME));
        for ((queries, norms), tops) in groups.zip(tops.chunks_mut(QUERIES_AT_A_TIME)) {
            for (i, row) in block.chunks_exact(dim).enumerate() {
                let products = dots(queries, row);
                for ((top, product), norm) in tops.iter_mut().zip(products).zip(norms) {
                    top.offer(Hit { row: first + i, score: product / (norm * row_norms[i]) });
                }
            }
        }
    }
    tops
}

/// The length that a score is divided by. A vector of zeros has no direction: its scores are 0, not NaN.
fn norm(vector: &[f32], score: Score) -> f32 {
    match score {
        Score::Dot => 1.0,
        Score::Cosine => {
            let norm = dot(vector, vector).sqrt();
            if norm == 0.0 { 1.0 } else { norm }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroUsize;

    fn threads(n: usize) -> Threads {
        Threads::new(NonZeroUsize::new(n)).unwrap()
    }

    /// Numbers in ±1 that differ.
    fn vectors(len: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1u32 << 23) as f32 - 1.0
            })
            .collect()
    }

    /// Every score in f64, sorted.
    fn naive(rows: &[f32], dim: usize, query: &[f32], score: Score) -> Vec<(usize, f64)> {
        let product = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let mut all: Vec<_> = rows
            .chunks_exact(dim)
            .map(|row| match score {
                Score::Dot => product(row, query),
                Score::Cosine => product(row, query) / (product(row, row) * product(query, query)).sqrt(),
            })
            .enumerate()
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn prop_top_k_matches_a_full_sort(
            rows in 0usize..700, dim in 1usize..70, queries in 0usize..80, k in 1usize..20, seed: u32, cosine: bool
        ) {
            let score = if cosine { Score::Cosine } else { Score::Dot };
            let (data, asked) = (vectors(rows * dim, seed), vectors(queries * dim, !seed));
            let found = top_k(Matrix::f32(&data, dim), &asked, k, score, &threads(1));
            prop_assert_eq!(found.len(), queries);
            for (hits, query) in found.iter().zip(asked.chunks_exact(dim)) {
                let all = naive(&data, dim, query, score);
                prop_assert_eq!(hits.len(), k.min(rows));
                for (hit, (_, want)) in hits.iter().zip(&all) {
                    prop_assert!((f64::from(hit.score) - want).abs() < 1e-4, "{hit:?} {want}");
                }
            }
            prop_assert_eq!(&found, &top_k(Matrix::f32(&data, dim), &asked, k, score, &threads(3)));
            // a query alone finds the same bits as among others
            if let (Some(last), Some(query)) = (found.last(), asked.chunks_exact(dim).last()) {
                let alone = top_k(Matrix::f32(&data, dim), query, k, score, &threads(2));
                prop_assert_eq!(last, &alone[0]);
            }
        }
    }

    #[test]
    fn half_precision_is_searched_as_its_f32() {
        let data = vectors(500 * 24, 5);
        let half: Vec<f16> = data.iter().map(|&v| f16::from_f32(v)).collect();
        let widened: Vec<f32> = half.iter().map(|v| v.to_f32()).collect();
        let query = vectors(24, 6);
        let of_half =
            top_k(Matrix { data: Data::F16(&half), dim: 24 }, &query, 9, Score::Cosine, &threads(2));
        assert_eq!(of_half, top_k(Matrix::f32(&widened, 24), &query, 9, Score::Cosine, &threads(2)));
    }

    #[test]
    fn bad_rows_are_left_out_and_zeros_score_zero() {
        let data = [f32::NAN, 1.0, 0.0, 0.0, 2.0, 0.0, -1.0, 0.0, 3.0, 0.0];
        let hits = &top_k(Matrix::f32(&data, 2), &[1.0, 0.0], 9, Score::Cosine, &threads(1))[0];
        let found: Vec<_> = hits.iter().map(|h| (h.row, h.score)).collect();
        assert_eq!(found, [(2, 1.0), (4, 1.0), (1, 0.0), (3, -1.0)], "of equals the lower row first");
    }
}
