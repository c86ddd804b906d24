//! Ctrl-C: the first asks the command to stop at the next good place, the second ends the program at once.

use crate::cli::output::say;
use crate::{Error, Result};
use std::sync::atomic::{AtomicU32, Ordering};

static PRESSED: AtomicU32 = AtomicU32::new(0);

/// Begins to listen.
pub(crate) fn listen() -> Result<()> {
    ctrlc::set_handler(|| {
        if PRESSED.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(130);
        }
        say!("\nstopping; once more to end at once");
    })
    .map_err(|e| Error::input(format!("cannot listen for Ctrl-C: {e}")))
}

/// Whether Ctrl-C was pressed.
pub(crate) fn pressed() -> bool {
    PRESSED.load(Ordering::SeqCst) > 0
}
