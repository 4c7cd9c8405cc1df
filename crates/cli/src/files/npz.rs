//! `.npz`: a zip archive of `.npy` files, as `numpy.savez` and `numpy.savez_compressed` write it.
//!
//! numpy has neither metadata nor bf16. So
//! - settings live in an entry `settings`: a text scalar holding a JSON object, for example
//!   `np.savez("in.npz", q=q, k=k, v=v, settings=json.dumps({"dropout_p": 0.1, "seed": 42, "causal": True}))`;
//! - bf16 is stored as its bits in uint16, and the settings say `"dtype": "bf16"`. Without that, uint16 is refused.

use super::elements::{Kind, read_elements, write_elements};
use super::keys::Keys;
use super::latch::Latch;
use super::npy::{self, Header};
use super::source::check_memory;
use super::{Archive, Data, FileError, Tensor, printable};
use crate::text;
use serde_json::Value;
use signflash_core::Dtype;
use std::collections::BTreeMap;
use std::io::{self, Read, Seek, Write};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// The entry that stands in for metadata.
pub const SETTINGS: &str = "settings";
/// The setting that says what uint16 means.
pub const DTYPE: &str = "dtype";

/// Deflate's best: 258 bytes out of two bits and a bit.
const MAX_EXPANSION: u64 = 1032;
/// What a file may hold in settings.
const MAX_SETTINGS: usize = 1 << 20;

/// Reads those of `wanted` that are there, and the settings.
///
/// # Errors
/// A [`FileError`]; the source may be anything at all.
pub fn read<R: Read + Seek>(source: &mut R, wanted: &[&str]) -> Result<Archive, FileError> {
    read_archive(source, wanted).map_err(|error| match error {
        // What the zip library or a decompressor says, not the system.
        FileError::Io(source)
            if source.raw_os_error().is_none() && source.kind() != io::ErrorKind::OutOfMemory =>
        {
            FileError::Zip { why: printable(&source.to_string()) }
        }
        other => other,
    })
}

fn read_archive<R: Read + Seek>(source: &mut R, wanted: &[&str]) -> Result<Archive, FileError> {
    let mut zip = ZipArchive::new(source).map_err(zip_error)?;
    if zip.has_duplicate_names() {
        return Err(FileError::Duplicate { name: "an entry".into() });
    }
    let present = zip
        .file_names_raw()
        .filter_map(|name| std::str::from_utf8(name).ok()?.strip_suffix(".npy").map(str::to_string))
        .filter(|name| name != SETTINGS)
        .collect();
    let mut archive = Archive { present, ..Archive::default() };
    if let Some(text) = read_settings(&mut zip)? {
        archive.metadata = parse_settings(&text)?;
    }
    let bits_are_bf16 = archive.metadata.get(DTYPE).is_some_and(|dtype| dtype == "bf16");
    let chosen: Vec<&str> =
        wanted.iter().copied().filter(|name| archive.present.iter().any(|there| there == name)).collect();
    let mut bytes = 0u64;
    for name in &chosen {
        bytes = bytes.saturating_add(claimed_size(&mut zip, name)?);
    }
    check_memory(&chosen, bytes)?;
    for name in chosen {
        let tensor = read_tensor(&mut zip, name, bits_are_bf16)?;
        archive.tensors.insert(name.to_string(), tensor);
    }
    Ok(archive)
}

/// The size that the archive claims for a tensor, if its compressed bytes could hold that much.
fn claimed_size<R: Read + Seek>(zip: &mut ZipArchive<R>, name: &str) -> Result<u64, FileError> {
    let entry = zip.by_name(&format!("{name}.npy")).map_err(zip_error)?;
    let (claimed, stored) = (entry.size(), entry.compressed_size());
    if claimed > stored.saturating_mul(MAX_EXPANSION).saturating_add(1024) {
        return Err(FileError::Expansion { entry: printable(name), claimed, stored });
    }
    Ok(claimed)
}

fn read_tensor<R: Read + Seek>(
    zip: &mut ZipArchive<R>,
    name: &str,
    bits_are_bf16: bool,
) -> Result<Tensor, FileError> {
    let mut entry = zip.by_name(&format!("{name}.npy")).map_err(zip_error)?;
    let claimed = entry.size();
    let (header, used) = npy::read_header(&mut entry)?;
    let kind = kind_of(name, &header.descr, bits_are_bf16)?;
    let count = header.count();
    let Some((count, expected)) = count.and_then(|n| Some((n, n.checked_mul(kind.size_bytes())? as u64)))
    else {
        return Err(FileError::ShapeOverflow { tensor: name.into(), shape: text::shape(&header.shape) });
    };
    if header.fortran_order && header.shape.iter().filter(|&&size| size > 1).count() > 1 {
        return Err(FileError::FortranOrder { tensor: name.into() });
    }
    let got = claimed.saturating_sub(used);
    if got != expected {
        return Err(FileError::EntrySize { tensor: name.into(), expected, got });
    }
    let data = read_elements(&mut entry, kind, count)?;
    finish(&mut entry, name, expected)?;
    Ok(Tensor { shape: header.shape, data })
}

/// Reads to the end of an entry: only there is its checksum compared.
fn finish(entry: &mut impl Read, tensor: &str, expected: u64) -> Result<(), FileError> {
    let extra = entry.read(&mut [0; 1])? as u64;
    if extra > 0 {
        return Err(FileError::EntrySize { tensor: tensor.into(), expected, got: expected + extra });
    }
    Ok(())
}

fn kind_of(tensor: &str, descr: &str, bits_are_bf16: bool) -> Result<Kind, FileError> {
    let refuse = |remedy| {
        let expected = "float32, float16 (or uint8, bool for signbit, int32, int64 for cu_seqlens)";
        Err(FileError::Dtype { tensor: tensor.into(), got: printable(descr), expected, remedy })
    };
    match descr {
        "<f4" | "=f4" => Ok(Kind::Float(Dtype::F32)),
        "<f2" | "=f2" => Ok(Kind::Float(Dtype::F16)),
        "<u2" | "=u2" if bits_are_bf16 => Ok(Kind::Float(Dtype::Bf16)),
        "<u2" | "=u2" => {
            refuse("if these are the bits of bf16, say so in the entry `settings`: {\"dtype\": \"bf16\"}")
        }
        "|u1" | "|b1" => Ok(Kind::U8),
        "<i4" | "=i4" => Ok(Kind::I32),
        "<i8" | "=i8" => Ok(Kind::I64),
        // What ml_dtypes.bfloat16 becomes when numpy saves it: two bytes of nothing in particular.
        "|V2" | "<V2" => {
            refuse("save bf16 as .view(numpy.uint16), with {\"dtype\": \"bf16\"} in the entry `settings`")
        }
        other if other.starts_with('>') => refuse("it is big endian: save .astype(dtype.newbyteorder('<'))"),
        _ => refuse("save .astype(numpy.float32)"),
    }
}

fn read_settings<R: Read + Seek>(zip: &mut ZipArchive<R>) -> Result<Option<String>, FileError> {
    let Some(index) = zip.index_for_name(&format!("{SETTINGS}.npy")) else { return Ok(None) };
    let mut entry = zip.by_index(index).map_err(zip_error)?;
    let (header, _) = npy::read_header(&mut entry)?;
    let bad = |why: &str| FileError::Settings { why: why.to_string() };
    let (unit, chars) = text_type(&header).ok_or_else(|| bad("it is no text scalar"))?;
    if chars > MAX_SETTINGS {
        return Err(bad("it is longer than a million characters"));
    }
    let Data::U8(bytes) = read_elements(&mut entry, Kind::U8, unit * chars)? else { return Ok(None) };
    finish(&mut entry, SETTINGS, (unit * chars) as u64)?;
    let text = if unit == 1 { String::from_utf8(bytes).ok() } else { decode_utf32(&bytes) };
    let text = text.ok_or_else(|| bad("it is not Unicode"))?;
    Ok(Some(text.trim_end_matches('\0').to_string()))
}

/// Bytes of a character and number of characters of a numpy text scalar (`<U12` or `|S12`).
fn text_type(header: &Header) -> Option<(usize, usize)> {
    let chars = header.descr.get(2..)?.parse().ok()?;
    match (header.descr.get(..2)?, header.shape.as_slice()) {
        ("<U" | "=U", [] | [1]) => Some((4, chars)),
        ("|S", [] | [1]) => Some((1, chars)),
        _ => None,
    }
}

fn decode_utf32(bytes: &[u8]) -> Option<String> {
    let (chars, _) = bytes.as_chunks::<4>();
    chars.iter().map(|&c| char::from_u32(u32::from_le_bytes(c))).collect()
}

fn parse_settings(text: &str) -> Result<BTreeMap<String, String>, FileError> {
    let bad = |why: String| FileError::Settings { why: printable(&why) };
    let Value::Object(object) = serde_json::from_str(text).map_err(|error| bad(error.to_string()))? else {
        return Err(bad("it is no object".into()));
    };
    let keys: Keys = serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
    if let Some(key) = keys.duplicate {
        return Err(bad(format!("it holds `{key}` twice")));
    }
    let mut settings = BTreeMap::new();
    for (key, value) in object {
        let value = match value {
            Value::String(text) => text,
            Value::Null => continue,
            Value::Bool(_) | Value::Number(_) => value.to_string(),
            // Python's pair of numbers: a window.
            Value::Array(items) if items.iter().all(Value::is_number) => Value::Array(items).to_string(),
            _ => return Err(bad(format!("`{key}` is an object or no list of numbers"))),
        };
        settings.insert(key, value);
    }
    Ok(settings)
}

/// Writes all tensors and the settings. The same archive always gives the same bytes.
///
/// # Errors
/// Those of the sink.
pub fn write<W: Write + Seek>(sink: &mut W, archive: &Archive) -> io::Result<()> {
    let mut sink = Latch::new(sink);
    let written = write_archive(&mut sink, archive);
    sink.into_error().map_or(written, Err)
}

fn write_archive<W: Write + Seek>(sink: &mut W, archive: &Archive) -> io::Result<()> {
    let mut zip = ZipWriter::new(sink);
    let mut settings = archive.metadata.clone();
    if archive.tensors.values().any(|tensor| matches!(tensor.data, Data::Bf16(_))) {
        settings.insert(DTYPE.into(), "bf16".into());
    }
    for (name, tensor) in &archive.tensors {
        let bytes = tensor.data.len() * tensor.data.kind().size_bytes();
        start_entry(&mut zip, name, bytes)?;
        npy::write_header(&mut zip, descr_of(&tensor.data), &tensor.shape)?;
        write_elements(&mut zip, &tensor.data)?;
    }
    let text: Vec<char> = serde_json::to_string(&settings)?.chars().collect();
    start_entry(&mut zip, SETTINGS, 4 * text.len())?;
    npy::write_header(&mut zip, &format!("<U{}", text.len()), &[])?;
    for c in text {
        zip.write_all(&u32::from(c).to_le_bytes())?;
    }
    zip.finish().map_err(io::Error::other)?;
    Ok(())
}

fn start_entry<W: Write + Seek>(zip: &mut ZipWriter<W>, name: &str, bytes: usize) -> io::Result<()> {
    const NEEDS_ZIP64: usize = 4_000_000_000;
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .large_file(bytes >= NEEDS_ZIP64);
    zip.start_file(format!("{name}.npy"), options).map_err(io::Error::other)
}

fn descr_of(data: &Data) -> &'static str {
    match data {
        Data::F32(_) => "<f4",
        Data::F16(_) => "<f2",
        Data::Bf16(_) => "<u2",
        Data::U8(_) => "|u1",
        Data::I32(_) => "<i4",
        Data::I64(_) => "<i8",
    }
}

fn zip_error(error: zip::result::ZipError) -> FileError {
    match error {
        zip::result::ZipError::Io(source) => source.into(),
        other => FileError::Zip { why: printable(&other.to_string()) },
    }
}
