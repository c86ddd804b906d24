//! Python strings as bytes, and `str.splitlines`, `str.strip`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Visitor};

/// A Python string: its code points in UTF-8, lone surrogates included (each as its three bytes).
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PyText(Vec<u8>);

impl PyText {
    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The text for people: lone surrogates are replaced by U+FFFD.
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl From<Vec<u8>> for PyText {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }
}

impl From<&[u8]> for PyText {
    fn from(bytes: &[u8]) -> Self {
        Self(bytes.to_vec())
    }
}

impl From<&str> for PyText {
    fn from(text: &str) -> Self {
        Self(text.as_bytes().to_vec())
    }
}

impl fmt::Debug for PyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&json_string(&self.0))
    }
}

impl fmt::Display for PyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}

/// From a JSON string, as Python's `json` reads it: `"\ud83d\ude00"` is one code point, `"\ud83d"` is a lone surrogate.
impl<'de> Deserialize<'de> for PyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = PyText;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }

            fn visit_str<E>(self, v: &str) -> Result<PyText, E> {
                Ok(v.into())
            }

            fn visit_bytes<E>(self, v: &[u8]) -> Result<PyText, E> {
                Ok(v.into())
            }
        }
        // Asked for a string, serde_json refuses lone surrogates; asked for bytes, it gives them.
        deserializer.deserialize_bytes(Text)
    }
}

/// The text as a JSON string; lone surrogates are escaped.
pub fn json_string(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for chunk in text.utf8_chunks() {
        if let Ok(json) = serde_json::to_string(chunk.valid()) {
            out.push_str(&json[1..json.len() - 1]);
        }
        // The three bytes of a surrogate come as three invalid chunks of one byte: the first says nothing without the others.
        let at = chunk.invalid().as_ptr().addr().wrapping_sub(text.as_ptr().addr());
        if let ([0xED], Some(&[_, second, third])) = (chunk.invalid(), text.get(at..at + 3)) {
            let point = 0xD000 | (u32::from(second & 0x3F) << 6) | u32::from(third & 0x3F);
            out.push_str(&format!("\\u{point:04x}"));
        }
    }
    out.push('"');
    out
}

/// The code points of a text.
pub fn code_points(text: &[u8]) -> Vec<u32> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied();
    while let Some(first) = bytes.next() {
        let (mut point, more) = match first {
            0..=0x7F => (u32::from(first), 0),
            0x80..=0xDF => (u32::from(first & 0x1F), 1),
            0xE0..=0xEF => (u32::from(first & 0x0F), 2),
            _ => (u32::from(first & 0x07), 3),
        };
        for next in bytes.by_ref().take(more) {
            point = (point << 6) | u32::from(next & 0x3F);
        }
        out.push(point);
    }
    out
}

/// `str.splitlines()`: lines without their ends. A line ends at `\n`, `\r`, `\r\n`, `\v`, `\f`, U+001C to U+001E, U+0085, U+2028 or
/// U+2029; an end at the end of the text opens no further line.
pub fn splitlines(text: &[u8]) -> Vec<&[u8]> {
    let mut lines = Vec::new();
    let (mut start, mut at) = (0, 0);
    while at < text.len() {
        let end = line_end(&text[at..]);
        if end > 0 {
            lines.push(&text[start..at]);
            start = at + end;
        }
        at += end.max(1);
    }
    if start < text.len() {
        lines.push(&text[start..]);
    }
    lines
}

/// How many bytes the line end at the beginning of `rest` has; 0 where there is none.
fn line_end(rest: &[u8]) -> usize {
    match rest {
        [b'\r', b'\n', ..] => 2,
        [b'\n' | b'\r' | 0x0B | 0x0C | 0x1C..=0x1E, ..] => 1,
        [0xC2, 0x85, ..] => 2,
        [0xE2, 0x80, 0xA8 | 0xA9, ..] => 3,
        _ => 0,
    }
}

/// `str.strip()`: without white space at both ends. Python's white space is Unicode's and U+001C to U+001F.
pub fn strip(mut text: &[u8]) -> &[u8] {
    while let n @ 1.. = (1..=3.min(text.len())).find(|&n| is_space(&text[..n])).unwrap_or(0) {
        text = &text[n..];
    }
    while let n @ 1.. = (1..=3.min(text.len())).find(|&n| is_space(&text[text.len() - n..])).unwrap_or(0) {
        text = &text[..text.len() - n];
    }
    text
}

/// Whether the bytes are one white space character.
fn is_space(bytes: &[u8]) -> bool {
    match bytes {
        [b] => matches!(b, 0x09..=0x0D | 0x1C..=0x20),
        [0xC2, b] => matches!(b, 0x85 | 0xA0),
        [0xE1, 0x9A, 0x80] | [0xE2, 0x81, 0x9F] | [0xE3, 0x80, 0x80] => true,
        [0xE2, 0x80, b] => matches!(b, 0x80..=0x8A | 0xA8 | 0xA9 | 0xAF),
        _ => false,
    }
}
