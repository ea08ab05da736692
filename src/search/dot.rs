//! Dot products of f32 vectors, in an order of sums that is fixed: the same bits on every machine.
//!
//! Written so that the compiler makes vector code of it with the instructions that every x86-64 or aarch64 has
//! (16-byte registers), without `unsafe` or dispatch. Bound by reading the matrix for one or two queries, by
//! the multiplications for more; the queries of a group share each load of a row.

/// Queries that go over a row together: 4 × 2 registers of sums, and the row's two, of sixteen.
pub(super) const QUERIES_AT_A_TIME: usize = 4;
/// Partial sums of each product: two registers.
const LANES: usize = 8;

/// a · b.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    products([a], b)[0]
}

/// The products of up to [`QUERIES_AT_A_TIME`] queries, end to end, with `row`; the rest is 0.
pub(super) fn dots(queries: &[f32], row: &[f32]) -> [f32; QUERIES_AT_A_TIME] {
    let dim = row.len();
    if queries.len() == QUERIES_AT_A_TIME * dim {
        return products(std::array::from_fn(|q| &queries[q * dim..(q + 1) * dim]), row);
    }
    let mut out = [0.0; QUERIES_AT_A_TIME];
    out.iter_mut().zip(queries.chunks_exact(dim)).for_each(|(out, query)| *out = dot(query, row));
    out
}

#[inline(always)]
fn products<const Q: usize>(queries: [&[f32]; Q], row: &[f32]) -> [f32; Q] {
    let (row_chunks, row_rest) = row.as_chunks::<LANES>();
    let parts = queries.map(|query| query[..row.len()].as_chunks::<LANES>());
    let mut sums = [[0.0f32; LANES]; Q];
    for (i, row) in row_chunks.iter().enumerate() {
        for q in 0..Q {
            let query = &parts[q].0[i];
            for lane in 0..LANES {
                sums[q][lane] += query[lane] * row[lane];
            }
        }
    }
    std::array::from_fn(|q| {
        let mut lanes = sums[q];
        for (lane, (a, b)) in lanes.iter_mut().zip(parts[q].1.iter().zip(row_rest)) {
            *lane += a * b;
        }
        let [a, b, c, d, e, f, g, h] = lanes;
        ((a + e) + (b + f)) + ((c + g) + (d + h))
    })
}
