//! One block of rows to vectors, with every row that cannot be one set apart by its place.

use super::input::Row;
use super::output::{Computed, Dtype, storable};
use super::report::Failure;
use berthier::{Embedder, Error, TokenCount};

/// What ends a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) stop_at_bad: bool,
    pub(crate) stop_at_cut: bool,
    /// What the vectors are stored as: a component that does not fit makes a bad row.
    pub(crate) dtype: Dtype,
}

/// What is computed of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    /// How many tokens it has.
    Counts,
    /// Its vector.
    Vector,
    /// The vectors of its tokens.
    TokenVectors,
}

/// The rows up to the first that ends the run, and that end.
///
/// # Errors
/// What is no row's fault, such as a device that failed.
pub(crate) fn compute(
    embedder: &Embedder,
    mut rows: Vec<Row>,
    limits: Limits,
    want: Want,
) -> Result<(Computed, Option<Failure>), Failure> {
    let mut failure = None;
    if limits.stop_at_bad {
        failure = cut_at_bad(&mut rows);
    }
    let dim = if want == Want::Vector { embedder.dim() } else { 0 };
    let mut computed = match want {
        Want::Counts | Want::Vector => embed(embedder, rows, dim)?,
        Want::TokenVectors => embed_tokens(embedder, rows, limits.dtype)?,
    };
    if dim > 0 {
        for (row, vector) in computed.rows.iter_mut().zip(computed.vectors.chunks_exact_mut(dim)) {
            if row.text.is_ok()
                && let Err(message) = storable(limits.dtype, vector)
            {
                row.text = Err(message);
                vector.fill(f32::NAN);
            }
        }
    }
    if limits.stop_at_bad {
        failure = cut_at_bad(&mut computed.rows).or(failure);
    }
    if limits.stop_at_cut
        && let Some(i) = computed.tokens[..computed.rows.len()].iter().position(TokenCount::truncated)
    {
        let TokenCount { used, total } = computed.tokens[i];
        failure = Some(Failure::Error(format!(
            "{}: {total} tokens, of which {used} fit (--on-truncate warn or mark goes on)",
            computed.rows[i].place
        )));
        computed.rows.truncate(i);
    }
    computed.tokens.truncate(computed.rows.len());
    let floats = match want {
        Want::Counts => 0,
        Want::Vector => computed.rows.len() * dim,
        Want::TokenVectors => computed.tokens.iter().map(|t| t.used).sum::<usize>() * embedder.token_dim(),
    };
    computed.vectors.truncate(floats);
    Ok((computed, failure))
}

/// Keeps the rows before the first bad one; gives the failure that it is.
fn cut_at_bad(rows: &mut Vec<Row>) -> Option<Failure> {
    let (i, message) = rows.iter().enumerate().find_map(|(i, r)| Some((i, r.text.as_ref().err()?)))?;
    let message = format!("{}: {message}; --on-error skip goes on without the row", rows[i].place);
    rows.truncate(i);
    Some(Failure::Error(message))
}

/// Embeds the rows that have a text; `dim` 0 only tokenises.
fn embed(embedder: &Embedder, mut rows: Vec<Row>, dim: usize) -> Result<Computed, Failure> {
    let mut vectors = vec![0.0; rows.len() * dim];
    loop {
        let good: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].text.is_ok()).collect();
        let texts: Vec<&str> = rows.iter().filter_map(|r| r.text.as_deref().ok()).collect();
        let mut counts = Vec::new();
        let result = match dim {
            0 => count_tokens(embedder, &texts).map(|found| counts = found),
            _ => embedder.embed_into(&texts, &mut vectors[..good.len() * dim], &mut counts),
        };
        let (non_finite, why) = match result {
            Ok(()) => (Vec::new(), ""),
            Err(Error::NonFinite { rows, why }) => (rows, why),
            Err(Error::Row { row, message }) if row < good.len() => {
                rows[good[row]].text = Err(message);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for row in non_finite {
            rows[good[row]].text = Err(why.into());
        }
        let mut tokens = vec![TokenCount { used: 0, total: 0 }; rows.len()];
        for (&i, count) in good.iter().zip(counts) {
            tokens[i] = count;
        }
        // from the densely packed vectors to one a row, backwards as no vector moves to the front
        if good.len() < rows.len() {
            for (k, &i) in good.iter().enumerate().rev() {
                vectors.copy_within(k * dim..(k + 1) * dim, i * dim);
            }
        }
        for (i, row) in rows.iter().enumerate() {
            if row.text.is_err() {
                vectors[i * dim..(i + 1) * dim].fill(f32::NAN);
            }
        }
        return Ok(Computed { rows, vectors, tokens });
    }
}

/// The token vectors of the rows that have a text, end to end; other rows have none, and no tokens.
fn embed_tokens(embedder: &Embedder, mut rows: Vec<Row>, dtype: Dtype) -> Result<Computed, Failure> {
    loop {
        let good: Vec<usize> = (0..rows.len()).filter(|&i| rows[i].text.is_ok()).collect();
        let texts: Vec<&str> = rows.iter().filter_map(|r| r.text.as_deref().ok()).collect();
        let found = match embedder.embed_tokens(&texts) {
            Ok(found) => found,
            Err(Error::NonFinite { rows: bad, why }) => {
                bad.into_iter().for_each(|row| rows[good[row]].text = Err(why.into()));
                continue;
            }
            Err(Error::Row { row, message }) if row < good.len() => {
                rows[good[row]].text = Err(message);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let unstorable = good
            .iter()
            .zip(found.matrices())
            .find_map(|(&i, matrix)| Some((i, storable(dtype, matrix).err()?)));
        if let Some((i, message)) = unstorable {
            rows[i].text = Err(message);
            continue;
        }
        let mut tokens = vec![TokenCount { used: 0, total: 0 }; rows.len()];
        good.iter().zip(found.tokens()).for_each(|(&i, count)| tokens[i] = *count);
        return Ok(Computed { rows, vectors: found.into_vec(), tokens });
    }
}

fn count_tokens(embedder: &Embedder, texts: &[&str]) -> berthier::Result<Vec<TokenCount>> {
    let encodings = embedder.tokenize(texts)?;
    Ok(encodings.iter().map(|e| TokenCount { used: e.ids.len(), total: e.total_tokens }).collect())
}
