//! AMX, the matrix unit of some processors: `tdpbf16ps` multiplies tiles of bf16 into tiles of f32.
//!
//! A process has to ask the system for the tile registers once, before a thread touches them; a thread configures them before use, and gives
//! them up after, so that the system need not save 8 kB at every switch. [`Tiles`] is that time between the two: the kernel is its method.

use super::CHUNK;
use std::marker::PhantomData;
use std::sync::OnceLock;

/// Rows and columns of outputs of the kernel: two tiles each way.
pub(super) const SIDE: usize = 32;

/// Whether the products of this program take AMX: the processor and the system have it, and no lower instruction set was asked for with
/// `SORFT_ISA`. The first call asks the system for the tile registers, for all threads.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| std::env::var_os("SORFT_ISA").is_none_or(|set| set == "amx") && detect::tiles_granted())
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
mod detect {
    /// None here.
    pub fn tiles_granted() -> bool {
        false
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
mod detect {
    use std::arch::x86_64::{__cpuid, __cpuid_count, _xgetbv};

    /// Whether the processor has AMX for bf16, the system saves its registers, and this process may use them.
    pub fn tiles_granted() -> bool {
        processor_has() && system_saves() && ask()
    }

    /// Leaf 7: bit 22 of edx is AMX-BF16, bit 24 AMX-TILE.
    fn processor_has() -> bool {
        const BOTH: u32 = 1 << 22 | 1 << 24;
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & BOTH == BOTH
    }

    /// Bits 17 and 18 of XCR0: the tiles' configuration and their data.
    fn system_saves() -> bool {
        const OSXSAVE: u32 = 1 << 27;
        const BOTH: u64 = 1 << 17 | 1 << 18;
        #[target_feature(enable = "xsave")]
        fn xcr0() -> u64 {
            // SAFETY: register 0 is there wherever the instruction is.
            unsafe { _xgetbv(0) }
        }
        // SAFETY: the processor says that the system has enabled the instruction.
        __cpuid(1).ecx & OSXSAVE != 0 && unsafe { xcr0() } & BOTH == BOTH
    }

    /// arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA). Linux gives the registers to those alone that ask.
    fn ask() -> bool {
        const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
        const XFEATURE_XTILEDATA: libc::c_long = 18;
        // SAFETY: the call takes two numbers and touches no memory of ours.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
    }
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    /// Bytes of a row of each tile.
    columns: [u16; 16],
    rows: [u8; 16],
}

/// Eight tiles of 16 rows of 64 bytes each.
static ALL_WHOLE: Configuration = Configuration {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    columns: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// This thread's tile registers, configured. It does not leave the thread.
pub(super) struct Tiles(PhantomData<*const ()>);

/// The operands of a product of tiles.
#[derive(Clone, Copy)]
pub(super) struct Operands {
    /// Chunks of 32 terms.
    pub chunks: usize,
    /// `[chunks][2][16 rows][16]` pairs.
    pub a: *const u32,
    /// `[chunks][2][16][16 columns]` pairs.
    pub b: *const u32,
    pub c: *mut f32,
    /// Numbers from one row of `c` to the next.
    pub ldc: usize,
    /// Go on from `c` instead of from zero.
    pub add: bool,
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
impl Tiles {
    /// Configures this thread's tiles.
    ///
    /// # Panics
    /// If there is no AMX.
    pub fn configure() -> Self {
        assert!(available(), "tiles without AMX");
        // SAFETY: the instruction is there and permitted; it reads 64 bytes.
        unsafe { std::arch::asm!("ldtilecfg [{}]", in(reg) &raw const ALL_WHOLE, options(nostack, readonly)) };
        Self(PhantomData)
    }

    /// `c [16 or 32, 32] = (c or 0) + a b`, chunk after chunk: 32 rows if `BOTH`, else the upper 16 alone. Tiles 0 to 3 are c's, row by row, 4
    /// and 5 a's, 6 and 7 b's.
    ///
    /// # Safety
    /// The operands have the extents that [`Operands`] gives, of which the lower half of a is not read unless `BOTH`, and c is writable in 16
    /// or 32 rows of 32 numbers.
    pub unsafe fn multiply<const BOTH: bool>(&self, t: Operands) {
        const CHUNK_BYTES: usize = CHUNK * size_of::<u32>();
        let row_bytes = t.ldc * size_of::<f32>();
        // SAFETY: the caller's promise; all that is changed is named.
        unsafe {
            std::arch::asm!(
                "test {add}, {add}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                ".if {both}",
                "tilezero tmm2",
                "tilezero tmm3",
                ".endif",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{c} + {row}]",
                "tileloadd tmm1, [{c} + {row} + 64]",
                ".if {both}",
                "tileloadd tmm2, [{lower} + {row}]",
                "tileloadd tmm3, [{lower} + {row} + 64]",
                ".endif",
                "3:",
                "tileloadd tmm6, [{b} + {line}]",
                "tileloadd tmm4, [{a} + {line}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{b} + {line} + 1024]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                ".if {both}",
                "tileloadd tmm5, [{a} + {line} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                ".endif",
                "add {a}, {chunk}",
                "add {b}, {chunk}",
                "dec {chunks}",
                "jnz 3b",
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 64], tmm1",
                ".if {both}",
                "tilestored [{lower} + {row}], tmm2",
                "tilestored [{lower} + {row} + 64], tmm3",
                ".endif",
                both = const BOTH as usize,
                chunk = const CHUNK_BYTES,
                add = in(reg) usize::from(t.add),
                a = inout(reg) t.a => _,
                b = inout(reg) t.b => _,
                chunks = inout(reg) t.chunks => _,
                c = in(reg) t.c,
                lower = in(reg) t.c.wrapping_add(16 * t.ldc),
                row = in(reg) row_bytes,
                line = in(reg) 64usize,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}

#[cfg(all(target_arch = "x86_64", target_os = "linux", not(miri)))]
impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: they were configured, so the instruction is there.
        unsafe { std::arch::asm!("tilerelease", options(nostack, nomem)) };
    }
}

#[cfg(not(all(target_arch = "x86_64", target_os = "linux", not(miri))))]
impl Tiles {
    /// There are none.
    pub fn configure() -> Self {
        unreachable!("tiles without AMX");
    }

    /// There are none.
    ///
    /// # Safety
    /// It is never called.
    pub unsafe fn multiply<const BOTH: bool>(&self, _: Operands) {
        unreachable!("tiles without AMX");
    }
}
