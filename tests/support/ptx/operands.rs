//! The registers that an instruction touches: where products are under way, most may not be.

use super::decode::Action;

impl Action {
    /// Calls `each` with every register that is read (false) or written (true).
    pub fn each_register(&self, mut each: impl FnMut(usize, bool)) {
        let mut all = |read: &[usize], written: &[usize]| {
            read.iter().for_each(|r| each(*r, false));
            written.iter().for_each(|r| each(*r, true));
        };
        match self {
            Action::Compute { to, from, .. } => all(from, &[*to]),
            Action::Split { to, from, .. } => all(&[*from], to),
            Action::Join { to, from, .. } => all(from, &[*to]),
            Action::LoadParameter { to, .. } | Action::ActiveMask { to } => all(&[], &[*to]),
            Action::Load { to, at, .. } | Action::LoadMatrices { to, at, .. } => all(&[at.base], to),
            Action::Store { from, at, .. } => {
                all(&[at.base], &[]);
                all(from, &[]);
            }
            Action::Atomic { old, at, from, compare, .. } => all(&[at.base, *from, *compare], old.as_slice()),
            Action::Barrier { id, threads, to, from, .. } => {
                all(&[*id, *from], &[*to]);
                all(threads.as_slice(), &[]);
            }
            Action::WarpBarrier { mask } => all(&[*mask], &[]),
            Action::Shuffle { to, valid, value, lane, clamp, mask, .. } => {
                all(&[*value, *lane, *clamp, *mask], &[*to]);
                all(&[], valid.as_slice());
            }
            Action::Vote { to, from, mask, .. } => all(&[*from, *mask], &[*to]),
            Action::MatchAny { to, value, mask, .. } => all(&[*value, *mask], &[*to]),
            Action::Multiply(product) => {
                all(&product.a, &product.d);
                all(&product.b, &[]);
                all(&product.c, &[]);
            }
            Action::CopyAsync { to, from, read } => {
                all(&[to.base, from.base], &[]);
                all(read.as_slice(), &[]);
            }
            Action::Hopper(hopper) => hopper.each_register(each),
            Action::Branch { .. } | Action::Exit | Action::CommitCopies | Action::WaitForCopies { .. } | Action::Nothing => {}
        }
    }
}
