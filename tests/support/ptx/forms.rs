//! The instructions that compute lane by lane: one line a form, whose opcode must match to the last modifier.
//!
//! A register holds 64 bits; narrower values lie in the low ones, and what an instruction of a narrower type reads is cut to that.

/// One register of a warp.
pub type Lanes = [u64; 32];

/// Computes the lanes of `mask` from up to four operands.
pub type Form = fn(out: &mut Lanes, operands: [&Lanes; 4], mask: u32);

/// A number that a register can hold.
trait Value: Copy {
    fn of(bits: u64) -> Self;
    fn bits(self) -> u64;
}

macro_rules! integers {
    ($($unsigned:ty, $signed:ty);*) => {$(
        impl Value for $unsigned {
            fn of(bits: u64) -> Self { bits as $unsigned }
            fn bits(self) -> u64 { u64::from(self) }
        }
        impl Value for $signed {
            fn of(bits: u64) -> Self { bits as $signed }
            fn bits(self) -> u64 { u64::from(self as $unsigned) }
        }
    )*};
}
integers!(u16, i16; u32, i32; u64, i64);

impl Value for bool {
    fn of(bits: u64) -> Self {
        bits & 1 == 1
    }
    fn bits(self) -> u64 {
        u64::from(self)
    }
}

impl Value for f32 {
    fn of(bits: u64) -> Self {
        f32::from_bits(bits as u32)
    }
    fn bits(self) -> u64 {
        u64::from(self.to_bits())
    }
}

impl Value for f64 {
    fn of(bits: u64) -> Self {
        f64::from_bits(bits)
    }
    fn bits(self) -> u64 {
        self.to_bits()
    }
}

/// A form from an expression of its operands: `lanes!(a: u32, b: u32 => a & b)`.
macro_rules! lanes {
    ($($x:ident: $t:ty),+ => $result:expr) => {{
        fn form(out: &mut Lanes, operands: [&Lanes; 4], mask: u32) {
            let lane = |l: usize| {
                let mut operands = operands.iter();
                $(let $x = <$t as Value>::of(operands.next().map_or(0, |lanes| lanes[l]));)+
                Value::bits($result)
            };
            if mask == u32::MAX {
                (0..32).for_each(|l| out[l] = lane(l));
            } else {
                (0..32).filter(|l| mask >> l & 1 == 1).for_each(|l| out[l] = lane(l));
            }
        }
        ([$(stringify!($x)),+].len(), form as Form)
    }};
}

/// The form of an opcode and how many operands it takes.
pub fn find(opcode: &str) -> Option<(usize, Form)> {
    let parts: Vec<&str> = opcode.split('.').collect();
    match parts[..] {
        ["setp", relation, kind] => return compare(relation, kind),
        ["cvt", ..] | ["mov", _] | ["cvta", ..] => return convert(opcode),
        _ => {}
    }
    whole_numbers(opcode).or_else(|| bits(opcode)).or_else(|| fractions(opcode))
}

fn whole_numbers(opcode: &str) -> Option<(usize, Form)> {
    Some(match opcode {
        "add.s32" | "add.u32" => lanes!(a: u32, b: u32 => a.wrapping_add(b)),
        "add.s64" | "add.u64" => lanes!(a: u64, b: u64 => a.wrapping_add(b)),
        "sub.s32" | "sub.u32" => lanes!(a: u32, b: u32 => a.wrapping_sub(b)),
        "sub.s64" | "sub.u64" => lanes!(a: u64, b: u64 => a.wrapping_sub(b)),
        "mul.lo.s32" | "mul.lo.u32" => lanes!(a: u32, b: u32 => a.wrapping_mul(b)),
        "mul.lo.s64" | "mul.lo.u64" => lanes!(a: u64, b: u64 => a.wrapping_mul(b)),
        "mul.hi.s32" => lanes!(a: i32, b: i32 => ((i64::from(a) * i64::from(b)) >> 32) as i32),
        "mul.hi.u32" => lanes!(a: u32, b: u32 => ((u64::from(a) * u64::from(b)) >> 32) as u32),
        "mul.wide.s16" => lanes!(a: i16, b: i16 => i32::from(a) * i32::from(b)),
        "mul.wide.u16" => lanes!(a: u16, b: u16 => u32::from(a) * u32::from(b)),
        "mul.wide.s32" => lanes!(a: i32, b: i32 => i64::from(a) * i64::from(b)),
        "mul.wide.u32" => lanes!(a: u32, b: u32 => u64::from(a) * u64::from(b)),
        "mad.lo.s32" | "mad.lo.u32" => lanes!(a: u32, b: u32, c: u32 => a.wrapping_mul(b).wrapping_add(c)),
        "mad.lo.s64" | "mad.lo.u64" => lanes!(a: u64, b: u64, c: u64 => a.wrapping_mul(b).wrapping_add(c)),
        // The manual leaves a division by zero open.
        "div.s32" => lanes!(a: i32, b: i32 => if b == 0 { -1 } else { a.wrapping_div(b) }),
        "div.u32" => lanes!(a: u32, b: u32 => a.checked_div(b).unwrap_or(u32::MAX)),
        "div.s64" => lanes!(a: i64, b: i64 => if b == 0 { -1 } else { a.wrapping_div(b) }),
        "div.u64" => lanes!(a: u64, b: u64 => a.checked_div(b).unwrap_or(u64::MAX)),
        "rem.s32" => lanes!(a: i32, b: i32 => if b == 0 { a } else { a.wrapping_rem(b) }),
        "rem.u32" => lanes!(a: u32, b: u32 => a.checked_rem(b).unwrap_or(a)),
        "rem.s64" => lanes!(a: i64, b: i64 => if b == 0 { a } else { a.wrapping_rem(b) }),
        "rem.u64" => lanes!(a: u64, b: u64 => a.checked_rem(b).unwrap_or(a)),
        "min.s32" => lanes!(a: i32, b: i32 => a.min(b)),
        "min.u32" => lanes!(a: u32, b: u32 => a.min(b)),
        "min.s64" => lanes!(a: i64, b: i64 => a.min(b)),
        "min.u64" => lanes!(a: u64, b: u64 => a.min(b)),
        "max.s32" => lanes!(a: i32, b: i32 => a.max(b)),
        "max.u32" => lanes!(a: u32, b: u32 => a.max(b)),
        "max.s64" => lanes!(a: i64, b: i64 => a.max(b)),
        "max.u64" => lanes!(a: u64, b: u64 => a.max(b)),
        "neg.s32" => lanes!(a: i32 => a.wrapping_neg()),
        "neg.s64" => lanes!(a: i64 => a.wrapping_neg()),
        "abs.s32" => lanes!(a: i32 => a.wrapping_abs()),
        _ => return None,
    })
}

fn bits(opcode: &str) -> Option<(usize, Form)> {
    Some(match opcode {
        "and.pred" => lanes!(a: bool, b: bool => a & b),
        "or.pred" => lanes!(a: bool, b: bool => a | b),
        "xor.pred" => lanes!(a: bool, b: bool => a ^ b),
        "not.pred" => lanes!(a: bool => !a),
        "and.b16" => lanes!(a: u16, b: u16 => a & b),
        "or.b16" => lanes!(a: u16, b: u16 => a | b),
        "and.b32" => lanes!(a: u32, b: u32 => a & b),
        "or.b32" => lanes!(a: u32, b: u32 => a | b),
        "xor.b32" => lanes!(a: u32, b: u32 => a ^ b),
        "not.b32" => lanes!(a: u32 => !a),
        "and.b64" => lanes!(a: u64, b: u64 => a & b),
        "or.b64" => lanes!(a: u64, b: u64 => a | b),
        "xor.b64" => lanes!(a: u64, b: u64 => a ^ b),
        "not.b64" => lanes!(a: u64 => !a),
        // A shift by the width or more leaves nothing, or the sign.
        "shl.b32" => lanes!(a: u32, n: u32 => a.checked_shl(n).unwrap_or(0)),
        "shl.b64" => lanes!(a: u64, n: u32 => a.checked_shl(n).unwrap_or(0)),
        "shr.u16" => lanes!(a: u16, n: u32 => a.checked_shr(n).unwrap_or(0)),
        "shr.u32" | "shr.b32" => lanes!(a: u32, n: u32 => a.checked_shr(n).unwrap_or(0)),
        "shr.u64" | "shr.b64" => lanes!(a: u64, n: u32 => a.checked_shr(n).unwrap_or(0)),
        "shr.s32" => lanes!(a: i32, n: u32 => a >> n.min(31)),
        "shr.s64" => lanes!(a: i64, n: u32 => a >> n.min(63)),
        "bfi.b32" => lanes!(a: u32, b: u32, at: u32, count: u32 => insert(a.into(), b.into(), at & 255, count & 255) as u32),
        "bfi.b64" => lanes!(a: u64, b: u64, at: u32, count: u32 => insert(a, b, at & 255, count & 255)),
        "prmt.b32" => lanes!(a: u32, b: u32, choice: u32 => permute(a, b, choice)),
        "popc.b32" => lanes!(a: u32 => a.count_ones()),
        "clz.b32" => lanes!(a: u32 => a.leading_zeros()),
        "brev.b32" => lanes!(a: u32 => a.reverse_bits()),
        "selp.b16" | "selp.u16" => lanes!(a: u16, b: u16, p: bool => if p { a } else { b }),
        "selp.b32" | "selp.u32" | "selp.s32" | "selp.f32" => lanes!(a: u32, b: u32, p: bool => if p { a } else { b }),
        "selp.b64" | "selp.u64" | "selp.s64" | "selp.f64" => lanes!(a: u64, b: u64, p: bool => if p { a } else { b }),
        _ => return None,
    })
}

/// Only forms that no compiler may contract: an `add.f32` without `.rn` could become part of a fused multiply-add.
fn fractions(opcode: &str) -> Option<(usize, Form)> {
    Some(match opcode {
        "add.rn.f32" => lanes!(a: f32, b: f32 => a + b),
        "sub.rn.f32" => lanes!(a: f32, b: f32 => a - b),
        "mul.rn.f32" => lanes!(a: f32, b: f32 => a * b),
        "div.rn.f32" => lanes!(a: f32, b: f32 => a / b),
        "rcp.rn.f32" => lanes!(a: f32 => 1.0 / a),
        "sqrt.rn.f32" => lanes!(a: f32 => a.sqrt()),
        "fma.rn.f32" => lanes!(a: f32, b: f32, c: f32 => a.mul_add(b, c)),
        "neg.f32" => lanes!(a: f32 => -a),
        "abs.f32" => lanes!(a: f32 => a.abs()),
        "max.f32" => lanes!(a: f32, b: f32 => larger(a, b)),
        "min.f32" => lanes!(a: f32, b: f32 => -larger(-a, -b)),
        "add.rn.f64" => lanes!(a: f64, b: f64 => a + b),
        "sub.rn.f64" => lanes!(a: f64, b: f64 => a - b),
        "mul.rn.f64" => lanes!(a: f64, b: f64 => a * b),
        "div.rn.f64" => lanes!(a: f64, b: f64 => a / b),
        "neg.f64" => lanes!(a: f64 => -a),
        "fma.rn.f64" => lanes!(a: f64, b: f64, c: f64 => a.mul_add(b, c)),
        // Within some units of the last place on a chip; here, as in the emulator, what the C library says.
        "ex2.approx.ftz.f32" => lanes!(a: f32 => flushed(flushed(a).exp2())),
        "lg2.approx.ftz.f32" => lanes!(a: f32 => flushed(a).log2()),
        _ => return None,
    })
}

fn convert(opcode: &str) -> Option<(usize, Form)> {
    Some(match opcode {
        "mov.pred" => lanes!(a: bool => a),
        "mov.u16" | "mov.b16" => lanes!(a: u16 => a),
        "mov.u32" | "mov.b32" | "mov.s32" | "mov.f32" => lanes!(a: u32 => a),
        "mov.u64" | "mov.b64" | "mov.s64" | "mov.f64" => lanes!(a: u64 => a),
        // Addresses of global memory are the same in both ways to say them; those of shared memory are offsets, which generic ones are not.
        "cvta.to.global.u64" | "cvta.global.u64" => lanes!(a: u64 => a),
        "cvta.shared.u64" => lanes!(a: u64 => a.wrapping_add(super::memory::SHARED_WINDOW)),
        "cvta.param.u64" => lanes!(a: u64 => a.wrapping_add(super::memory::PARAMETER_WINDOW)),
        "cvta.to.shared.u64" => lanes!(a: u64 => a.wrapping_sub(super::memory::SHARED_WINDOW)),
        "cvt.u16.u32" | "cvt.u16.u64" => lanes!(a: u16 => a),
        "cvt.u32.u16" => lanes!(a: u16 => u32::from(a)),
        "cvt.s32.s16" => lanes!(a: i16 => i32::from(a)),
        "cvt.u32.u64" => lanes!(a: u32 => a),
        "cvt.u64.u16" => lanes!(a: u16 => u64::from(a)),
        "cvt.u64.u32" => lanes!(a: u32 => u64::from(a)),
        "cvt.s64.s32" => lanes!(a: i32 => i64::from(a)),
        "cvt.rn.f32.u16" => lanes!(a: u16 => f32::from(a)),
        "cvt.rn.f32.s32" => lanes!(a: i32 => a as f32),
        "cvt.rn.f32.u32" => lanes!(a: u32 => a as f32),
        "cvt.rn.f32.s64" => lanes!(a: i64 => a as f32),
        "cvt.rzi.s32.f32" => lanes!(a: f32 => a as i32),
        "cvt.rzi.u32.f32" => lanes!(a: f32 => a as u32),
        "cvt.f64.f32" => lanes!(a: f32 => f64::from(a)),
        "cvt.rn.f64.s32" => lanes!(a: i32 => f64::from(a)),
        "cvt.rn.f64.u32" => lanes!(a: u32 => f64::from(a)),
        "cvt.rzi.u64.f64" => lanes!(a: f64 => a as u64),
        "cvt.rn.f32.f64" => lanes!(a: f64 => a as f32),
        // The first operand becomes the upper half.
        "cvt.rn.bf16x2.f32" => lanes!(hi: f32, lo: f32 => u32::from(to_bf16(hi)) << 16 | u32::from(to_bf16(lo))),
        _ => return None,
    })
}

/// `setp`. Relations of fractions are false for NaN, those that end in `u` true.
fn compare(relation: &str, kind: &str) -> Option<(usize, Form)> {
    macro_rules! ordered {
        ($t:ty, $($extra:tt)*) => {
            Some(match relation {
                "eq" => lanes!(a: $t, b: $t => a == b),
                "lt" => lanes!(a: $t, b: $t => a < b),
                "le" => lanes!(a: $t, b: $t => a <= b),
                "gt" => lanes!(a: $t, b: $t => a > b),
                "ge" => lanes!(a: $t, b: $t => a >= b),
                $($extra)*
                _ => return None,
            })
        };
    }
    macro_rules! integer {
        ($t:ty) => { ordered!($t, "ne" => lanes!(a: $t, b: $t => a != b),) };
    }
    macro_rules! fraction {
        ($t:ty) => {
            ordered!($t,
                "ne" => lanes!(a: $t, b: $t => a != b && !a.is_nan() && !b.is_nan()),
                "equ" => lanes!(a: $t, b: $t => a == b || a.is_nan() || b.is_nan()),
                "neu" => lanes!(a: $t, b: $t => a != b),
                "ltu" => lanes!(a: $t, b: $t => a.partial_cmp(&b).is_none_or(|o| o.is_lt())),
                "leu" => lanes!(a: $t, b: $t => a.partial_cmp(&b).is_none_or(|o| o.is_le())),
                "gtu" => lanes!(a: $t, b: $t => a.partial_cmp(&b).is_none_or(|o| o.is_gt())),
                "geu" => lanes!(a: $t, b: $t => a.partial_cmp(&b).is_none_or(|o| o.is_ge())),
                "num" => lanes!(a: $t, b: $t => !a.is_nan() && !b.is_nan()),
                "nan" => lanes!(a: $t, b: $t => a.is_nan() || b.is_nan()),
            )
        };
    }
    match kind {
        "s16" => integer!(i16),
        "u16" | "b16" => integer!(u16),
        "s32" => integer!(i32),
        "u32" | "b32" => integer!(u32),
        "s64" => integer!(i64),
        "u64" | "b64" => integer!(u64),
        "f32" => fraction!(f32),
        "f64" => fraction!(f64),
        _ => None,
    }
}

/// `max.f32`: the other number where one is NaN, and +0 above -0.
fn larger(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::from_bits(0x7fff_ffff),
        (true, false) => b,
        (false, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() & b.to_bits()),
        _ => a.max(b),
    }
}

/// A subnormal number becomes a zero of its sign.
fn flushed(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// To nearest, ties to even; NaN is 0x7fff.
fn to_bf16(x: f32) -> u16 {
    if x.is_nan() { 0x7fff } else { half::bf16::from_f32(x).to_bits() }
}

/// `bfi`: the low `count` bits of `a` at place `at` of `b`.
fn insert(a: u64, b: u64, at: u32, count: u32) -> u64 {
    let ones = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
    let mask = ones.checked_shl(at).unwrap_or(0);
    b & !mask | a.checked_shl(at).unwrap_or(0) & mask
}

/// `prmt`: each byte of the result is one of the eight of `b:a`, or its sign eight times.
fn permute(a: u32, b: u32, choice: u32) -> u32 {
    let bytes = u64::from(b) << 32 | u64::from(a);
    (0..4).fold(0, |out, i| {
        let nibble = choice >> (4 * i) & 15;
        let byte = (bytes >> (8 * (nibble & 7))) as u8;
        let byte = if nibble & 8 == 0 { byte } else { ((byte as i8) >> 7) as u8 };
        out | u32::from(byte) << (8 * i)
    })
}
