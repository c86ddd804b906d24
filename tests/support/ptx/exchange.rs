//! What the lanes of a warp tell each other.

use super::Result;
use super::decode::{Source, Vote};
use super::forms::Lanes;

/// `shfl.sync`. The clamp operand has the last lane of a segment in its low five bits, and in bits 8 to 12 those of a lane's number that
/// tell its segment. A lane whose source lies outside its segment keeps its own value.
pub fn shuffle(
    registers: &mut [Lanes],
    active: u32,
    from: Source,
    [to, value, lane, clamp]: [usize; 4],
    valid: Option<usize>,
) -> Result<()> {
    let (values, operands, clamps) = (registers[value], registers[lane], registers[clamp]);
    for l in (0..32i64).filter(|l| active >> l & 1 == 1) {
        let i = l as usize;
        let (by, segment) = (operands[i] as i64 & 31, (clamps[i] >> 8 & 31) as i64);
        let (first, last) = (l & segment, l & segment | (clamps[i] & 31) as i64 & !segment);
        let (source, inside) = match from {
            Source::Index => (first | by & !segment, first | by & !segment <= last),
            Source::Up => (l - by, l - by >= last),
            Source::Down => (l + by, l + by <= last),
            Source::Butterfly => (l ^ by, l ^ by <= last),
        };
        let source = if inside { source } else { l };
        if active >> source & 1 == 0 {
            return Err(format!("lane {l} reads lane {source}, which does not take part"));
        }
        registers[to][i] = values[source as usize] & u64::from(u32::MAX);
        if let Some(valid) = valid {
            registers[valid][i] = u64::from(inside);
        }
    }
    Ok(())
}

/// `vote.sync`.
pub fn vote(registers: &mut [Lanes], active: u32, vote: Vote, to: usize, from: usize) {
    let yes = (0..32).filter(|l| active >> l & 1 == 1 && registers[from][*l] & 1 == 1).fold(0u32, |mask, l| mask | 1 << l);
    let result = match vote {
        Vote::Ballot => u64::from(yes),
        Vote::Any => u64::from(yes != 0),
        Vote::All => u64::from(yes == active),
    };
    (0..32).filter(|l| active >> l & 1 == 1).for_each(|l| registers[to][l] = result);
}

/// `match.any.sync`: for each lane, those that have its value.
pub fn match_any(registers: &mut [Lanes], active: u32, bits: u32, to: usize, value: usize) {
    let values = registers[value].map(|v| if bits == 32 { v & u64::from(u32::MAX) } else { v });
    for l in (0..32).filter(|l| active >> l & 1 == 1) {
        let same = (0..32).filter(|k| active >> k & 1 == 1 && values[*k] == values[l]);
        registers[to][l] = same.fold(0, |mask, k| mask | 1 << k);
    }
}
