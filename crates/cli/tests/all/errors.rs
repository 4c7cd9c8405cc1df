//! Every error is one line that says what was expected, with the exit code that `--help` documents, and leaves no
//! file behind.

use crate::common::{Dir, VECTORS, data, fail, input, read, tensor, vector, write};
use signflash_core::f16;
use std::fs;

const USAGE: i32 = 2;
const IO: i32 = 3;
const MEMORY: i32 = 4;

#[test]
fn wrong_arguments_are_named() {
    let a = &vector(VECTORS[4]);
    let cases: &[(&[&str], &[&str])] = &[
        (&["frobnicate"], &["unrecognized subcommand 'frobnicate'", "--help"]),
        (&["attend"], &["<INPUT>"]),
        (&["attend", "x.txt"], &["INPUT x.txt", ".safetensors or .npz", "got .txt"]),
        (&["attend", "x"], &["got none"]),
        (&["attend", a, "-o", "out.pt"], &["--output out.pt", "got .pt"]),
        (&["attend", a, "-o", a], &["is the input itself"]),
        (&["attend", a, "--plot", "map.jpg"], &["--plot map.jpg", ".png"]),
        (&["attend", a, "--device", "gpu"], &["--device must be cpu, cuda, cuda:N", "got \"gpu\""]),
        (&["attend", a, "--device", "cuda:x"], &["--device must be cpu, cuda, cuda:N", "got \"cuda:x\""]),
        (&["attend", a, "--device", "cuda", "--isa", "avx2"], &["--isa must be left out with --device cuda"]),
        (
            &["bench", "--device", "cuda:1", "--threads", "2"],
            &["--threads must be left out with --device cuda:1"],
        ),
        (&["attend", a, "--isa", "sse"], &["--isa", "avx2, avx512", "got \"sse\""]),
        (&["attend", a, "--threads", "0"], &["--threads must be from 1"]),
        (&["attend", a, "--threads", "1000000"], &["--threads must be from 1"]),
        (&["attend", a, "--dropout-p", "1"], &["dropout_p must be in [0, 1), got 1"]),
        (&["attend", a, "--dropout-p", "nan"], &["dropout_p must be in [0, 1), got NaN"]),
        (&["attend", a, "--softmax-scale", "inf"], &["softmax_scale must be finite"]),
        (&["attend", a, "--seed", "-1"], &["--seed"]),
        (&["attend", a, "--layout", "sbhd"], &["--layout", "bhsd, bshd"]),
        (&["attend", a, "--causal=maybe"], &["--causal", "true, false"]),
        (&["attend", a, "--scale-rule", "fair"], &["--scale-rule", "unbiased or nominal"]),
        (&["attend", a, "--verify=oracle"], &["--verify", "both, file"]),
        (&["attend", a, "--plot", "m.png", "--head", "1"], &["--head must be below 1, got 1"]),
        (&["attend", a, "--plot", "m.png", "--batch", "7"], &["--batch must be below 1, got 7"]),
        (&["attend", a, "--plot", "m.png", "--keys", "9..9999"], &["--keys must be within 0..512"]),
        (&["attend", a, "--plot", "m.png", "--queries", "9..3"], &["--queries", "FROM < TO"]),
        (&["plot", a, "-o", "m.png"], &["probs is missing", "--probs"]),
        (&["plot", a, "-o", "m.gif"], &["--output m.gif", ".png"]),
        (&["dropout-mask", "--seqlen-q", "4"], &["--seqlen-k", "--dropout-p"]),
        (
            &["dropout-mask", "--seqlen-q", "4", "--seqlen-k", "4", "-p", "2"],
            &["dropout_p must be in [0, 1)"],
        ),
        (
            &["dropout-mask", "--seqlen-q", "4", "--seqlen-k", "4", "-p", "0", "-o", "m.txt"],
            &[".npy or .bits"],
        ),
        (
            &["dropout-mask", "--seqlen-q", "9999999999", "--seqlen-k", "4", "-p", "0"],
            &["seqlen_q", "got 9999999999"],
        ),
        (&["bench", "--seqlen", "0"], &["--seqlen must be at least 1"]),
        (&["bench", "--head-dim", "300"], &["head_dim must be from 1 to 256, got 300"]),
        (&["bench", "--heads", "4", "--heads-k", "3"], &["num_heads 4 and num_heads_k 3"]),
        (&["bench", "--dtype", "f64"], &["--dtype", "f32, f16 or bf16"]),
        (&["bench", "--pass", "both"], &["--pass", "fwd, bwd"]),
        (
            &["attend", a, "--softmax-scale", "1e300"],
            &["softmax_scale must be finite as f32, too", "got 1e300;"],
        ),
    ];
    for (arguments, needles) in cases {
        fail(arguments, USAGE, needles);
    }
}

#[test]
fn the_system_refusing_is_another_code() {
    fail(&["attend", "/nowhere/x.npz"], IO, &["/nowhere/x.npz: cannot open"]);
    fail(&["attend", &vector(VECTORS[4]), "-o", "/nowhere/x.npz"], IO, &["cannot write", "does not exist"]);
    fail(
        &["dropout-mask", "--seqlen-q", "1", "--seqlen-k", "1", "-p", "0", "-o", "/nowhere/x.npy"],
        IO,
        &["cannot write"],
    );
    let dir = Dir::new();
    fs::create_dir(dir.path("d.npz")).unwrap();
    fail(&["attend", &dir.file("d.npz")], IO, &["cannot open", "directory"]);
    fail(&["attend", &vector(VECTORS[4]), "-o", &dir.file("d.npz")], IO, &["cannot write", "directory"]);
}

#[test]
fn what_does_not_fit_in_memory_is_refused_before_it_is_tried() {
    if signflash_cli::memory::available().is_none() {
        return; // the system does not tell
    }
    fail(&["bench", "--seqlen", "2000000000"], MEMORY, &["needs", "available", "--seqlen"]);
}

#[test]
fn wrong_tensors_are_named() {
    let dir = Dir::new();
    let path = dir.file("in.safetensors");
    let refused = |change: &dyn Fn(&mut signflash_cli::files::Archive), needles: &[&str]| {
        let mut archive = input::<f16>([1, 4, 6, 8], [1, 2, 5, 8], &[]);
        change(&mut archive);
        write(&path, &archive);
        let out = dir.file("out.safetensors");
        fail(&["attend", &path, "-o", &out, "--verify"], USAGE, needles);
        assert_eq!(dir.names(), ["in.safetensors"], "something was left behind");
    };
    let put = |name: &'static str, shape: &'static [usize]| {
        move |archive: &mut signflash_cli::files::Archive| {
            archive.tensors.insert(name.into(), tensor::<f16>(shape, 9));
        }
    };
    refused(&|a| drop(a.tensors.remove("v")), &["v is missing", "holds", "q, k and v"]);
    refused(&put("q", &[4, 6, 8]), &["q has shape [4, 6, 8], expected four dimensions"]);
    refused(&put("k", &[2, 2, 5, 8]), &["k has shape [2, 2, 5, 8]", "[1, 2, 5, 8]", "batch"]);
    refused(&put("k", &[1, 2, 5, 9]), &["k has shape [1, 2, 5, 9]", "head_dim"]);
    refused(&put("v", &[1, 2, 6, 8]), &["v has shape [1, 2, 6, 8]", "that of k"]);
    refused(&put("dout", &[1, 2, 6, 8]), &["dout has shape [1, 2, 6, 8]", "that of q"]);
    refused(&put("dlse", &[1, 6, 4]), &["dlse has shape [1, 6, 4]", "[1, 4, 6]", "that of lse"]);
    refused(&put("dlse", &[1, 4, 6]), &["dlse has dtype f16", "f32, that of lse"]);
    refused(
        &|a| {
            a.tensors.remove("dout");
            a.tensors.insert("dlse".into(), tensor::<f32>(&[1, 4, 6], 9));
        },
        &["dout is missing", "dlse asks for gradients"],
    );
    refused(&put("out", &[1, 4, 6, 7]), &["out has shape [1, 4, 6, 7]", "[1, 4, 6, 8]"]);
    refused(&put("lse", &[1, 6, 4]), &["lse has shape [1, 6, 4]", "[1, 4, 6]"]);
    refused(&put("signbit", &[1, 4, 5, 6]), &["signbit has shape [1, 4, 5, 6]", "[1, 4, 6, 5]"]);
    refused(
        &|a| drop(a.tensors.insert("k".into(), tensor::<f32>(&[1, 2, 5, 8], 9))),
        &["k has dtype f32", "f16"],
    );
    refused(
        &|a| {
            let bytes = signflash_cli::files::Data::U8(vec![0; 192]);
            a.tensors.get_mut("q").unwrap().data = bytes;
        },
        &["q has dtype u8", "f32, f16 or bf16"],
    );
    for (key, value) in
        [("dropout_p", "NaN"), ("seed", "1.5"), ("causal", "perhaps"), ("softmax_scale", "inf")]
    {
        refused(&|a| drop(a.metadata.insert(key.into(), value.into())), &["metadata", key, value, "pass --"]);
    }
    refused(
        &|a| drop(a.metadata.insert("layout".into(), "b\nh".into())),
        &["metadata `layout`", "bhsd or bshd"],
    );
}

#[test]
fn a_failed_run_leaves_an_older_result_alone() {
    let dir = Dir::new();
    let out = dir.file("out.safetensors");
    fs::write(&out, "older").unwrap();
    fail(&["attend", &vector(VECTORS[4]), "-o", &out, "--dropout-p", "3"], USAGE, &["dropout_p"]);
    assert_eq!(fs::read(&out).unwrap(), b"older");
    assert_eq!(dir.names(), ["out.safetensors"]);
}

#[test]
fn damaged_files_are_told_from_missing_ones() {
    let dir = Dir::new();
    let good = fs::read(vector(VECTORS[4])).unwrap();
    let npz = fs::read(data("numpy_savez.npz")).unwrap();
    let cases: &[(&str, Vec<u8>, &[&str])] = &[
        ("empty.safetensors", vec![], &["is truncated", "needs 8 bytes, 0 are there"]),
        ("short.safetensors", good[..good.len() / 2].to_vec(), &["is truncated", "the tensors' data"]),
        ("long.safetensors", [&good[..], &[0; 3]].concat(), &["has 3 bytes beyond"]),
        ("huge.safetensors", u64::MAX.to_le_bytes().to_vec(), &["header of 18446744073709551615 bytes"]),
        ("text.safetensors", b"this is no tensor file at all".to_vec(), &["header of", "at most"]),
        ("json.safetensors", [&8u64.to_le_bytes()[..], b"not json"].concat(), &["bad header"]),
        ("zip.npz", b"PK\x03\x04 and then nothing".to_vec(), &["no readable .npz archive"]),
        ("empty.npz", vec![], &["no readable .npz archive"]),
        ("cut.npz", npz[..npz.len() - 30].to_vec(), &["no readable .npz archive"]),
        ("swapped.npz", good.clone(), &["no readable .npz archive"]),
    ];
    for (name, bytes, needles) in cases {
        fs::write(dir.path(name), bytes).unwrap();
        let path = dir.file(name);
        fail(&["attend", &path], USAGE, &[&[path.as_str()], *needles].concat());
    }
}

#[test]
fn a_flipped_byte_in_an_archive_is_found_by_its_checksum() {
    let dir = Dir::new();
    let mut npz = fs::read(data("numpy_savez.npz")).unwrap();
    let at = npz.windows(6).position(|window| window == b"\x93NUMPY").unwrap() + 200;
    npz[at] ^= 1;
    fs::write(dir.path("flipped.npz"), npz).unwrap();
    fail(&["attend", &dir.file("flipped.npz")], USAGE, &["no readable .npz archive", "checksum"]);
}

#[test]
fn unreadable_settings_of_npz_are_explained() {
    let dir = Dir::new();
    let mut archive = read(data("numpy_savez.npz"));
    archive.metadata.insert("seed".into(), "many".into());
    write(dir.path("in.npz"), &archive);
    fail(&["attend", &dir.file("in.npz")], USAGE, &["metadata `seed`", "got \"many\"", "--seed"]);
}

/// The .npz file with another number where the central directory, and each entry, say something.
fn patched(local: usize, central: usize, bytes: &[u8]) -> Vec<u8> {
    let mut npz = fs::read(data("numpy_savez.npz")).unwrap();
    for (magic, offset) in [(b"PK\x03\x04", local), (b"PK\x01\x02", central)] {
        let places: Vec<usize> = (0..npz.len() - 4).filter(|&at| &npz[at..at + 4] == magic).collect();
        for at in places {
            npz[at + offset..at + offset + bytes.len()].copy_from_slice(bytes);
        }
    }
    npz
}

#[test]
fn an_archive_that_is_not_understood_is_a_bad_file_and_not_the_systems_fault() {
    let dir = Dir::new();
    let path = dir.file("in.npz");
    for method in [1u16, 6, 9, 12, 14, 93, 95, 98, 99, 777] {
        fs::write(&path, patched(8, 10, &method.to_le_bytes())).unwrap();
        fail(&["attend", &path], USAGE, &[&path, "no readable .npz archive"]);
    }
    // The offset of an entry, as a number of 64 bits behind a name of ours.
    let mut zip = zip_of_offset(1 << 63);
    fs::write(&path, &zip).unwrap();
    fail(&["attend", &path], USAGE, &[&path]);
    zip = zip_of_offset(u64::MAX);
    fs::write(&path, &zip).unwrap();
    fail(&["attend", &path], USAGE, &[&path]);
}

/// An archive of one entry q.npy, whose central directory says by a zip64 field where it begins.
fn zip_of_offset(offset: u64) -> Vec<u8> {
    let name = b"q.npy";
    let mut zip = [&b"PK\x03\x04\x14\0\0\0\0\0"[..], &[0; 16], &[5, 0, 0, 0], name].concat();
    let directory = zip.len() as u32;
    zip.extend(b"PK\x01\x02\x2d\0\x2d\0\0\0\0\0");
    zip.extend([0; 16]);
    zip.extend([5, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]);
    zip.extend(name);
    zip.extend([1, 0, 8, 0]);
    zip.extend(offset.to_le_bytes());
    let size = zip.len() as u32 - directory;
    zip.extend(b"PK\x05\x06\0\0\0\0\x01\0\x01\0");
    zip.extend(size.to_le_bytes());
    zip.extend(directory.to_le_bytes());
    zip.extend([0, 0]);
    zip
}

#[test]
fn no_flipped_bit_of_an_archive_is_the_systems_fault() {
    let good = fs::read(data("numpy_savez_compressed.npz")).unwrap();
    let mut refused = 0;
    for at in 0..good.len() {
        let mut flipped = good.clone();
        flipped[at] ^= 1 << (at % 8);
        let read =
            signflash_cli::files::npz::read(&mut std::io::Cursor::new(flipped), &["q", "k", "v", "dout"]);
        if let Err(error) = read {
            assert!(!error.is_io() && !error.is_memory(), "byte {at}: {error}");
            refused += 1;
        }
    }
    assert!(refused > 1000, "{refused}");
}

#[test]
fn messages_are_short_and_nothing_that_a_terminal_obeys() {
    let dir = Dir::new();
    let name = dir.file("in.safetensors");
    let ones = vec!["1"; 100_000].join(",");
    let entry = |name: &str, shape: &str| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}"#)
    };
    let header = format!("{{{}}}", entry("q", &ones));
    fs::write(&name, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0; 4]].concat())
        .unwrap();
    let ran =
        fail(&["attend", &name], USAGE, &["q has shape [1, 1,", "(100000 dimensions)", "four dimensions"]);
    assert!(ran.stderr.len() < 600, "{}", ran.stderr);
    for path in ["/nowhere/\u{1b}[31mred\r\n.npz", "\u{9b}31m\u{202e}.npz", "x.\u{7}"] {
        let ran = fail(&["attend", path], if path.ends_with('z') { IO } else { USAGE }, &["\\"]);
        assert!(
            !ran.stderr.trim_end().contains(|c: char| c.is_control() || c == '\u{202e}'),
            "{:?}",
            ran.stderr
        );
    }
    let long = format!("--frobnicate={}", "y".repeat(100_000));
    assert!(fail(&["attend", &name, &long], USAGE, &["frobnicate"]).stderr.len() < 3000);
}

#[test]
fn a_map_of_nothing_is_called_so() {
    let dir = Dir::new();
    let (name, picture) = (dir.file("in.safetensors"), dir.file("map.png"));
    for (q, k) in [([0, 2, 4, 8], [0, 2, 4, 8]), ([1, 2, 0, 8], [1, 2, 4, 8]), ([1, 2, 4, 8], [1, 2, 0, 8])] {
        write(&name, &input::<f32>(q, k, &[]));
        let ran = fail(&["attend", &name, "--plot", &picture], USAGE, &["at least one entry"]);
        assert!(!ran.stderr.contains("below 0"), "{}", ran.stderr);
    }
}
