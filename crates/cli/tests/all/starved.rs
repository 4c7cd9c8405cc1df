//! Too little of everything: memory, threads, and what arrives by a pipe.
#![cfg(target_os = "linux")]

use crate::common::{Dir, VECTORS, fail, input, sh, succeed, vector, write};
use signflash_core::f16;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::thread;

/// The dynamic loader's own failure, before the first line of ours.
const LOADER: i32 = 127;
const MEMORY: i32 = 4;

#[test]
fn too_small_an_address_space_is_one_line_whatever_the_command() {
    let dir = Dir::new();
    let (name, probs) = (dir.file("in.npz"), dir.file("probs.npz"));
    write(&name, &input::<f32>([1, 4, 700, 16], [1, 2, 700, 16], &[("dropout_p", "0.1")]));
    succeed(&["attend", &name, "--probs", "-o", &probs]);
    let before = dir.names().len();
    let (out, keep, picture) = (dir.file("out.npz"), dir.file("keep.npy"), dir.file("map.png"));
    let commands: [&[&str]; 7] = [
        &["attend", &name, "-o", &out, "--threads", "2"],
        &["attend", &name, "-o", &out, "--threads", "2", "--probs", "--plot", &picture],
        &["plot", &probs, "-o", &picture],
        &["dropout-mask", "--heads", "8", "--seqlen-q", "512", "--seqlen-k", "512", "-p", "0.5", "-o", &keep],
        &["bench", "--seqlen", "64", "--head-dim", "64", "--dropout-p", "0", "--reps", "1", "--threads", "2"],
        &["info"],
        &["kernels", "--head-dim", "64"],
    ];
    let mut refused = 0;
    // A program that does not fit itself is killed by the kernel before its first line.
    let own = fs::metadata(env!("CARGO_BIN_EXE_signflash")).unwrap().len().div_ceil(1 << 20);
    for mebibytes in [2, 6, 10, 14, 20, 50, 90, 140].map(|more| own + more) {
        for arguments in commands {
            let script = format!(r#"ulimit -v {} && exec timeout -s KILL 120 "$0" "$@""#, mebibytes * 1024);
            let ran = sh(&script, arguments);
            let what = format!("{mebibytes} MiB, {arguments:?}: {} {}", ran.code, ran.stderr);
            if ran.code == LOADER {
                continue;
            }
            assert!(ran.code == 0 || ran.code == MEMORY, "{what}");
            if ran.code == MEMORY {
                refused += 1;
                assert!(
                    ran.stderr.starts_with("signflash: error: ") && ran.stderr.lines().count() == 1,
                    "{what}"
                );
            }
            for made in [&out, &keep, &picture] {
                let _ = fs::remove_file(made);
            }
            assert_eq!(dir.names().len(), before, "{what}: {:?}", dir.names());
        }
    }
    assert!(refused > 10, "the limits limit nothing: {refused}");
}

#[test]
fn what_the_limit_leaves_is_known_before_results_are_allocated() {
    let dir = Dir::new();
    let name = dir.file("in.npz");
    // Small operands, and 900 MiB of probs.
    write(&name, &input::<f32>([1, 1, 16384, 1], [1, 1, 14000, 1], &[]));
    let limited = r#"ulimit -v 600000 && exec "$0" "$@""#;
    let ran = sh(limited, &["attend", &name, "--probs", "--threads", "1"]);
    assert_eq!(ran.code, MEMORY, "{}", ran.stderr);
    assert!(ran.stderr.contains("probs") && ran.stderr.contains("ulimit"), "{}", ran.stderr);
}

#[test]
fn threads_that_cannot_help_or_cannot_start_are_refused() {
    let name = vector(VECTORS[4]);
    fail(&["attend", &name, "--threads", "4096"], 2, &["--threads must be from 1 to ", "cores, got 4096"]);
    let variable = r#"RAYON_NUM_THREADS=100000 exec "$0" "$@""#;
    for arguments in [
        &["attend", &name][..],
        &["bench"],
        &["dropout-mask", "--seqlen-q", "9", "--seqlen-k", "9", "-p", "0"],
    ] {
        let ran = sh(variable, arguments);
        assert_eq!((ran.code, ran.stderr.lines().count()), (2, 1), "{}", ran.stderr);
        assert!(ran.stderr.contains("RAYON_NUM_THREADS must be from 1 to "), "{}", ran.stderr);
    }
    // rayon takes neither for a number of threads.
    for value in ["0", "many"] {
        let ran = sh(&format!(r#"RAYON_NUM_THREADS={value} exec "$0" "$@""#), &["attend", &name]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{value}");
    }
    let ran = sh(r#"ulimit -v 60000 && exec "$0" "$@""#, &["attend", &name, "--threads", "60"]);
    assert_eq!((ran.code, ran.stderr.lines().count()), (MEMORY, 1), "{}", ran.stderr);
    assert!(ran.stderr.contains("60 threads cannot be started"), "{}", ran.stderr);
}

#[test]
fn what_comes_out_of_a_pipe_is_read_as_a_file_is() {
    let dir = Dir::new();
    let archive = input::<f16>([1, 2, 5, 8], [1, 1, 7, 8], &[("causal", "true")]);
    for name in ["in.npz", "in.safetensors"] {
        let (file, pipe) = (dir.path(name), dir.path(&format!("pipe_{name}")));
        write(&file, &archive);
        if !Command::new("mkfifo").arg(&pipe).status().is_ok_and(|made| made.success()) {
            return;
        }
        let (bytes, end) = (fs::read(&file).unwrap(), pipe.clone());
        let writer =
            thread::spawn(move || OpenOptions::new().write(true).open(end).unwrap().write_all(&bytes));
        let (from_pipe, from_file) = (dir.file("a.npz"), dir.file("b.npz"));
        succeed(&["attend", pipe.to_str().unwrap(), "-o", &from_pipe]);
        writer.join().unwrap().unwrap();
        succeed(&["attend", file.to_str().unwrap(), "-o", &from_file]);
        assert!(fs::read(from_pipe).unwrap() == fs::read(from_file).unwrap());
    }
    symlink("/dev/zero", dir.path("zero.npz")).unwrap();
    fail(&["attend", &dir.file("zero.npz")], 3, &["it is a device; expected a file or a pipe"]);
}
