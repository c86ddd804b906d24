//! The safetensors file of a checkpoint, and of weights alone.

use super::{FileEntry, Summed, TENSORS, sync_dir};
use crate::error::{Error, Result};
use crate::model::optimizer::{Moment, TensorState};
use crate::model::transformer::ParamInfo;
use crate::tensor::ops::adamw::codes::{BLOCK, Coded};
use safetensors::Dtype;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

const WEIGHT: &str = "weight";
/// The moments: what their numbers or codes are named, and their scales.
const MOMENTS: [(&str, &str); 2] = [("first", "first_scale"), ("second", "second_scale")];

/// A trained tensor that is saved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name and shape.
    pub info: ParamInfo,
    /// Whether its moments are in 8-bit codes.
    pub coded: bool,
}

/// A tensor of the file: its part's name, what it holds, its shape.
type Part = (&'static str, Dtype, Vec<usize>);

/// The scales of a matrix in codes.
fn scales_of(shape: &[usize]) -> Vec<usize> {
    match *shape {
        [rows, cols] => vec![rows, cols.div_ceil(BLOCK)],
        _ => Vec::new(),
    }
}

/// What the file has of an entry, in this order.
fn parts(entry: &Entry) -> Vec<Part> {
    let shape = &entry.info.shape;
    let mut parts = vec![(WEIGHT, Dtype::F32, shape.clone())];
    for (numbers, scales) in MOMENTS {
        if entry.coded {
            parts.push((scales, Dtype::F32, scales_of(shape)));
        }
        parts.push((numbers, if entry.coded { Dtype::U8 } else { Dtype::F32 }, shape.clone()));
    }
    parts
}

fn bytes_of((_, dtype, shape): &Part) -> usize {
    shape.iter().product::<usize>() * if *dtype == Dtype::U8 { 1 } else { 4 }
}

/// The bytes of a tensor's state, part by part. (safetensors is little-endian, as is every processor this program runs on.)
fn bytes(state: &TensorState) -> Vec<&[u8]> {
    let mut all = vec![bytemuck::cast_slice(&state.weight[..])];
    for moment in [&state.first, &state.second] {
        match moment {
            Moment::F32(numbers) => all.push(bytemuck::cast_slice(numbers)),
            Moment::Coded(coded) => all.extend([bytemuck::cast_slice(&coded.scales), &coded.codes[..]]),
        }
    }
    all
}

/// Writes the entries' parts as a safetensors file; `data` gives a tensor's state. (The crate's writer would need all of them in memory
/// together.)
pub(super) fn write(path: &Path, entries: &[Entry], data: &mut dyn FnMut(&str) -> Result<TensorState>) -> Result<FileEntry> {
    let all: Vec<(&str, Vec<Part>)> = entries.iter().map(|e| (&e.info.name[..], parts(e))).collect();
    write_parts(path, &all, &mut |name, write| bytes(&data(name)?).into_iter().try_for_each(write))
}

/// Takes the bytes of a tensor's next part.
type Take<'a> = dyn FnMut(&[u8]) -> Result<()> + 'a;

/// Writes parts of tensors. `data` hands each part's bytes of a tensor, in order, to the function that it is given.
fn write_parts(path: &Path, tensors: &[(&str, Vec<Part>)], data: &mut dyn FnMut(&str, &mut Take<'_>) -> Result<()>) -> Result<FileEntry> {
    let io = |e| Error::io("write", path, e);
    let mut header = serde_json::Map::new();
    let mut offset = 0;
    for (name, parts) in tensors {
        for part in parts {
            let (what, dtype, shape) = part;
            let end = offset + bytes_of(part);
            let dtype = if *dtype == Dtype::U8 { "U8" } else { "F32" };
            header.insert(format!("{what}/{name}"), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}));
            offset = end;
        }
    }
    let mut header = serde_json::Value::Object(header).to_string().into_bytes();
    // Data starts on a multiple of 8 bytes, so that a mapped file can be read as f32.
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut out = Summed::create(path).map_err(io)?;
    out.write(&(header.len() as u64).to_le_bytes()).map_err(io)?;
    out.write(&header).map_err(io)?;
    for (name, parts) in tensors {
        let mut expected = parts.iter();
        data(name, &mut |bytes| {
            let part = expected.next().filter(|part| bytes.len() == bytes_of(part));
            let Some(_) = part else {
                return Err(Error::input(format!("a part of {} bytes where none, or another number, was expected", bytes.len())).at(name));
            };
            out.write(bytes).map_err(io)
        })?;
        if expected.next().is_some() {
            return Err(Error::input("a part is missing").at(name));
        }
    }
    out.finish(TENSORS).map_err(io)
}

/// A mapped safetensors file of tensors named `PART/NAME`.
pub(super) struct TensorFile {
    path: PathBuf,
    map: memmap2::Mmap,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        // SAFETY: the file belongs to the run, is never written in place (checkpoints are renamed into place whole), and is only read as
        // bytes and numbers for which every bit pattern is valid.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
        Ok(Self { path: path.to_owned(), map })
    }

    /// The numbers of a tensor.
    pub fn weight(&self, param: &ParamInfo) -> Result<Vec<f32>> {
        self.read(&(WEIGHT, Dtype::F32, param.shape.clone()), &param.name)
    }

    /// The moments of a tensor.
    pub fn moments(&self, param: &ParamInfo) -> Result<(Moment, Moment)> {
        let [first, second] = MOMENTS;
        Ok((self.moment(first, param)?, self.moment(second, param)?))
    }

    fn moment(&self, (numbers, scales): (&'static str, &'static str), param: &ParamInfo) -> Result<Moment> {
        if !self.file()?.names().contains(&&format!("{scales}/{}", param.name)[..]) {
            return Ok(Moment::F32(self.read(&(numbers, Dtype::F32, param.shape.clone()), &param.name)?));
        }
        Ok(Moment::Coded(Coded {
            codes: self.read(&(numbers, Dtype::U8, param.shape.clone()), &param.name)?,
            scales: self.read(&(scales, Dtype::F32, scales_of(&param.shape)), &param.name)?,
        }))
    }

    fn bad(&self, message: String) -> Error {
        Error::input(message).at_file(&self.path)
    }

    fn file(&self) -> Result<safetensors::SafeTensors<'_>> {
        safetensors::SafeTensors::deserialize(&self.map).map_err(|e| self.bad(format!("not a safetensors file: {e}")))
    }

    fn read<T: bytemuck::Pod>(&self, (part, dtype, shape): &Part, name: &str) -> Result<Vec<T>> {
        let (file, name) = (self.file()?, format!("{part}/{name}"));
        let tensor = file.tensor(&name).map_err(|_| {
            self.bad(format!("has no tensor {name}")).hint("the checkpoint is of another model or adapter than the configuration's")
        })?;
        if tensor.shape() != shape || tensor.dtype() != *dtype {
            return Err(self.bad(format!("{name} is {:?} {:?}, expected {dtype:?} {shape:?}", tensor.dtype(), tensor.shape())));
        }
        Ok(bytemuck::pod_collect_to_vec(tensor.data()))
    }
}

/// Weights alone, such as those of a reference policy; written like a checkpoint's.
pub struct Snapshot {
    tensors: TensorFile,
}

impl Snapshot {
    /// Writes the weights of `params` to `path`, whole or not at all.
    pub fn save(path: &Path, params: &[ParamInfo], data: &mut dyn FnMut(&str) -> Result<Vec<f32>>) -> Result<()> {
        let dir = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;
        let temporary = path.with_extension("tmp");
        let all: Vec<(&str, Vec<Part>)> = params.iter().map(|p| (&p.name[..], vec![(WEIGHT, Dtype::F32, p.shape.clone())])).collect();
        write_parts(&temporary, &all, &mut |name, write| write(bytemuck::cast_slice(&data(name)?)))?;
        fs::rename(&temporary, path).map_err(|e| Error::io("rename to", path, e))?;
        sync_dir(dir)
    }

    /// Opens a snapshot.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(Self { tensors: TensorFile::open(path)? })
    }

    /// The numbers of a tensor.
    pub fn read(&self, param: &ParamInfo) -> Result<Vec<f32>> {
        self.tensors.weight(param)
    }
}
