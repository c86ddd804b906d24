//! The embedding's rows and their gradient.

use crate::support::{bits, normal, rows, same_on_any_threads, tensor};
use sorft_native::tensor::Tensor;
use sorft_native::tensor::cpu::PanelMatrix;
use sorft_native::tensor::ops::embedding::{self, SparseRows};

fn ids(t: usize, vocab: usize) -> Vec<u32> {
    (0..t).map(|i| (i * i * 7 + i) as u32 % vocab as u32).collect()
}

#[test]
fn rows_are_copied() {
    for (vocab, d, t) in [(1, 1, 1), (45, 7, 30), (100, 576, 70), (33, 40, 0)] {
        let table = normal(vocab * d, 1);
        let ids = ids(t, vocab);
        let x = embedding::forward(&PanelMatrix::from_rows(vocab, d, &table), &ids);
        assert_eq!(x.shape(), [t, d]);
        for (row, id) in x.data().chunks(d).zip(&ids) {
            assert_eq!(bits(row), bits(&table[*id as usize * d..][..d]));
        }
    }
}

#[test]
#[should_panic(expected = "row 45 of 45")]
fn an_id_beyond_the_table_is_not_read_from_the_padding() {
    embedding::forward(&PanelMatrix::zeros(45, 7), &[45]);
}

/// dE[id] adds the tokens with that id one after another, and then joins what the tied head left there: the bits are known.
#[test]
fn the_gradient_adds_tokens_in_order_however_they_are_cut() {
    let (vocab, d, t) = (45, 33, 200);
    let (ids, dx, head) = (ids(t, vocab), tensor(&[t, d], 1), normal(vocab * d, 2));
    let mut want = vec![0.0f32; vocab * d];
    for (r, id) in ids.iter().enumerate() {
        for i in 0..d {
            want[*id as usize * d + i] += dx.data()[r * d + i];
        }
    }
    for (i, x) in want.iter_mut().enumerate() {
        *x = if ids.contains(&((i / d) as u32)) { head[i] + *x } else { head[i] };
    }
    for cuts in [vec![0, t], vec![0, 1, 90, t], (0..=t).collect()] {
        let mut sparse = SparseRows::default();
        for cut in cuts.windows(2) {
            sparse.add(&ids[cut[0]..cut[1]], &rows(&dx, cut[0]..cut[1]));
        }
        let mut dense = PanelMatrix::from_rows(vocab, d, &head);
        sparse.drain_into(&mut dense);
        assert!(bits(&dense.to_rows()) == bits(&want));
        let before = bits(dense.data());
        sparse.drain_into(&mut dense);
        assert!(before == bits(dense.data()), "drained rows are forgotten");
    }
}

#[test]
fn cleared_rows_are_forgotten() {
    let mut sparse = SparseRows::default();
    sparse.add(&[3, 4], &Tensor::from_vec(&[2, 2], vec![1.0; 4]));
    sparse.clear();
    let mut dense = PanelMatrix::zeros(5, 2);
    sparse.drain_into(&mut dense);
    assert!(dense.data().iter().all(|x| *x == 0.0));
}

#[test]
fn threads_change_nothing() {
    let table = PanelMatrix::from_rows(300, 100, &normal(30_000, 1));
    let ids = ids(500, 300);
    same_on_any_threads("embedding", || embedding::forward(&table, &ids).into_vec());
}
