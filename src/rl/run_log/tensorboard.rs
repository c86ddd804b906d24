//! TensorBoard event files, written by hand: TFRecord framing around protocol-buffer `Event` messages with scalar summaries.
//!
//! A record is `u64 length | u32 masked CRC-32C of the length | data | u32 masked CRC-32C of the data`, little-endian. An event is
//! `{1: double wall_time, 2: int64 step, 3: string file_version | 5: Summary {1: Value {1: string tag, 2: float simple_value}} |
//! 7: SessionLog {1: status}}`.

use std::fs::File;
use std::io::Write;
use std::path::Path;

/// Writes scalars to an event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
}

impl EventWriter {
    /// Begins a new event file in `dir`; `wall_time` in seconds since 1970 names it. `first_step` is the first that it will hold: what
    /// earlier files say of that step and later ones, TensorBoard then drops.
    pub fn create(dir: &Path, wall_time: f64, first_step: u64) -> std::io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        // A resumed run writes a file of its own; the second part keeps two runs of one second apart.
        let name = format!("events.out.tfevents.{}.{:06}.sorft-native", wall_time as u64, (wall_time.fract() * 1e6) as u32);
        let mut writer = Self { file: File::create(dir.join(name))? };
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time);
        put_bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        let mut start = Vec::new();
        put_double(&mut start, 1, wall_time);
        put_varint(&mut start, 2 << 3);
        put_varint(&mut start, first_step);
        // SessionLog with status START (1).
        put_bytes(&mut start, 7, &[1 << 3, 1]);
        writer.record(&start)?;
        Ok(writer)
    }

    /// Writes scalars of one step.
    pub fn scalars(&mut self, wall_time: f64, step: u64, values: &[(String, f64)]) -> std::io::Result<()> {
        let mut summary = Vec::new();
        for (tag, value) in values {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag.as_bytes());
            put_varint(&mut entry, 2 << 3 | 5);
            entry.extend((*value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
        let mut event = Vec::new();
        put_double(&mut event, 1, wall_time);
        put_varint(&mut event, 2 << 3);
        put_varint(&mut event, step);
        put_bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, data: &[u8]) -> std::io::Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut bytes = Vec::with_capacity(data.len() + 16);
        bytes.extend(length);
        bytes.extend(masked_crc(&length).to_le_bytes());
        bytes.extend(data);
        bytes.extend(masked_crc(data).to_le_bytes());
        self.file.write_all(&bytes)
    }
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_double(out: &mut Vec<u8>, field: u64, value: f64) {
    put_varint(out, field << 3 | 1);
    out.extend(value.to_le_bytes());
}

fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// TFRecord's masked checksum: records may hold checksums themselves, and a plain CRC of a CRC is weak.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xA282_EAD8)
}

/// CRC-32C (Castagnoli), bit by bit reflected polynomial 0x82F63B78; a few hundred bytes a step need no table.
fn crc32c(data: &[u8]) -> u32 {
    !data.iter().fold(!0u32, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82F6_3B78 } else { c >> 1 }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_known_answers() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn records_are_framed_and_events_encoded() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::create(dir.path(), 1.5, 7).unwrap();
        writer.scalars(2.0, 300, &[("loss".into(), 0.25)]).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = std::fs::read(path).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(masked_crc(&rest[..8]).to_le_bytes(), rest[8..12]);
            assert_eq!(masked_crc(&rest[12..12 + n]).to_le_bytes(), rest[12 + n..16 + n]);
            records.push(&rest[12..12 + n]);
            rest = &rest[16 + n..];
        }
        let mut expected = vec![9];
        expected.extend(2f64.to_le_bytes());
        expected.extend([0x10, 0xAC, 0x02, 0x2A, 13, 0x0A, 11, 0x0A, 4]);
        expected.extend(b"loss");
        expected.push(0x15);
        expected.extend(0.25f32.to_le_bytes());
        assert_eq!(records[1][9..], [0x10, 7, 0x3A, 2, 0x08, 1]);
        assert_eq!(records[2..], [&expected[..]]);
    }
}
