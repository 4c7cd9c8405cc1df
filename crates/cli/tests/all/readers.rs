//! Fuzzing of the file readers: whatever the bytes, they answer with tensors or with a sentence.
//!
//! `READERS_CASES=1000000 cargo test -p signflash-cli --test all readers::` looks harder.

use crate::common::{data, input};
use crate::survive::{self, WANTED, read_npz, read_safetensors, zip_file};
use proptest::prelude::*;
use signflash_cli::files::{Archive, Data, FileError, npy, npz, safetensors};
use signflash_core::{bf16, f16};
use std::io::{Cursor, Write};
use std::sync::LazyLock;

type Read = fn(&[u8]) -> Result<Archive, FileError>;

/// Valid files to damage: of every format, dtype and compression.
static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let settings = [("dropout_p", "0.1"), ("seed", "5"), ("layout", "bhsd")];
    let (q, k) = ([1, 2, 3, 4], [1, 1, 5, 4]);
    let mut archives =
        vec![input::<f32>(q, k, &settings), input::<f16>(q, k, &[]), input::<bf16>(q, k, &settings)];
    let bits = signflash_cli::files::Tensor { shape: vec![1, 2, 3, 5], data: Data::U8(vec![1; 30]) };
    archives[1].tensors.insert("signbit".into(), bits);
    for (name, data) in
        [("cu_seqlens_q", Data::I32(vec![0, 1, 3])), ("cu_seqlens_k", Data::I64(vec![0, 2, 5]))]
    {
        archives[0].tensors.insert(name.into(), signflash_cli::files::Tensor { shape: vec![3], data });
    }
    let mut seeds = Vec::new();
    for archive in &archives {
        let (mut tensors, mut zip) = (Vec::new(), Cursor::new(Vec::new()));
        safetensors::write(&mut tensors, archive).unwrap();
        npz::write(&mut zip, archive).unwrap();
        seeds.extend([tensors, zip.into_inner()]);
    }
    let numpy = ["numpy_savez.npz", "numpy_savez_compressed.npz", "numpy_bf16_bits.npz"];
    seeds.extend(numpy.map(|name| std::fs::read(data(name)).unwrap()));
    seeds
});

/// Texts that match. The expression is read here; a bare string would be read again for each text.
fn regex(pattern: &str) -> impl Strategy<Value = String> {
    prop::string::string_regex(pattern).expect("a regular expression")
}

/// Reads with every reader; see [`survive`].
fn survive(bytes: &[u8]) {
    for ask in [survive::safetensors, survive::npz, survive::npy] {
        ask(bytes);
    }
}

/// What the fuzz targets start from, and what they once found.
#[test]
fn the_seeds_of_the_fuzzers_are_survived() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds");
    let files = |folder: &std::path::Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let seeds: Vec<_> = files(folder.as_ref()).iter().flat_map(|folder| files(folder)).collect();
    assert!(seeds.len() >= 60, "{} seeds", seeds.len());
    let mut read = 0;
    for seed in seeds {
        let bytes = std::fs::read(&seed).unwrap();
        survive(&bytes);
        read += usize::from(read_safetensors(&bytes).is_ok() || read_npz(&bytes).is_ok());
    }
    assert!(read >= 12, "only {read} seeds are files that can be read");
}

/// A few changes at places where headers are likely to be.
fn damage() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..6), 1..6)
}

fn apply(bytes: &mut Vec<u8>, changes: &[(prop::sample::Index, u8, u8)]) {
    for (index, value, kind) in changes {
        if bytes.is_empty() {
            return;
        }
        let at = index.index(bytes.len());
        match kind {
            0 => bytes[at] = *value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => bytes.truncate(at),
            3 => bytes.insert(at, *value),
            // Numbers that overflow: eight bytes of ones, or a digit run.
            4 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            _ => bytes[at..]
                .iter_mut()
                .take(12)
                .filter(|byte| byte.is_ascii_digit())
                .for_each(|byte| *byte = b'9'),
        }
    }
}

fn cases() -> u32 {
    std::env::var("READERS_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(5000)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_never_panic(seed in any::<prop::sample::Index>(), changes in damage()) {
        let mut bytes = seed.get(&SEEDS).clone();
        apply(&mut bytes, &changes);
        survive(&bytes);
    }

    #[test]
    fn truncated_files_never_panic(seed in any::<prop::sample::Index>(), end in any::<prop::sample::Index>()) {
        let bytes = seed.get(&SEEDS);
        survive(&bytes[..end.index(bytes.len())]);
    }

    #[test]
    fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        survive(&bytes);
    }

    #[test]
    fn random_headers_never_panic(header in regex("[\\{\\}\\[\\]\":,a-z_0-9F ]{0,200}"), claimed in any::<u64>(), honest: bool) {
        let len = if honest { header.len() as u64 } else { claimed };
        survive(&[&len.to_le_bytes(), header.as_bytes()].concat());
    }

    #[test]
    fn random_npy_headers_never_panic(text in regex("[\\{\\}\\(\\)':,<a-z_0-9TF ]{0,120}"), version in 0u8..5) {
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([version, 0]);
        bytes.extend((text.len() as u16).to_le_bytes());
        if version > 1 { bytes.extend([0, 0]); }
        bytes.extend(text.as_bytes());
        let _ = npy::read_header(&mut bytes.as_slice());
    }
}

proptest! {
    // Each is two files of either format: a fifth as many take as long as one of the others.
    #![proptest_config(ProptestConfig { cases: cases() / 5, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_formats_give_back_what_they_were_given(
        sizes in prop::array::uniform4(0usize..5),
        seed in any::<u64>(),
        note in regex("\\PC{0,20}"),
    ) {
        let seed = seed.to_string();
        for archive in [input::<f32>(sizes, sizes, &[("seed", &seed), ("note", &note)]), input::<bf16>(sizes, sizes, &[])] {
            let (mut tensors, mut zip) = (Vec::new(), Cursor::new(Vec::new()));
            safetensors::write(&mut tensors, &archive).unwrap();
            npz::write(&mut zip, &archive).unwrap();
            let from_tensors = read_safetensors(&tensors).unwrap();
            let from_zip = read_npz(zip.get_ref()).unwrap();
            prop_assert_eq!(&from_tensors.tensors, &archive.tensors);
            prop_assert_eq!(&from_zip.tensors, &archive.tensors);
            prop_assert_eq!(&from_tensors.metadata, &archive.metadata);
            for (key, value) in &archive.metadata {
                prop_assert_eq!(&from_zip.metadata[key], value);
            }
        }
    }
}

fn refuse(read: Read, bytes: &[u8], needle: &str) {
    let sentence = read(bytes).expect_err(needle).to_string();
    assert!(sentence.contains(needle), "{needle:?} is not in {sentence}");
}

fn safetensors_file(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn hostile_safetensors_are_refused_with_a_reason() {
    let refuse = |header: &str, data: usize, needle: &str| {
        refuse(read_safetensors, &safetensors_file(header, data), needle);
    };
    refuse(r#"{"q":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0, "overflow");
    refuse(
        r#"{"q":{"dtype":"F32","shape":[1000000,1000000],"data_offsets":[0,4000000000000]}}"#,
        64,
        "truncated",
    );
    refuse(r#"{"q":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "offset");
    refuse(r#"{"q":{"dtype":"F32","shape":[2],"data_offsets":[0,9]}}"#, 9, "bad header");
    refuse(r#"{"q":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "bad header");
    refuse(r#"{"q":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}"#, 8, "F99");
    refuse(r#"{"q":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}"#, 8, "dtype F64, expected F32");
    refuse(r#"{"__metadata__":{"seed":1}}"#, 0, "bad header");
    refuse("[]", 0, "bad header");
    refuse(&"[".repeat(100_000), 0, "bad header");
    let tensor = r#""q":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    refuse(&format!("{{{tensor},{tensor}}}"), 4, "holds `q` twice");
    refuse("{}", 4, "4 bytes beyond");
}

fn npy_file(descr: &str, shape: &[usize], data: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    npy::write_header(&mut bytes, descr, shape).unwrap();
    bytes.resize(bytes.len() + data, 0);
    bytes
}

#[test]
fn hostile_npz_are_refused_with_a_reason() {
    use zip::CompressionMethod::{Deflated, Stored};
    let refuse_entry = |contents: &[u8], needle: &str| {
        refuse(read_npz, &zip_file("q.npy", contents, Stored), needle);
        refuse(read_npz, &zip_file("q.npy", contents, Deflated), needle);
    };
    refuse_entry(&npy_file("<f4", &[1 << 40, 1 << 40], 8), "more elements than can be addressed");
    refuse_entry(&npy_file("<f4", &[1 << 40], 8), "has 8 bytes of data, expected 4398046511104");
    refuse_entry(&npy_file("<f4", &[2], 9), "has 9 bytes of data, expected 8");
    refuse_entry(&npy_file("<f8", &[1], 8), "dtype <f8");
    refuse_entry(&npy_file(">f4", &[2], 8), "big endian");
    refuse_entry(&npy_file("<u2", &[4], 8), "say so in the entry `settings`");
    refuse_entry(&npy_file("|V2", &[4], 8), "numpy.uint16");
    refuse_entry(&npy_file("|O", &[1], 8), "dtype |O");
    refuse_entry(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header of 4294967295 bytes");
    refuse_entry(b"\x93NUMPY\x07\x00", "version 7");
    refuse_entry(b"no numpy", "bad header");
    refuse_entry(b"", "ends early");
    let fortran = b"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}";
    let fortran = [&b"\x93NUMPY\x01\x00"[..], &[fortran.len() as u8, 0], fortran, &[0; 16]].concat();
    refuse_entry(&fortran, "np.ascontiguousarray(q)");
    let settings = |contents: &[u8], needle: &str| {
        refuse(read_npz, &zip_file("settings.npy", contents, Stored), needle);
    };
    settings(&npy_file("<f4", &[], 4), "no text scalar");
    settings(&npy_file("<U999999999999", &[], 4), "longer than a million");
    settings(&[npy_file("|S2", &[], 0), b"[]".to_vec()].concat(), "no object");
    settings(&[npy_file("|S11", &[], 0), br#"{"a":["0"]}"#.to_vec()].concat(), "no list of numbers");
    settings(&[npy_file("|S11", &[], 0), br#"{"a":[[0]]}"#.to_vec()].concat(), "no list of numbers");
    settings(&[npy_file("<U1", &[], 0), vec![0xff; 4]].concat(), "not Unicode");
}

#[test]
fn an_entry_that_claims_more_than_deflate_can_hold_is_a_bomb() {
    let mut zip = zip_file("q.npy", &npy_file("<f4", &[4096], 16384), zip::CompressionMethod::Deflated);
    // The uncompressed size stands in the central directory, 24 bytes after its signature.
    let directory = zip.windows(4).rposition(|window| window == b"PK\x01\x02").unwrap();
    zip[directory + 24..directory + 28].copy_from_slice(&0xf000_0000u32.to_le_bytes());
    refuse(read_npz, &zip, "zip bomb");
}

#[test]
fn a_sparse_file_larger_than_memory_is_refused() {
    let Some(memory) = signflash_cli::memory::available() else { return };
    let bytes = 4 * (memory / 2);
    let header = format!(r#"{{"q":{{"dtype":"F32","shape":[{}],"data_offsets":[0,{bytes}]}}}}"#, bytes / 4);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&safetensors_file(&header, 0)).unwrap();
    let length = 8 + header.len() as u64 + bytes;
    if file.as_file().set_len(length).is_err() {
        return; // a file system without sparse files
    }
    let sentence = safetensors::read(file.as_file_mut(), &WANTED).unwrap_err().to_string();
    assert!(sentence.contains("of memory available"), "{sentence}");
}
