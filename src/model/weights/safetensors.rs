//! Reading and writing safetensors files: 8 bytes of header length, a JSON header, then the tensors' bytes, little-endian.
//!
//! The header is parsed with the format's own types (crate `safetensors`), but checked here: each complaint names the tensor, and sums
//! of offsets that overflow are errors like others.

use super::fill::decode_rows;
use super::{SaveDtype, TensorSpec, WeightSource, atomic, check_shape, map_file, non_finite, read_json, release_pages};
use crate::{Error, Result};
use memmap2::Mmap;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The format's own limit of a header, which bounds what a file that lies can make the program allocate.
const MAX_HEADER: u64 = 100_000_000;

/// Tensors of one safetensors file, or of the shards that an index lists.
pub struct Safetensors {
    files: Vec<(PathBuf, Mmap)>,
    tensors: BTreeMap<String, Entry>,
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Safetensors {
    /// Opens one file.
    ///
    /// # Errors
    /// If the header does not describe the file exactly.
    pub fn open(path: &Path) -> Result<Self> {
        let map = map_file(path)?;
        let tensors = parse_header(&map).map_err(|e| e.at_file(path))?;
        let tensors = tensors.into_iter().map(|(name, (dtype, shape, bytes))| (name, Entry { file: 0, dtype, shape, bytes })).collect();
        Ok(Self { files: vec![(path.to_owned(), map)], tensors })
    }

    /// Opens the shards that a `model.safetensors.index.json` lists; they lie beside it.
    ///
    /// # Errors
    /// If a shard is missing or broken, or lacks a tensor that the index places there.
    pub fn open_index(index: &Path) -> Result<Self> {
        let json = read_json(index)?;
        let weight_map = json
            .get("weight_map")
            .and_then(|m| m.as_object())
            .ok_or_else(|| Error::input("expected an object from tensor names to file names").at("weight_map").at_file(index))?;
        let folder = index.parent().unwrap_or(Path::new("."));
        let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for (tensor, file) in weight_map {
            let file = file.as_str().filter(|f| is_plain_file_name(f)).ok_or_else(|| {
                Error::input(format!("expected the name of a file beside the index, found {file}"))
                    .at(format_args!("weight_map.{tensor}"))
                    .at_file(index)
            })?;
            shards.entry(file).or_default().push(tensor);
        }
        let missing: Vec<_> = shards.keys().filter(|f| !folder.join(f).is_file()).copied().collect();
        if !missing.is_empty() {
            let message = format!("{} of {} shards are missing: {}", missing.len(), shards.len(), missing.join(", "));
            return Err(Error::input(message).at_file(index).hint("download the missing files into the same folder"));
        }
        let mut all = Self { files: Vec::new(), tensors: BTreeMap::new() };
        for (file, names) in shards {
            let path = folder.join(file);
            let map = map_file(&path)?;
            let mut found = parse_header(&map).map_err(|e| e.at_file(&path))?;
            for name in names {
                let (dtype, shape, bytes) = found.remove(name).ok_or_else(|| {
                    Error::input(format!("there is no tensor `{name}`, which the index places in this file")).at_file(&path)
                })?;
                all.tensors.insert(name.to_owned(), Entry { file: all.files.len(), dtype, shape, bytes });
            }
            all.files.push((path, map));
        }
        Ok(all)
    }
}

impl WeightSource for Safetensors {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensors.get(name).map(|t| t.shape.clone())
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let entry = self.tensors.get(name);
        let path = entry.map_or(&self.files[0].0, |t| &self.files[t.file].0);
        let result = check_shape(name, entry.map(|t| t.shape.clone()), shape).and_then(|()| match entry {
            Some(t) => decode(name, t, &self.files[t.file].1[t.bytes.clone()]),
            None => Ok(Vec::new()),
        });
        result.map_err(|e| e.at_file(path))
    }

    fn is_bf16(&self, name: &str) -> bool {
        self.tensors.get(name).is_some_and(|t| t.dtype == Dtype::BF16)
    }

    fn release(&self) {
        self.files.iter().for_each(|(_, map)| release_pages(map));
    }
}

/// The numbers of a tensor. They are cut into rows of a fixed width, not the tensor's, so that vectors are read in parallel as well.
fn decode(name: &str, entry: &Entry, bytes: &[u8]) -> Result<Vec<f32>> {
    const WIDTH: usize = 1 << 12;
    let convert: fn(&[u8], &mut [f32]) = match entry.dtype {
        Dtype::F32 => |src, out| {
            for (x, b) in out.iter_mut().zip(src.as_chunks().0) {
                *x = f32::from_le_bytes(*b);
            }
        },
        Dtype::F16 => |src, out| {
            for (x, b) in out.iter_mut().zip(src.as_chunks().0) {
                *x = half::f16::from_le_bytes(*b).to_f32();
            }
        },
        Dtype::BF16 => |src, out| {
            for (x, b) in out.iter_mut().zip(src.as_chunks::<2>().0) {
                *x = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
            }
        },
        other => {
            return Err(Error::input(format!("tensor `{name}` has dtype {other:?}: expected F32, F16 or BF16"))
                .hint("convert the weights to one of these (or, if they are quantised, use the unquantised model)"));
        }
    };
    let size = entry.dtype.bitsize() / 8;
    let n: usize = entry.shape.iter().product();
    decode_rows(n, WIDTH, |row, out| convert(&bytes[row * WIDTH * size..][..out.len() * size], out))
        .map_err(|(index, value)| non_finite(name, index, value))
}

/// A file name without a folder: an index must not lead out of the model's folder.
fn is_plain_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0'])
}

/// Dtype, shape and byte range (in the file) of every tensor.
type Header = BTreeMap<String, (Dtype, Vec<usize>, Range<usize>)>;

/// Checks that the header is all true: it lies in the file, its tensors have the sizes of their shapes, follow each other without a gap or
/// an overlap, and end where the file ends.
fn parse_header(file: &[u8]) -> Result<Header> {
    let damaged = "the file is damaged, or its download is not complete";
    let Some((len, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::input(format!("expected a safetensors file, found only {} bytes", file.len())).hint(damaged));
    };
    let len = u64::from_le_bytes(*len);
    if len > MAX_HEADER {
        return Err(Error::input(format!("the header claims to be {len} bytes long: expected at most {MAX_HEADER}"))
            .hint("this is no safetensors file, or it is damaged"));
    }
    let Some(header) = rest.get(..len as usize) else {
        return Err(Error::input(format!("the header claims to be {len} bytes long, the file has only {} more", rest.len())).hint(damaged));
    };
    let json: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(header).map_err(|e| Error::input(format!("expected a JSON object as the header: {e}")).hint(damaged))?;
    let data_start = 8 + header.len();
    let data_len = file.len() - data_start;
    let mut tensors = Header::new();
    for (name, value) in json {
        if name == "__metadata__" {
            continue;
        }
        let info: TensorInfo =
            serde_json::from_value(value).map_err(|e| Error::input(format!("cannot read the header of tensor `{name}`: {e}")))?;
        let (start, end) = info.data_offsets;
        if start > end || end > data_len {
            let message = format!("tensor `{name}` claims bytes {start} to {end} of {data_len}");
            return Err(Error::input(message).hint(damaged));
        }
        let bits = info.shape.iter().try_fold(info.dtype.bitsize(), |n, d| n.checked_mul(*d));
        if bits.is_none_or(|b| b % 8 != 0 || b / 8 != end - start) {
            let message = format!("tensor `{name}`: {} bytes do not hold {:?} numbers of {:?}", end - start, info.shape, info.dtype);
            return Err(Error::input(message).hint(damaged));
        }
        tensors.insert(name, (info.dtype, info.shape, data_start + start..data_start + end));
    }
    let mut ranges: Vec<_> = tensors.iter().map(|(name, (_, _, r))| (r.start, r.end, name)).collect();
    ranges.sort_unstable();
    let mut at = data_start;
    for (start, end, name) in ranges {
        if start != at {
            return Err(Error::input(format!("tensor `{name}` does not begin where the one before it ends")).hint(damaged));
        }
        at = end;
    }
    if at != file.len() {
        let message = format!("the header describes {} bytes of tensors, the file has {data_len}", at - data_start);
        return Err(Error::input(message).hint(damaged));
    }
    Ok(tensors)
}

/// Writes one file with the given tensors in the given order. `read` gives a tensor's numbers; one tensor is in memory at a time.
/// The bytes depend on the arguments alone.
pub(super) fn write(path: &Path, tensors: &[TensorSpec], dtype: SaveDtype, read: &mut dyn FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
    let header = header_bytes(path, tensors, dtype)?;
    atomic::write_file(path, |out| {
        let io = |e| Error::io("write", path, e);
        out.write_all(&header).map_err(io)?;
        for spec in tensors {
            let data = read(&spec.name)?;
            if data.len() != spec.len() {
                let message = format!("tensor `{}` has {} numbers, expected shape {:?}", spec.name, data.len(), spec.shape);
                return Err(Error::input(message).at_file(path));
            }
            let mut bytes = Vec::new();
            for (chunk, start) in data.chunks(1 << 16).zip((0..).step_by(1 << 16)) {
                if let Some(i) = dtype.encode(chunk, &mut bytes) {
                    return Err(non_finite(&spec.name, start + i, chunk[i]).at_file(path));
                }
                out.write_all(&bytes).map_err(io)?;
            }
        }
        Ok(())
    })
}

/// The header's length and JSON, padded with blanks so that the tensors begin at a multiple of 8 bytes.
fn header_bytes(path: &Path, tensors: &[TensorSpec], dtype: SaveDtype) -> Result<Vec<u8>> {
    let mut json = serde_json::Map::new();
    // transformers refuses a file that does not name its framework.
    json.insert("__metadata__".into(), serde_json::json!({"format": "pt"}));
    let mut at = 0;
    for spec in tensors {
        let end = at + spec.len() * dtype.size();
        json.insert(spec.name.clone(), serde_json::json!({"dtype": dtype.name(), "shape": spec.shape, "data_offsets": [at, end]}));
        at = end;
    }
    let text = serde_json::to_vec(&json).map_err(|e| Error::input(format!("cannot write the header: {e}")).at_file(path))?;
    let len = text.len().next_multiple_of(8);
    let mut out = (len as u64).to_le_bytes().to_vec();
    out.extend(text);
    out.resize(8 + len, b' ');
    Ok(out)
}
