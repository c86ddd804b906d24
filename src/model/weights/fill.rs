//! Decoding a tensor's stored bytes into f32, row by row and in parallel, with a check that every number is finite.

use rayon::prelude::*;

/// Elements that one task decodes: large enough to hide the task's cost, small enough to stay in a core's cache for the check.
const TASK_ELEMENTS: usize = 1 << 15;

/// `len` numbers, where `decode(row, out)` writes one row of `cols` numbers (the last one may be shorter). `Err` is the index and value of
/// the first number (in row-major order) that is not finite.
pub(super) fn decode_rows(len: usize, cols: usize, decode: impl Fn(usize, &mut [f32]) + Sync) -> Result<Vec<f32>, (usize, f32)> {
    let mut out = vec![0f32; len];
    if out.is_empty() {
        return Ok(out);
    }
    let rows_per_task = (TASK_ELEMENTS / cols).max(1);
    let task_len = rows_per_task * cols;
    let fill = |task: usize, chunk: &mut [f32]| {
        for (i, row) in chunk.chunks_mut(cols).enumerate() {
            decode(task * rows_per_task + i, row);
        }
        let at = first_non_finite(chunk)?;
        Some((task * task_len + at, chunk[at]))
    };
    let bad = if len <= task_len {
        // Norms and biases: not worth waking other threads.
        fill(0, &mut out)
    } else {
        out.par_chunks_mut(task_len).enumerate().filter_map(|(task, chunk)| fill(task, chunk)).min_by_key(|(index, _)| *index)
    };
    match bad {
        Some(bad) => Err(bad),
        None => Ok(out),
    }
}

/// Index of the first number that is NaN or infinite.
pub(super) fn first_non_finite(data: &[f32]) -> Option<usize> {
    // A pass without a branch per number: an exponent of all ones marks NaN and infinity.
    let poisoned = data.chunks(1024).position(|c| c.iter().fold(false, |bad, x| bad | (x.to_bits() & 0x7f80_0000 == 0x7f80_0000)))?;
    let start = poisoned * 1024;
    data[start..].iter().position(|x| !x.is_finite()).map(|i| start + i)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_every_row_and_finds_the_first_bad_number() {
        let (rows, cols) = (300, 257);
        let value = |r: usize, c: usize| (r * cols + c) as f32;
        let all = decode_rows(rows * cols - 1, cols, |r, out| out.iter_mut().enumerate().for_each(|(c, x)| *x = value(r, c))).unwrap();
        assert!(all.iter().enumerate().all(|(i, x)| *x == i as f32));
        let bad = decode_rows(rows * cols - 1, cols, |r, out| {
            for (c, x) in out.iter_mut().enumerate() {
                *x = if r >= 200 && c == 5 { f32::NEG_INFINITY } else { value(r, c) };
            }
        });
        assert_eq!(bad.unwrap_err(), (200 * cols + 5, f32::NEG_INFINITY));
        assert_eq!(decode_rows(0, 7, |_, _| unreachable!()), Ok(vec![]));
    }
}
