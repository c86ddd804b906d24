//! Host memory that the driver copies from while the host goes on.

use crate::Result;
use cudarc::driver::result;
use std::ffi::c_void;

/// Bytes of it. What is longer is copied from where it is, and waited for.
const BYTES: usize = 4 << 20;
/// Uploads begin at multiples of it.
const ALIGN: usize = 64;

/// Uploads that may not have landed yet, one behind the other in page-locked memory. Without it (or if there is none to be had) an upload has to
/// wait for everything that is queued, since its bytes may be gone as soon as the caller goes on.
#[derive(Default)]
pub(super) struct Staging {
    memory: Option<*mut c_void>,
    refused: bool,
    used: usize,
}

// SAFETY: the memory is the staging's alone, and page-locked memory may be used by any thread.
unsafe impl Send for Staging {}

impl Staging {
    /// A copy of the bytes that stays until everything queued before [`Staging::landed`] is done; `None` if there is no place for so many.
    /// `wait` waits for what is queued.
    ///
    /// # Errors
    /// If waiting failed.
    ///
    /// # Safety
    /// The context is current on this thread, and the copy is not used after the next call but by what has been queued until then.
    pub unsafe fn stage(&mut self, bytes: &[u8], wait: impl FnOnce() -> Result<()>) -> Result<Option<&[u8]>> {
        if bytes.len() > BYTES || self.refused {
            return Ok(None);
        }
        // SAFETY: the context is current.
        let Some(memory) = self.memory.or_else(|| unsafe { result::malloc_host(BYTES, 0) }.ok()) else {
            self.refused = true;
            return Ok(None);
        };
        self.memory = Some(memory);
        if self.used + bytes.len() > BYTES {
            wait()?;
            self.used = 0;
        }
        // SAFETY: BYTES lie there, of which those from `used` on are read by nobody.
        let staged = unsafe {
            let place = memory.cast::<u8>().add(self.used);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), place, bytes.len());
            std::slice::from_raw_parts(place, bytes.len())
        };
        self.used = (self.used + bytes.len()).next_multiple_of(ALIGN);
        Ok(Some(staged))
    }

    /// Everything that was queued is done.
    pub fn landed(&mut self) {
        self.used = 0;
    }

    /// Gives the memory back.
    ///
    /// # Safety
    /// The context is current, and nothing queued reads it.
    pub unsafe fn free(&mut self) {
        if let Some(memory) = self.memory.take() {
            // SAFETY: allocated by `stage`. There is nobody to tell of an error.
            let _ = unsafe { result::free_host(memory) };
        }
    }
}
