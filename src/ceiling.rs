//! A ceiling on the memory that one call may take on its thread, for what runs code that came with a model: a chat template of forty words can
//! double a text forty times, and no count of instructions sees it.
//!
//! An allocator must not unwind and may not be told why it is to fail, so what goes through the ceiling ends the program, with a sentence. The
//! binary installs [`Allocator`]; in a program that does not, [`under`] just calls.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;

/// What a thread may still take: no ceiling is [`FREE`].
const FREE: isize = isize::MAX;

thread_local! {
    // Without a destructor and made by the compiler: reading them allocates nothing.
    static LEFT: Cell<isize> = const { Cell::new(FREE) };
    static SENTENCE: Cell<&'static str> = const { Cell::new("") };
}

/// Calls `f`, which may hold `bytes` more on this thread than are held now. If it wants more, the program ends: `sentence` on standard error,
/// exit status 1. Ceilings do not nest: an inner one is not looked at.
pub fn under<T>(bytes: usize, sentence: &'static str, f: impl FnOnce() -> T) -> T {
    /// Takes the ceiling away, also where `f` panics.
    struct Lift;
    impl Drop for Lift {
        fn drop(&mut self) {
            LEFT.set(FREE);
        }
    }
    if LEFT.get() != FREE {
        return f();
    }
    SENTENCE.set(sentence);
    LEFT.set(isize::try_from(bytes).unwrap_or(FREE));
    let _lift = Lift;
    f()
}

/// The system's allocator, which counts while a thread is [`under`] a ceiling.
pub struct Allocator;

#[inline]
fn take(bytes: usize) {
    let left = LEFT.get();
    if left == FREE {
        return;
    }
    // A layout is never larger than isize::MAX, and `left` never negative.
    match left.checked_sub_unsigned(bytes) {
        Some(left) if left >= 0 => LEFT.set(left),
        _ => end(),
    }
}

#[inline]
fn give(bytes: usize) {
    let left = LEFT.get();
    if left != FREE {
        // What was taken before the ceiling and is given back under it does not count as room without end.
        LEFT.set(left.saturating_add_unsigned(bytes).min(FREE - 1));
    }
}

#[cold]
fn end() -> ! {
    // What the end itself takes is free.
    LEFT.set(FREE);
    let _ = writeln!(std::io::stderr(), "{}", SENTENCE.get());
    std::process::exit(1)
}

// SAFETY: every call is handed on to the system's allocator as it came; the counting neither allocates nor unwinds.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // Both may be there while it moves.
        take(new_size);
        give(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, new_size) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        under(1000, "unused", || {
            take(600);
            give(100);
            take(400);
            assert_eq!(LEFT.get(), 100);
            under(10, "unused", || take(50));
            assert_eq!(LEFT.get(), 50, "an inner ceiling is not looked at");
            give(usize::MAX);
            assert!(LEFT.get() < FREE);
        });
        assert_eq!(LEFT.get(), FREE);
        take(usize::MAX);
    }

    #[test]
    fn a_panic_lifts_it() {
        assert!(std::panic::catch_unwind(|| under(1 << 20, "unused", || panic!("as asked"))).is_err());
        assert_eq!(LEFT.get(), FREE);
    }
}
