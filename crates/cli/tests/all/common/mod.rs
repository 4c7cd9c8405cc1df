//! Runs the real binary, and builds the files that it reads.
#![allow(dead_code, missing_docs, unreachable_pub)] // each test binary uses its part

use signflash_cli::files::{Archive, FileElement, Tensor, npz, safetensors};
use std::fs::{self, File};
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use tempfile::TempDir;

pub const VECTORS: [&str; 9] = [
    "a_f16_d64_p10",
    "b_bf16_d128_p30_ragged",
    "c_f16_d64_p20_causal",
    "d_bf16_d64_p17_cross",
    "e_f16_d32_p50_causal",
    "f_f16_d128_p00",
    "p1_f16_d64_packed_p10",
    "p2_bf16_d128_packed_causal_gqa_p17",
    "w1_f16_d64_window_p20",
];

pub fn vector(name: &str) -> String {
    format!("{}/../../testdata/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))
}

pub fn data(name: &str) -> String {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Whether this test program ignores a signal, as one in the background of a script ignores SIGINT. Then its children do.
pub fn ignores(signal: i32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let bits = ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> (signal - 1) & 1 == 1)
}

/// A directory that is gone after the test.
pub struct Dir(TempDir);

impl Dir {
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str) -> String {
        self.path(name).to_str().expect("a UTF-8 path").to_string()
    }

    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).expect("the temporary directory");
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

/// What a run of the binary gave.
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

pub fn signflash(arguments: &[&str]) -> Ran {
    let output: Output =
        Command::new(env!("CARGO_BIN_EXE_signflash")).args(arguments).output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs a script in which `$0` is the binary and `$1` and so on are the arguments.
pub fn sh(script: &str, arguments: &[&str]) -> Ran {
    let output = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_signflash")])
        .args(arguments)
        .output()
        .expect("a shell");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs it; it must succeed and say nothing on stderr.
pub fn succeed(arguments: &[&str]) -> String {
    let ran = signflash(arguments);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}");
    ran.stdout
}

/// Runs it; it must fail with this code and one line that holds all of `needles`.
pub fn fail(arguments: &[&str], code: i32, needles: &[&str]) -> Ran {
    let ran = signflash(arguments);
    assert_eq!(ran.code, code, "{arguments:?}: {}", ran.stderr);
    assert!(ran.stderr.starts_with("signflash: error: "), "{arguments:?}: {}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{arguments:?}: {}", ran.stderr);
    for needle in needles {
        assert!(ran.stderr.contains(needle), "{arguments:?}: {needle:?} is not in {}", ran.stderr);
    }
    ran
}

const ALL: [&str; 17] = [
    "q",
    "k",
    "v",
    "dout",
    "dlse",
    "cu_seqlens_q",
    "cu_seqlens_k",
    "out",
    "lse",
    "probs",
    "dq",
    "dk",
    "dv",
    "dbias",
    "dsinks",
    "signbit",
    "settings",
];

/// Every tensor of a file that this program knows.
pub fn read(path: impl AsRef<Path>) -> Archive {
    signflash_cli::files::read(path.as_ref(), &ALL).expect("a readable file")
}

pub fn write(path: impl AsRef<Path>, archive: &Archive) {
    let mut file = File::create(path.as_ref()).expect("a writable file");
    let npz = path.as_ref().extension().is_some_and(|extension| extension == "npz");
    if npz { npz::write(&mut file, archive) } else { safetensors::write(&mut file, archive) }
        .expect("writing");
}

pub fn source(path: impl AsRef<Path>) -> BufReader<File> {
    BufReader::new(File::open(path).expect("a file"))
}

/// Numbers that are all different and of both signs.
pub fn tensor<T: FileElement>(shape: &[usize], salt: u32) -> Tensor {
    let len: usize = shape.iter().product();
    let number = |i: usize| {
        let hash = (i as u32 ^ salt.rotate_left(9)).wrapping_mul(2_654_435_761);
        T::from_f32((hash >> 8) as f32 / (1 << 23) as f32 * 2.0 - 2.0)
    };
    Tensor { shape: shape.to_vec(), data: T::wrap((0..len).map(number).collect()) }
}

/// q, k, v and dout, stored as (batch, heads, seqlen, head_dim).
pub fn input<T: FileElement>(q: [usize; 4], k: [usize; 4], settings: &[(&str, &str)]) -> Archive {
    let tensors = [
        ("q", tensor::<T>(&q, 1)),
        ("k", tensor::<T>(&k, 2)),
        ("v", tensor::<T>(&k, 3)),
        ("dout", tensor::<T>(&q, 4)),
    ];
    Archive {
        tensors: tensors.map(|(name, tensor)| (name.to_string(), tensor)).into(),
        metadata: settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        present: Vec::new(),
    }
}
