//! From statements to instructions.

use super::forms::{self, Form};
use super::hopper::{self, Hopper};
use super::text::{Entry, Operand, Statement};
use super::{Result, matrix};

/// An instruction with its operands' registers.
pub struct Instruction {
    pub line: usize,
    pub guard: Option<(usize, bool)>,
    pub action: Action,
}

/// What an instruction does. `to` is a result, other numbers are registers of operands unless something else is said.
pub enum Action {
    /// Each lane by itself.
    Compute {
        form: Form,
        to: usize,
        from: [usize; 4],
    },
    /// `mov` of a wide value to its parts, the lowest first, and back.
    Split {
        to: Vec<usize>,
        from: usize,
        bits: u32,
    },
    Join {
        to: usize,
        from: Vec<usize>,
        bits: u32,
    },
    LoadParameter {
        to: usize,
        first: u64,
        kind: Kind,
    },
    Load {
        space: Space,
        kind: Kind,
        to: Vec<usize>,
        at: Place,
    },
    Store {
        space: Space,
        kind: Kind,
        from: Vec<usize>,
        at: Place,
    },
    /// `old` is none for `red`.
    Atomic {
        space: Space,
        update: Update,
        bytes: usize,
        old: Option<usize>,
        at: Place,
        from: usize,
        compare: usize,
    },
    Branch {
        to: usize,
    },
    Exit,
    /// The barrier of the block, or one that so many threads meet at.
    Barrier {
        id: usize,
        threads: Option<usize>,
        reduce: Reduce,
        to: usize,
        from: usize,
    },
    WarpBarrier {
        mask: usize,
    },
    Shuffle {
        from: Source,
        to: usize,
        valid: Option<usize>,
        value: usize,
        lane: usize,
        clamp: usize,
        mask: usize,
    },
    Vote {
        vote: Vote,
        to: usize,
        from: usize,
        mask: usize,
    },
    MatchAny {
        bits: u32,
        to: usize,
        value: usize,
        mask: usize,
    },
    ActiveMask {
        to: usize,
    },
    LoadMatrices {
        transposed: bool,
        to: Vec<usize>,
        at: Place,
    },
    Multiply(matrix::Product),
    /// The register `read`: how many bytes come from memory, of 16; the others are zeros.
    CopyAsync {
        to: Place,
        from: Place,
        read: Option<usize>,
    },
    CommitCopies,
    WaitForCopies {
        pending: usize,
    },
    /// What only sm_90a has.
    Hopper(Hopper),
    /// Orders memory, which is in order here.
    Nothing,
}

/// A register's value and a constant.
#[derive(Clone, Copy)]
pub struct Place {
    pub base: usize,
    pub offset: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Space {
    Global,
    Shared,
    Generic,
}

/// How a value lies in memory.
#[derive(Clone, Copy)]
pub struct Kind {
    pub bytes: usize,
    pub signed: bool,
}

/// What an atomic does with the number that is there, `a`, and its operand, `b`.
pub type Update = fn(a: u64, b: u64, compare: u64) -> u64;

#[derive(Clone, Copy)]
pub enum Reduce {
    None,
    And,
    Or,
    Count,
}

#[derive(Clone, Copy)]
pub enum Source {
    Index,
    Up,
    Down,
    Butterfly,
}

#[derive(Clone, Copy)]
pub enum Vote {
    Ballot,
    Any,
    All,
}

/// Decodes an entry's statements.
pub fn decode(entry: &Entry) -> Result<Vec<Instruction>> {
    let decode = |s: &Statement| {
        let action = action(entry, s).map_err(|e| format!("PTX line {}: {e}: {} {:?}", s.line, s.opcode, s.operands))?;
        Ok::<_, String>(Instruction { line: s.line, guard: s.guard, action })
    };
    entry.statements.iter().map(decode).collect()
}

fn action(entry: &Entry, s: &Statement) -> Result<Action> {
    use Operand::{Label, Register, Vector};
    let o = &s.operands[..];
    match (s.opcode.as_str(), o) {
        ("mov.b64" | "mov.b32", [Vector(to), Register(from)]) => {
            let to = registers(to)?;
            Ok(Action::Split { bits: width(&s.opcode)? / to.len() as u32, to, from: *from })
        }
        ("mov.b64" | "mov.b32", [Register(to), Vector(from)]) => {
            let from = registers(from)?;
            Ok(Action::Join { bits: width(&s.opcode)? / from.len() as u32, from, to: *to })
        }
        ("bra" | "bra.uni", [Label(label)]) => {
            let to = *entry.labels.get(label).ok_or("no such label")?;
            Ok(Action::Branch { to })
        }
        ("ret" | "exit", []) => Ok(Action::Exit),
        _ => match s.opcode.split('.').next().unwrap_or_default() {
            _ if hopper::FAMILIES.iter().any(|family| s.opcode.starts_with(family)) => hopper::decode(entry, s).map(Action::Hopper),
            "ld" | "st" => access(entry, s),
            "atom" | "red" => atomic(s),
            "bar" | "barrier" | "membar" | "fence" | "nanosleep" => order(entry, s),
            "shfl" | "vote" | "match" | "activemask" => exchange(s),
            "ldmatrix" | "mma" | "cp" => tile(entry, s),
            _ => compute(s),
        },
    }
}

pub const UNKNOWN: &str = "unknown instruction or operands";

fn compute(s: &Statement) -> Result<Action> {
    let (count, form) = forms::find(&s.opcode).ok_or(UNKNOWN)?;
    let operands = registers(&s.operands)?;
    if operands.len() != count + 1 {
        return Err(format!("{count} operands and a result are expected"));
    }
    let from = |i: usize| operands.get(i + 1).copied().unwrap_or(operands[0]);
    Ok(Action::Compute { form, to: operands[0], from: [from(0), from(1), from(2), from(3)] })
}

fn access(entry: &Entry, s: &Statement) -> Result<Action> {
    let mut parts: Vec<&str> = s.opcode.split('.').collect();
    let kind = kind(parts.pop().unwrap_or_default())?;
    let count = match parts.last() {
        Some(&"v2") => 2,
        Some(&"v4") => 4,
        _ => 1,
    };
    if count > 1 {
        parts.pop();
    }
    let space = match parts[1..] {
        ["param"] => None,
        [] => Some(Space::Generic),
        ["global"] | ["global", "nc"] | ["acquire", "gpu", "global"] => Some(Space::Global),
        ["shared"] => Some(Space::Shared),
        _ => return Err(UNKNOWN.to_owned()),
    };
    let values = |o: &Operand| match o {
        Operand::Vector(v) if v.len() == count && count > 1 => registers(v),
        Operand::Register(r) if count == 1 => Ok(vec![*r]),
        _ => Err(UNKNOWN.to_owned()),
    };
    match (parts[0], space, &s.operands[..]) {
        ("ld", None, [Operand::Register(to), Operand::Parameter(first)]) => {
            let inside = |(at, bytes): &(u64, usize)| *at <= *first && first + kind.bytes as u64 <= at + *bytes as u64;
            entry.parameters.iter().find(|p| inside(p)).ok_or("beyond the parameter")?;
            Ok(Action::LoadParameter { to: *to, first: *first, kind })
        }
        ("ld", Some(space), [to, at]) => Ok(Action::Load { space, kind, to: values(to)?, at: place(at)? }),
        ("st", Some(space), [at, from]) => Ok(Action::Store { space, kind, from: values(from)?, at: place(at)? }),
        _ => Err(UNKNOWN.to_owned()),
    }
}

fn atomic(s: &Statement) -> Result<Action> {
    let parts: Vec<&str> = s.opcode.split('.').collect();
    let (space, what, kind_of) = match parts[1..] {
        ["global", what, kind] | ["release", "gpu", "global", what, kind] => (Space::Global, what, kind),
        ["shared", what, kind] => (Space::Shared, what, kind),
        [what, kind] => (Space::Generic, what, kind),
        _ => return Err(UNKNOWN.to_owned()),
    };
    let update: Update = match (what, kind_of) {
        ("add", "u32" | "s32") => |a, b, _| u64::from((a as u32).wrapping_add(b as u32)),
        ("add", "u64") => |a, b, _| a.wrapping_add(b),
        ("add", "f32") => |a, b, _| u64::from((f32::from_bits(a as u32) + f32::from_bits(b as u32)).to_bits()),
        ("min", "s32") => |a, b, _| u64::from((a as i32).min(b as i32) as u32),
        ("max", "s32") => |a, b, _| u64::from((a as i32).max(b as i32) as u32),
        ("min", "u32") => |a, b, _| u64::from((a as u32).min(b as u32)),
        ("max", "u32") => |a, b, _| u64::from((a as u32).max(b as u32)),
        ("exch", "b32" | "b64") => |_, b, _| b,
        ("cas", "b32" | "b64") => |a, b, compare| if a == compare { b } else { a },
        _ => return Err(UNKNOWN.to_owned()),
    };
    let bytes = kind(kind_of)?.bytes;
    let (old, at, from) = match (parts[0], &s.operands[..]) {
        ("atom", [Operand::Register(old), at, from @ ..]) => (Some(*old), at, from),
        ("red", [at, from @ ..]) => (None, at, from),
        _ => return Err(UNKNOWN.to_owned()),
    };
    let (compare, from) = match (what, &registers(from)?[..]) {
        ("cas", [compare, from]) => (*compare, *from),
        ("cas", _) => return Err(UNKNOWN.to_owned()),
        (_, [from]) => (*from, *from),
        _ => return Err(UNKNOWN.to_owned()),
    };
    Ok(Action::Atomic { space, update, bytes, old, at: place(at)?, from, compare })
}

fn order(entry: &Entry, s: &Statement) -> Result<Action> {
    let o = &s.operands[..];
    let zero = |r: &usize| entry.constants.get(&0) == Some(r);
    match (s.opcode.as_str(), o) {
        ("membar.gl" | "membar.cta" | "fence.acq_rel.gpu" | "fence.acq_rel.cta", []) | ("nanosleep.u32", [_]) => Ok(Action::Nothing),
        ("bar.warp.sync", [Operand::Register(mask)]) => Ok(Action::WarpBarrier { mask: *mask }),
        ("bar.sync" | "barrier.sync" | "barrier.sync.aligned", [Operand::Register(id)]) if zero(id) => {
            Ok(Action::Barrier { id: *id, threads: None, reduce: Reduce::None, to: *id, from: *id })
        }
        ("bar.sync", [Operand::Register(id), Operand::Register(threads)]) => {
            Ok(Action::Barrier { id: *id, threads: Some(*threads), reduce: Reduce::None, to: *id, from: *id })
        }
        (
            "bar.red.and.pred" | "bar.red.or.pred" | "bar.red.popc.u32",
            [Operand::Register(to), Operand::Register(id), Operand::Register(from)],
        ) if zero(id) => {
            let reduce = match s.opcode.as_str() {
                "bar.red.and.pred" => Reduce::And,
                "bar.red.or.pred" => Reduce::Or,
                _ => Reduce::Count,
            };
            Ok(Action::Barrier { id: *id, threads: None, reduce, to: *to, from: *from })
        }
        _ => Err(UNKNOWN.to_owned()),
    }
}

fn exchange(s: &Statement) -> Result<Action> {
    use Operand::{Pair, Register};
    match (s.opcode.as_str(), &s.operands[..]) {
        (opcode, [to, Register(value), Register(lane), Register(clamp), Register(mask)]) => {
            let from = match opcode {
                "shfl.sync.idx.b32" => Source::Index,
                "shfl.sync.up.b32" => Source::Up,
                "shfl.sync.down.b32" => Source::Down,
                "shfl.sync.bfly.b32" => Source::Butterfly,
                _ => return Err(UNKNOWN.to_owned()),
            };
            let (to, valid) = match to {
                Register(to) => (*to, None),
                Pair(to, valid) => (*to, Some(*valid)),
                _ => return Err(UNKNOWN.to_owned()),
            };
            Ok(Action::Shuffle { from, to, valid, value: *value, lane: *lane, clamp: *clamp, mask: *mask })
        }
        (
            opcode @ ("vote.sync.ballot.b32" | "vote.sync.any.pred" | "vote.sync.all.pred"),
            [Register(to), Register(from), Register(mask)],
        ) => {
            let vote = match opcode {
                "vote.sync.ballot.b32" => Vote::Ballot,
                "vote.sync.any.pred" => Vote::Any,
                _ => Vote::All,
            };
            Ok(Action::Vote { vote, to: *to, from: *from, mask: *mask })
        }
        (opcode @ ("match.any.sync.b32" | "match.any.sync.b64"), [Register(to), Register(value), Register(mask)]) => {
            Ok(Action::MatchAny { bits: width(opcode)?, to: *to, value: *value, mask: *mask })
        }
        ("activemask.b32", [Register(to)]) => Ok(Action::ActiveMask { to: *to }),
        _ => Err(UNKNOWN.to_owned()),
    }
}

fn tile(entry: &Entry, s: &Statement) -> Result<Action> {
    use Operand::{Register, Vector};
    let constant = |register: &usize| entry.constant(*register);
    match (s.opcode.as_str(), &s.operands[..]) {
        ("ldmatrix.sync.aligned.m8n8.x4.shared.b16" | "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16", [Vector(to), at])
            if to.len() == 4 =>
        {
            Ok(Action::LoadMatrices { transposed: s.opcode.contains(".trans."), to: registers(to)?, at: place(at)? })
        }
        ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", [Vector(d), Vector(a), Vector(b), Vector(c)]) => {
            let array = || UNKNOWN.to_owned();
            Ok(Action::Multiply(matrix::Product {
                d: registers(d)?.try_into().map_err(|_| array())?,
                a: registers(a)?.try_into().map_err(|_| array())?,
                b: registers(b)?.try_into().map_err(|_| array())?,
                c: registers(c)?.try_into().map_err(|_| array())?,
            }))
        }
        ("cp.async.cg.shared.global", [to, from, Register(bytes), read @ ..]) if constant(bytes) == Some(16) && read.len() <= 1 => {
            Ok(Action::CopyAsync { to: place(to)?, from: place(from)?, read: registers(read)?.first().copied() })
        }
        ("cp.async.commit_group", []) => Ok(Action::CommitCopies),
        ("cp.async.wait_group", [Register(pending)]) => {
            Ok(Action::WaitForCopies { pending: constant(pending).ok_or("a constant is expected")? as usize })
        }
        _ => Err(UNKNOWN.to_owned()),
    }
}

pub fn registers(operands: &[Operand]) -> Result<Vec<usize>> {
    let register = |o: &Operand| match o {
        Operand::Register(r) => Ok(*r),
        _ => Err(UNKNOWN.to_owned()),
    };
    operands.iter().map(register).collect()
}

pub fn place(operand: &Operand) -> Result<Place> {
    match operand {
        Operand::Address(base, offset) => Ok(Place { base: *base, offset: *offset }),
        _ => Err("an address is expected".to_owned()),
    }
}

/// `b32`, `s64`, `f32`, ...
fn kind(name: &str) -> Result<Kind> {
    let bits = name.strip_prefix(['b', 'u', 's', 'f']).and_then(|n| n.parse::<usize>().ok()).filter(|n| [8, 16, 32, 64].contains(n));
    Ok(Kind { bytes: bits.ok_or(UNKNOWN)? / 8, signed: name.starts_with('s') })
}

/// The bits of an opcode's last type.
fn width(opcode: &str) -> Result<u32> {
    Ok(kind(opcode.rsplit('.').next().unwrap_or_default())?.bytes as u32 * 8)
}
