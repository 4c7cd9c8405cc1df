//! What the readers promise of any bytes at all: an archive that makes sense, or one short sentence.
//!
//! The tests of this crate and the fuzz targets (the folder fuzz) ask the same questions.
#![allow(dead_code, missing_docs, unreachable_pub)] // each program uses its part

use signflash_cli::files::{Archive, FileError, npy, npz, safetensors};
use std::io::{Cursor, Write};

pub const WANTED: [&str; 9] =
    ["q", "k", "v", "dout", "cu_seqlens_q", "cu_seqlens_k", "lse", "signbit", "probs"];

pub fn read_safetensors(bytes: &[u8]) -> Result<Archive, FileError> {
    safetensors::read(&mut Cursor::new(bytes), &WANTED)
}

pub fn read_npz(bytes: &[u8]) -> Result<Archive, FileError> {
    npz::read(&mut Cursor::new(bytes), &WANTED)
}

/// Any bytes as a .safetensors file.
pub fn safetensors(bytes: &[u8]) {
    let Some(archive) = judged(read_safetensors(bytes), bytes.len()) else { return };
    let write = |archive: &Archive| {
        let mut sink = Vec::new();
        safetensors::write(&mut sink, archive).expect("memory takes all bytes");
        sink
    };
    let written = write(&archive);
    assert!(written == write(&read_safetensors(&written).expect("what we write we read")));
}

/// Any bytes as an .npz archive.
pub fn npz(bytes: &[u8]) {
    let Some(archive) = judged(read_npz(bytes), bytes.len()) else { return };
    let write = |archive: &Archive| {
        let mut sink = Cursor::new(Vec::new());
        npz::write(&mut sink, archive).expect("memory takes all bytes");
        sink.into_inner()
    };
    let written = write(&archive);
    assert!(written == write(&read_npz(&written).expect("what we write we read")));
}

/// Any bytes as a .npy file: its header alone, and as the entries of an archive whose checksums are right.
pub fn npy(bytes: &[u8]) {
    let header = match npy::read_header(&mut &bytes[..]) {
        Ok((header, used)) => {
            assert!(used <= bytes.len() as u64);
            Some(header)
        }
        Err(error) => {
            sentence(&error);
            None
        }
    };
    if let Some(header) = header.filter(|header| !header.fortran_order && !header.descr.contains('\'')) {
        let mut written = Vec::new();
        npy::write_header(&mut written, &header.descr, &header.shape).expect("memory takes all bytes");
        let (again, used) = npy::read_header(&mut written.as_slice()).expect("what we write we read");
        assert!(again == header && used == written.len() as u64);
    }
    for name in ["q.npy", "settings.npy"] {
        npz(&zip_file(name, bytes, zip::CompressionMethod::Stored));
    }
}

/// A zip of one entry.
pub fn zip_file(name: &str, contents: &[u8], method: zip::CompressionMethod) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(Cursor::new(Vec::new()));
    let options = zip::write::SimpleFileOptions::default().compression_method(method);
    zip.start_file(name, options).expect("memory takes all bytes");
    zip.write_all(contents).expect("memory takes all bytes");
    zip.finish().expect("memory takes all bytes").into_inner()
}

/// What is read must be what its shape says; what is said must be one short line.
fn judged(read: Result<Archive, FileError>, len: usize) -> Option<Archive> {
    match read {
        Ok(archive) => {
            for tensor in archive.tensors.values() {
                assert_eq!(tensor.shape.iter().product::<usize>(), tensor.data.len());
                // Deflate expands a thousandfold; nothing else does.
                assert!(tensor.data.len() <= 1100 * len + 1100);
            }
            Some(archive)
        }
        Err(error) => {
            sentence(&error);
            None
        }
    }
}

fn sentence(error: &FileError) {
    let sentence = error.to_string();
    assert!(!sentence.is_empty() && sentence.len() < 800 && !sentence.contains('\n'), "{sentence:?}");
}
