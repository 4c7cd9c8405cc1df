//! Output files: whole or not at all, whoever reads our stdout, whatever ends the process, and as private as before.
#![cfg(unix)]

use crate::common::{Dir, VECTORS, ignores, input, read, sh, succeed, vector, write};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

fn small(dir: &Dir, name: &str) -> String {
    write(dir.path(name), &input::<f32>([1, 2, 5, 8], [1, 1, 7, 8], &[("dropout_p", "0.5")]));
    dir.file(name)
}

/// Exit code and stderr of a run whose stdout nobody reads.
fn unread(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_signflash"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_reader_that_goes_away_costs_no_file_and_hides_no_verdict() {
    let dir = Dir::new();
    let (name, out, picture) = (small(&dir, "in.npz"), dir.file("out.npz"), dir.file("map.png"));
    let verify = ["attend", &name, "-o", &out, "--verify", "--plot", &picture, "--probs"];
    assert_eq!(unread(&verify), (Some(0), String::new()));
    assert!(read(&out).tensors.contains_key("probs") && fs::metadata(&picture).unwrap().len() > 100);
    fs::remove_file(&out).unwrap();
    let (code, said) = unread(&["attend", &vector(VECTORS[4]), "--verify=file", "--seed", "2", "-o", &out]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("verification failed") && read(&out).tensors.contains_key("dq"), "{said}");
}

#[test]
fn no_subcommand_minds_a_reader_that_goes_away() {
    let dir = Dir::new();
    let (name, probs) = (small(&dir, "in.npz"), dir.file("probs.npz"));
    succeed(&["attend", &name, "--probs", "-o", &probs]);
    let (keep, picture) = (dir.file("keep.npy"), dir.file("map.png"));
    let runs: [&[&str]; 7] = [
        &["dropout-mask", "--seqlen-q", "9", "--seqlen-k", "9", "-p", "0.5", "-o", &keep],
        &["plot", &probs, "-o", &picture],
        &["bench", "--seqlen", "16", "--head-dim", "8", "--reps", "1"],
        &["bench", "--seqlen", "16", "--head-dim", "8", "--reps", "1", "--json"],
        &["info"],
        &["kernels", "--head-dim", "64"],
        &["attend", "--help"],
    ];
    for arguments in runs {
        assert_eq!(unread(arguments), (Some(0), String::new()), "{arguments:?}");
    }
    assert!(fs::metadata(keep).unwrap().len() > 80 && fs::metadata(picture).unwrap().len() > 100);
}

#[test]
fn a_full_stdout_is_told_once_the_files_are_there() {
    if File::open("/dev/full").is_err() {
        return;
    }
    let dir = Dir::new();
    let (name, out) = (small(&dir, "in.npz"), dir.file("out.npz"));
    let full = r#"exec "$0" "$@" > /dev/full"#;
    for arguments in [&["attend", &name, "-o", &out, "--verify"][..], &["info"], &["--help"], &["--version"]]
    {
        let ran = sh(full, arguments);
        assert_eq!((ran.code, ran.stderr.lines().count()), (3, 1), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains("standard output"), "{}", ran.stderr);
    }
    assert!(read(&out).tensors.contains_key("out"));
    let ran = sh(full, &["attend", &vector(VECTORS[4]), "--verify=file", "--seed", "2"]);
    assert_eq!(ran.code, 1, "{}", ran.stderr);
}

#[test]
fn signals_end_a_run_and_leave_nothing_but_the_older_file() {
    let dir = Dir::new();
    let out = dir.file("keep.npy");
    for (signal, number) in [("INT", 2), ("TERM", 15), ("HUP", 1), ("KILL", 9)] {
        if ignores(number) {
            continue;
        }
        fs::write(&out, "older").unwrap();
        let arguments = "dropout-mask --heads 4096 --seqlen-q 65536 --seqlen-k 4096 -p 0.5 -o".split(' ');
        let mut child =
            Command::new(env!("CARGO_BIN_EXE_signflash")).args(arguments).arg(&out).spawn().unwrap();
        wait_until_it_writes(child.id());
        let kill = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(child.wait().unwrap().signal(), Some(number), "{signal}");
        // A file system without nameless files keeps what SIGKILL leaves: nobody hears that one.
        if signal != "KILL" || dir.names().len() == 1 {
            assert_eq!((dir.names(), fs::read(&out).unwrap()), (vec!["keep.npy".into()], b"older".to_vec()));
        }
    }
}

fn wait_until_it_writes(process: u32) {
    let io = format!("/proc/{process}/io");
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(20) {
        let written = fs::read_to_string(&io).ok().and_then(|text| {
            text.lines().find_map(|line| line.strip_prefix("wchar: ")).and_then(|n| n.parse::<u64>().ok())
        });
        match written {
            Some(bytes) if bytes > 100_000 => return,
            _ => thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn a_file_beyond_the_size_limit_is_an_error_like_any_other() {
    let dir = Dir::new();
    for name in ["out.npz", "out.safetensors"] {
        let out = dir.file(name);
        fs::write(&out, "older").unwrap();
        let limited = r#"ulimit -f 8; exec "$0" "$@""#;
        let ran = sh(limited, &["attend", &vector(VECTORS[4]), "-o", &out]);
        assert_eq!((ran.code, ran.stderr.lines().count()), (3, 1), "{}", ran.stderr);
        assert!(ran.stderr.contains(&format!("{out}: cannot write: ")), "{}", ran.stderr);
        assert_eq!(fs::read(&out).unwrap(), b"older");
        fs::remove_file(&out).unwrap();
        assert_eq!(dir.names(), Vec::<String>::new());
    }
}

fn mode(path: &std::path::Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn an_older_file_keeps_its_permissions_and_a_new_one_gets_the_umask() {
    let dir = Dir::new();
    let (name, out) = (small(&dir, "in.npz"), dir.file("out.npz"));
    for bits in [0o600, 0o640, 0o666, 0o755] {
        fs::write(&out, "older").unwrap();
        fs::set_permissions(&out, Permissions::from_mode(bits)).unwrap();
        succeed(&["attend", &name, "-o", &out]);
        assert_eq!(mode(out.as_ref()), bits);
    }
    for (umask, bits) in [("027", 0o640), ("077", 0o600), ("000", 0o666)] {
        fs::remove_file(&out).unwrap();
        let ran = sh(&format!(r#"umask {umask}; exec "$0" "$@""#), &["attend", &name, "-o", &out]);
        assert_eq!((ran.code, mode(out.as_ref())), (0, bits), "{}", ran.stderr);
    }
}

#[test]
fn a_file_that_nobody_may_write_is_not_replaced() {
    let dir = Dir::new();
    let (name, out) = (small(&dir, "in.npz"), dir.file("out.npz"));
    fs::write(&out, "older").unwrap();
    fs::set_permissions(&out, Permissions::from_mode(0o444)).unwrap();
    crate::common::fail(&["attend", &name, "-o", &out], 3, &[&out, "read-only", "choose another name"]);
    assert_eq!(fs::read(&out).unwrap(), b"older");
}

#[test]
fn links_lead_to_the_file_that_is_written() {
    let dir = Dir::new();
    let name = small(&dir, "in.npz");
    fs::create_dir(dir.path("far")).unwrap();
    fs::write(dir.path("far/there.npz"), "older").unwrap();
    symlink("far/there.npz", dir.path("link.npz")).unwrap();
    symlink("link.npz", dir.path("twice.npz")).unwrap();
    symlink("far/new.npz", dir.path("dangling.npz")).unwrap();
    for (link, file) in [("twice.npz", "far/there.npz"), ("dangling.npz", "far/new.npz")] {
        succeed(&["attend", &name, "-o", &dir.file(link)]);
        assert!(dir.path(link).is_symlink() && !dir.path(file).is_symlink());
        assert!(read(dir.path(file)).tensors.contains_key("out"));
    }
    symlink("loop.npz", dir.path("loop.npz")).unwrap();
    crate::common::fail(&["attend", &name, "-o", &dir.file("loop.npz")], 3, &["cannot write"]);
}

#[test]
fn no_output_replaces_the_input_or_another_output_behind_a_link() {
    let dir = Dir::new();
    let (name, probs) = (small(&dir, "in.npz"), dir.file("probs.npz"));
    succeed(&["attend", &name, "--probs", "-o", &probs]);
    let linked = |link: &str, file: &str| {
        symlink(file, dir.path(link)).unwrap();
        dir.file(link)
    };
    fs::create_dir(dir.path("far")).unwrap();
    let (input, others, far) =
        (linked("a.png", "in.npz"), linked("b.png", "far/../probs.npz"), linked("c.png", "new.npz"));
    let (new, again) = (dir.file("new.npz"), linked("in.safetensors", "in.npz"));
    let runs: [(&[&str], &str); 5] = [
        (&["attend", &name, "--plot", &input], "the input itself"),
        (&["attend", &name, "-o", &again], "the input itself"),
        (&["plot", &probs, "-o", &others], "the input itself"),
        (&["attend", &name, "-o", &new, "--plot", &far], "--output itself"),
        (&["attend", &name, "-o", &probs, "--plot", &others], "--output itself"),
    ];
    let older = (fs::read(&name).unwrap(), fs::read(&probs).unwrap());
    for (arguments, other) in runs {
        crate::common::fail(arguments, 2, &[other, "would be lost; choose another name"]);
        assert!((fs::read(&name).unwrap(), fs::read(&probs).unwrap()) == older, "{arguments:?}");
        assert!(!dir.path("new.npz").exists(), "{arguments:?}");
    }
}

#[test]
fn pipes_and_devices_are_written_and_not_replaced() {
    let dir = Dir::new();
    let name = small(&dir, "in.npz");
    for (out, plain) in [("pipe.npz", "plain.npz"), ("pipe.safetensors", "plain.safetensors")] {
        if !Command::new("mkfifo").arg(dir.path(out)).status().is_ok_and(|made| made.success()) {
            return;
        }
        let pipe = dir.path(out);
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(pipe).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        });
        succeed(&["attend", &name, "-o", &dir.file(out)]);
        succeed(&["attend", &name, "-o", &dir.file(plain)]);
        assert!(reader.join().unwrap() == fs::read(dir.path(plain)).unwrap(), "{out}");
    }
    symlink("/dev/null", dir.path("null.npz")).unwrap();
    succeed(&["attend", &name, "-o", &dir.file("null.npz")]);
    assert!(dir.path("null.npz").is_symlink() && !fs::metadata("/dev/null").unwrap().is_file());
}

#[test]
fn names_may_be_as_long_as_names_can_be_and_need_not_be_unicode() {
    let dir = Dir::new();
    let name = small(&dir, "in.npz");
    let long = |length: usize| OsString::from(format!("{}.npz", "x".repeat(length - 4)));
    let mut strange = vec![0xff; 80];
    strange.extend(b"\x1b[31m.npz");
    for out in [long(240), long(255), OsString::from_vec(strange)] {
        let path = dir.path("").join(&out);
        for _ in 0..2 {
            let ran = Command::new(env!("CARGO_BIN_EXE_signflash"))
                .args([OsStr::new("attend"), name.as_ref(), "-o".as_ref(), path.as_os_str()])
                .output()
                .unwrap();
            assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
            assert!(!ran.stdout.contains(&0x1b), "an escape reached the terminal");
        }
        assert!(fs::metadata(&path).unwrap().len() > 100, "{}", out.as_bytes().len());
    }
}
