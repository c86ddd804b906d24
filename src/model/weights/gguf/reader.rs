//! The header of a GGUF file (versions 2 and 3, little-endian): metadata by key, and where each tensor lies.
//!
//! Nothing that the header says is believed before it is checked against the size of the file. Arrays stay in the file and are decoded when
//! they are asked for, so a header cannot make the program allocate more than a small multiple of its own bytes.

use super::dequant::GgmlType;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ops::Range;

/// Metadata and tensors of a file.
#[derive(Debug, Default)]
pub(super) struct Header {
    pub(super) metadata: BTreeMap<String, MetaValue>,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum MetaValue {
    Int(i128),
    F32(f32),
    F64(f64),
    Bool(bool),
    Str(String),
    /// Element type, number of elements, and their bytes in the file.
    Array(u32, usize, Range<usize>),
}

/// Where a tensor lies.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TensorInfo {
    pub(super) ty: GgmlType,
    /// Outermost dimension first (the file has them the other way round).
    pub(super) shape: Vec<usize>,
    /// In the file.
    pub(super) bytes: Range<usize>,
}

/// The format's numbers of value types.
const STRING: u32 = 8;
const ARRAY: u32 = 9;
/// Arrays of arrays deeper than this do not exist.
const MAX_DEPTH: usize = 4;

/// Reads and checks a header. Places in errors are keys and tensor names.
pub(super) fn parse(file: &[u8]) -> Result<Header> {
    let mut r = Reader { file, at: 0 };
    let (tensors, keys) = read_preamble(&mut r)?;
    let mut header = Header::default();
    for i in 0..keys {
        let key = r.string().map_err(|e| e.at(format_args!("metadata key {i} of {keys}")))?.to_owned();
        let value = r.u32().and_then(|ty| r.value(ty, 0)).map_err(|e| e.at(&key))?;
        if header.metadata.insert(key.clone(), value).is_some() {
            return Err(Error::input("the key occurs twice").at(key));
        }
    }
    let alignment = match header.metadata.get("general.alignment") {
        None => 32,
        Some(MetaValue::Int(n)) if (1..=1 << 20).contains(n) => *n as usize,
        Some(_) => return Err(Error::input("expected a number of bytes from 1 to 1048576").at("general.alignment")),
    };
    let mut infos = Vec::new();
    for i in 0..tensors {
        let name = r.string().map_err(|e| e.at(format_args!("tensor {i} of {tensors}")))?.to_owned();
        let info = r.tensor_info().map_err(|e| e.at(format_args!("tensor `{name}`")))?;
        infos.push((name, info));
    }
    let data = r.at.next_multiple_of(alignment);
    for (name, raw) in infos {
        let info = place(&raw, data, alignment, file.len()).map_err(|e| e.at(format_args!("tensor `{name}`")))?;
        if header.tensors.insert(name.clone(), info).is_some() {
            return Err(Error::input("there are two tensors of this name").at(format_args!("tensor `{name}`")));
        }
    }
    Ok(header)
}

/// Magic, version, and the numbers of tensors and keys.
fn read_preamble(r: &mut Reader<'_>) -> Result<(u64, u64)> {
    if r.take(4).ok() != Some(b"GGUF") {
        return Err(Error::input("expected a GGUF file: it does not begin with `GGUF`"));
    }
    let version = r.u32()?;
    match version {
        2 | 3 => {}
        v if (1..=3).contains(&v.swap_bytes()) => {
            return Err(Error::input("big-endian GGUF files are not supported").hint("convert it with gguf-convert-endian"));
        }
        v => {
            return Err(
                Error::input(format!("expected GGUF version 2 or 3, found {v}")).hint("convert the model again with a current tool")
            );
        }
    }
    let (tensors, keys) = (r.u64()?, r.u64()?);
    // The least a tensor's or key's entry can take, so that a count can be seen to lie at once.
    let left = (r.file.len() - r.at) as u64;
    if tensors > left / 24 || keys > left / 13 {
        return Err(Error::input(format!("the header claims {tensors} tensors and {keys} metadata keys in {left} bytes"))
            .hint("the file is damaged, or its download is not complete"));
    }
    Ok((tensors, keys))
}

/// A tensor's entry as it stands in the header.
struct RawInfo {
    ty: GgmlType,
    shape: Vec<usize>,
    offset: u64,
}

/// Checks that a tensor lies in the file.
fn place(raw: &RawInfo, data: usize, alignment: usize, file_len: usize) -> Result<TensorInfo> {
    let row = raw.shape.last().copied().unwrap_or(1);
    if row % raw.ty.block_len() != 0 {
        return Err(Error::input(format!("rows of {row} numbers cannot be cut into blocks of {}", raw.ty.block_len())));
    }
    let size = (raw.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)))
        .and_then(|n| (n / raw.ty.block_len()).checked_mul(raw.ty.block_bytes()));
    let start = usize::try_from(raw.offset).ok().filter(|o| o % alignment == 0).and_then(|o| o.checked_add(data));
    let Some(start) = start else {
        return Err(Error::input(format!("its offset {} is no multiple of {alignment}, or absurd", raw.offset)));
    };
    match size.and_then(|s| start.checked_add(s)) {
        Some(end) if end <= file_len => Ok(TensorInfo { ty: raw.ty, shape: raw.shape.clone(), bytes: start..end }),
        _ => Err(Error::input(format!(
            "{:?} numbers of type {:?} at byte {start} go beyond the file's end at {file_len}",
            raw.shape, raw.ty
        ))
        .hint("the file is damaged, or its download is not complete")),
    }
}

/// Reads on from a place in the file.
pub(super) struct Reader<'a> {
    pub(super) file: &'a [u8],
    pub(super) at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let bytes = self.at.checked_add(n).and_then(|end| self.file.get(self.at..end)).ok_or_else(|| {
            Error::input(format!("the file ends at byte {}, in the middle of its header", self.file.len()))
                .hint("the file is damaged, or its download is not complete")
        })?;
        self.at += n;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A length in bytes or elements; whether the file has that many is for the one who takes them.
    fn len(&mut self) -> Result<usize> {
        let n = self.u64()?;
        usize::try_from(n).map_err(|_| Error::input(format!("a length of {n} is absurd")))
    }

    pub(super) fn string(&mut self) -> Result<&'a str> {
        let n = self.len()?;
        let bytes = self.take(n)?;
        std::str::from_utf8(bytes).map_err(|e| Error::input(format!("expected UTF-8 text: {e}")))
    }

    /// A value that is no array.
    pub(super) fn scalar(&mut self, ty: u32) -> Result<MetaValue> {
        Ok(match ty {
            0 => MetaValue::Int(self.array().map(u8::from_le_bytes)?.into()),
            1 => MetaValue::Int(self.array().map(i8::from_le_bytes)?.into()),
            2 => MetaValue::Int(self.array().map(u16::from_le_bytes)?.into()),
            3 => MetaValue::Int(self.array().map(i16::from_le_bytes)?.into()),
            4 => MetaValue::Int(self.u32()?.into()),
            5 => MetaValue::Int(self.array().map(i32::from_le_bytes)?.into()),
            6 => MetaValue::F32(self.array().map(f32::from_le_bytes)?),
            7 => match self.array::<1>()? {
                [b @ (0 | 1)] => MetaValue::Bool(b == 1),
                [b] => return Err(Error::input(format!("expected a truth value (0 or 1), found {b}"))),
            },
            STRING => MetaValue::Str(self.string()?.to_owned()),
            10 => MetaValue::Int(self.u64()?.into()),
            11 => MetaValue::Int(self.array().map(i64::from_le_bytes)?.into()),
            12 => MetaValue::F64(self.array().map(f64::from_le_bytes)?),
            other => return Err(Error::input(format!("value type {other} is unknown"))),
        })
    }

    fn value(&mut self, ty: u32, depth: usize) -> Result<MetaValue> {
        if ty != ARRAY {
            return self.scalar(ty);
        }
        let (element, n) = (self.u32()?, self.len()?);
        let start = self.at;
        match element {
            STRING => {
                for _ in 0..n {
                    let len = self.len()?;
                    self.take(len)?;
                }
            }
            ARRAY if depth < MAX_DEPTH => {
                for _ in 0..n {
                    self.value(ARRAY, depth + 1)?;
                }
            }
            _ => {
                let size = match element {
                    0 | 1 | 7 => 1,
                    2 | 3 => 2,
                    4..=6 => 4,
                    10..=12 => 8,
                    other => return Err(Error::input(format!("arrays of value type {other} are unknown"))),
                };
                self.take(n.checked_mul(size).unwrap_or(usize::MAX))?;
            }
        }
        Ok(MetaValue::Array(element, n, start..self.at))
    }

    fn tensor_info(&mut self) -> Result<RawInfo> {
        let dims = self.u32()?;
        if !(1..=4).contains(&dims) {
            return Err(Error::input(format!("expected 1 to 4 dimensions, found {dims}")));
        }
        let mut shape = (0..dims).map(|_| self.len()).collect::<Result<Vec<_>>>()?;
        shape.reverse();
        if shape.contains(&0) {
            return Err(Error::input(format!("expected no empty dimension, found shape {shape:?}")));
        }
        let code = self.u32()?;
        let offset = self.u64()?;
        Ok(RawInfo { ty: GgmlType::from_code(code)?, shape, offset })
    }
}
