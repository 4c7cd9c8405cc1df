//! `.safetensors`: eight bytes of length, a JSON header, the tensors' bytes without gaps.
//!
//! The `safetensors` crate judges the header (offsets, overflow, names of dtypes). It is given the header only, and
//! tensors are read one by one, so that a file costs the memory of the tensors that are wanted, once.

use super::elements::{Kind, read_elements, write_elements};
use super::keys::Keys;
use super::source::check_memory;
use super::{Archive, Data, FileError, Tensor, printable};
use safetensors::tensor::{Dtype as FileDtype, Metadata, TensorInfo};
use serde_json::{Map, Value, json};
use signflash_core::Dtype;
use std::io::{self, Read, Seek, SeekFrom, Write};

const FORMAT: &str = "safetensors";
const LENGTH_BYTES: u64 = 8;
/// The safetensors specification's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// Reads those of `wanted` that are there, and the metadata.
///
/// # Errors
/// A [`FileError`]; the source may be anything at all.
pub fn read<R: Read + Seek>(source: &mut R, wanted: &[&str]) -> Result<Archive, FileError> {
    let header = read_header(source)?;
    let data_start = LENGTH_BYTES + header.len() as u64;
    let metadata = parse_header(&header)?;
    check_length(source, data_start, metadata.data_len() as u64)?;

    let mut archive = Archive { present: metadata.offset_keys(), ..Archive::default() };
    if let Some(notes) = metadata.metadata() {
        archive.metadata.extend(notes.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
    let chosen: Vec<(&str, &TensorInfo)> =
        wanted.iter().filter_map(|&name| metadata.info(name).map(|info| (name, info))).collect();
    let bytes = chosen.iter().map(|(_, info)| (info.data_offsets.1 - info.data_offsets.0) as u64).sum();
    check_memory(&chosen.iter().map(|&(name, _)| name).collect::<Vec<_>>(), bytes)?;
    for (name, info) in chosen {
        let kind = kind_of(name, info.dtype)?;
        source.seek(SeekFrom::Start(data_start + info.data_offsets.0 as u64))?;
        let count = info.shape.iter().product(); // no overflow: the crate has checked it
        let data = read_elements(source, kind, count)?;
        archive.tensors.insert(name.to_string(), Tensor { shape: info.shape.clone(), data });
    }
    Ok(archive)
}

fn read_header<R: Read + Seek>(source: &mut R) -> Result<Vec<u8>, FileError> {
    let len = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(0))?;
    if len < LENGTH_BYTES {
        return Err(FileError::Truncated {
            what: "the header's length".into(),
            needed: LENGTH_BYTES,
            got: len,
        });
    }
    let mut length = [0; LENGTH_BYTES as usize];
    source.read_exact(&mut length)?;
    let header_len = u64::from_le_bytes(length);
    if header_len > MAX_HEADER {
        return Err(FileError::HeaderTooLong { got: header_len, max: MAX_HEADER, format: FORMAT });
    }
    if header_len > len - LENGTH_BYTES {
        let got = len - LENGTH_BYTES;
        return Err(FileError::Truncated { what: "the header".into(), needed: header_len, got });
    }
    let mut header = vec![0; header_len as usize];
    source.read_exact(&mut header)?;
    Ok(header)
}

fn parse_header(header: &[u8]) -> Result<Metadata, FileError> {
    let bad = |why: String| FileError::Header { why: printable(&why), format: FORMAT };
    let keys: Keys = serde_json::from_slice(header).map_err(|error| bad(error.to_string()))?;
    if let Some(name) = keys.duplicate {
        return Err(FileError::Duplicate { name: printable(&name) });
    }
    serde_json::from_slice(header).map_err(|error| bad(error.to_string()))
}

/// The file must end exactly where its last tensor ends.
fn check_length<R: Seek>(source: &mut R, data_start: u64, data_len: u64) -> Result<(), FileError> {
    let got = source.seek(SeekFrom::End(0))?.saturating_sub(data_start);
    if got < data_len {
        return Err(FileError::Truncated { what: "the tensors' data".into(), needed: data_len, got });
    }
    if got > data_len {
        return Err(FileError::Trailing { extra: got - data_len });
    }
    Ok(())
}

fn kind_of(tensor: &str, dtype: FileDtype) -> Result<Kind, FileError> {
    match dtype {
        FileDtype::F32 => Ok(Kind::Float(Dtype::F32)),
        FileDtype::F16 => Ok(Kind::Float(Dtype::F16)),
        FileDtype::BF16 => Ok(Kind::Float(Dtype::Bf16)),
        FileDtype::U8 | FileDtype::BOOL => Ok(Kind::U8),
        FileDtype::I32 => Ok(Kind::I32),
        FileDtype::I64 => Ok(Kind::I64),
        other => Err(FileError::Dtype {
            tensor: tensor.to_string(),
            got: format!("{other:?}"),
            expected: "F32, F16, BF16 (or U8, BOOL for signbit, I32, I64 for cu_seqlens)",
            remedy: "convert it before saving, for example with tensor.float()",
        }),
    }
}

/// Writes all tensors. The same archive always gives the same bytes.
///
/// # Errors
/// Those of the sink.
pub fn write(sink: &mut impl Write, archive: &Archive) -> io::Result<()> {
    let mut tensors: Vec<_> = archive.tensors.iter().collect();
    // Wider elements first keeps every tensor aligned to its element size.
    tensors.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.data.kind().size_bytes()));
    let mut header = Map::new();
    if !archive.metadata.is_empty() {
        header.insert("__metadata__".into(), json!(archive.metadata));
    }
    let mut offset = 0;
    for (name, tensor) in &tensors {
        let end = offset + tensor.data.len() * tensor.data.kind().size_bytes();
        header.insert(
            (*name).clone(),
            json!({"dtype": file_dtype(&tensor.data), "shape": tensor.shape, "data_offsets": [offset, end]}),
        );
        offset = end;
    }
    let mut header = serde_json::to_vec(&Value::Object(header))?;
    header.resize(header.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    sink.write_all(&(header.len() as u64).to_le_bytes())?;
    sink.write_all(&header)?;
    tensors.iter().try_for_each(|(_, tensor)| write_elements(sink, &tensor.data))
}

fn file_dtype(data: &Data) -> &'static str {
    match data {
        Data::F32(_) => "F32",
        Data::F16(_) => "F16",
        Data::Bf16(_) => "BF16",
        Data::U8(_) => "U8",
        Data::I32(_) => "I32",
        Data::I64(_) => "I64",
    }
}
