//! Which vector instructions this processor has.

use std::sync::OnceLock;

/// An instruction set for which there are kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 (F, BW, DQ, VL).
    Avx512,
}

/// The best instruction set of this processor, looked up once. `SORFT_ISA=portable|avx2|avx512` asks for a lower one (for tests and
/// comparisons: all give the same bits), without AMX beside it ([`has_amx`](crate::tensor::cpu::bf16::has_amx)); what the processor lacks is
/// never chosen.
pub fn isa() -> Isa {
    static ISA: OnceLock<Isa> = OnceLock::new();
    *ISA.get_or_init(|| {
        let best = detect();
        let wanted = match std::env::var("SORFT_ISA").as_deref() {
            Ok("portable") => Isa::Portable,
            Ok("avx2") => Isa::Avx2,
            _ => Isa::Avx512,
        };
        best.min(wanted)
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    use std::arch::is_x86_feature_detected as has;
    let avx2 = has!("avx2") && has!("fma");
    if avx2 && has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") {
        Isa::Avx512
    } else if avx2 {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

/// Defines a function whose body is compiled once for each instruction set; a call picks the best at run time. The body is plain Rust over
/// arrays of [`crate::tensor::cpu::vector::LANES`] numbers, which the compiler turns into vector instructions.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                match $crate::tensor::cpu::isa() {
                    // SAFETY: `isa` returns only what the processor was found to have.
                    $crate::tensor::cpu::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    $crate::tensor::cpu::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    $crate::tensor::cpu::Isa::Portable => {}
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use vectorized;
