//! The store on disk against others: what somebody else could have put there is not used, nothing is waited for,
//! nothing grows without end.
#![cfg(unix)]

use rustix::fs::{CWD, FileType, Mode, mknodat};
use signflash_cuda::{CubinStore, StoreError, StoreKey};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, SystemTime};

/// The user `nobody`: not us, whoever we are.
const SOMEBODY_ELSE: u32 = 65534;

fn key(name: usize) -> StoreKey {
    StoreKey::of(&["guards", &name.to_string()])
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

/// What getting the entry says, which must come within seconds.
fn refused(store: &CubinStore) -> String {
    let (store, (sender, receiver)) = (store.clone(), mpsc::channel());
    thread::spawn(move || sender.send(store.get(&key(0)).map(|found| found.map(|code| code.len()))));
    let answer = receiver.recv_timeout(Duration::from_secs(10)).expect("the store does not wait");
    answer.expect_err("it is refused").to_string()
}

/// Whether a file could be given to another user, which only root can do.
fn gave_away(path: &Path) -> bool {
    let given = chown(path, Some(SOMEBODY_ELSE), None).is_ok();
    if !given {
        // Not by eprintln!, which tests that pass do not show.
        let _ = writeln!(std::io::stderr(), "skipped: only root can give {} to another user", path.display());
    }
    given
}

#[test]
fn the_directory_and_its_files_are_made_for_us_alone() {
    let parent = tempfile::tempdir().unwrap();
    let store = CubinStore::open(parent.path().join("made/when/needed"));
    store.put(&key(0), b"code").unwrap();
    assert_eq!((mode(store.directory()), mode(&store.path(&key(0)))), (0o700, 0o600));
    assert_eq!(mode(&parent.path().join("made")), 0o700);
}

#[test]
fn a_directory_that_others_may_write_is_not_used() {
    for unsafe_mode in [0o777, 0o1777, 0o770, 0o702] {
        let directory = tempfile::tempdir().unwrap();
        let store = CubinStore::open(directory.path());
        store.put(&key(0), b"code").unwrap();
        set_mode(directory.path(), unsafe_mode);
        let put = store.put(&key(1), b"code").unwrap_err();
        assert!(matches!(put, StoreError::Untrusted { .. }), "{unsafe_mode:o}: {put}");
        assert!(!store.path(&key(1)).exists());
        let said = refused(&store);
        assert!(
            said.contains(&format!("others than its owner may write it (mode {unsafe_mode:o})")),
            "{said}"
        );
        assert!(said.ends_with("or set SIGNFLASH_CACHE_DIR to another directory"), "{said}");
        set_mode(directory.path(), 0o755);
        assert_eq!(store.get(&key(0)).unwrap().as_deref(), Some(&b"code"[..]));
    }
}

#[test]
fn a_directory_of_another_user_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), b"code").unwrap();
    if gave_away(directory.path()) {
        assert!(refused(&store).contains("it belongs to user 65534"));
        assert!(matches!(store.put(&key(0), b"code"), Err(StoreError::Untrusted { .. })));
    }
}

#[test]
fn a_file_of_another_user_is_not_used_and_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), b"forged").unwrap();
    if gave_away(&store.path(&key(0))) {
        assert!(refused(&store).contains("it belongs to user 65534"));
        store.put(&key(0), b"code").unwrap();
        assert_eq!(store.get(&key(0)).unwrap().as_deref(), Some(&b"code"[..]));
    }
}

#[test]
fn a_file_that_others_may_write_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), b"forged").unwrap();
    set_mode(&store.path(&key(0)), 0o666);
    assert!(refused(&store).contains("others than its owner may write it (mode 666)"));
}

#[test]
fn a_pipe_in_the_place_of_an_entry_is_not_waited_for_and_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    mknodat(CWD, store.path(&key(0)), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    assert!(refused(&store).contains("it is no regular file"));
    store.put(&key(0), b"code").unwrap();
    assert_eq!(store.get(&key(0)).unwrap().as_deref(), Some(&b"code"[..]));
}

#[test]
fn a_link_in_the_place_of_an_entry_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), b"code").unwrap();
    let elsewhere = directory.path().join("elsewhere");
    fs::rename(store.path(&key(0)), &elsewhere).unwrap();
    symlink(&elsewhere, store.path(&key(0))).unwrap();
    assert!(refused(&store).contains("it is a symbolic link"));
}

#[test]
fn a_file_larger_than_any_kernel_is_neither_read_nor_given_memory() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), b"code").unwrap();
    let path = store.path(&key(0));
    // As long as its header says, but for the most part a hole.
    let bytes = 200u64 << 30;
    let mut header = fs::read(&path).unwrap();
    header[44..52].copy_from_slice(&(bytes - 84).to_le_bytes());
    fs::write(&path, header).unwrap();
    File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
    assert!(refused(&store).contains("it is larger than any kernel"));
    store.put(&key(1), b"code").unwrap();
    assert!(!path.exists(), "it takes no room from others");
}

#[test]
fn what_get_would_refuse_is_not_put() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    let error = store.put(&key(0), &vec![1; (16 << 20) + 1]).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    store.put(&key(0), &vec![1; 16 << 20]).unwrap();
    assert_eq!(store.get(&key(0)).unwrap().map(|code| code.len()), Some(16 << 20));
    let small = store.with_limit(1000);
    assert!(matches!(small.put(&key(1), &[1; 917]), Err(StoreError::TooLarge { most: 1000, .. })));
}

#[test]
fn what_was_used_longest_ago_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    // Three entries of 84 + 900 bytes fit.
    let store = CubinStore::open(directory.path()).with_limit(3000);
    let foreign = directory.path().join("notes.txt");
    fs::write(&foreign, vec![0; 10_000]).unwrap();
    for name in 0..3 {
        store.put(&key(name), &[name as u8; 900]).unwrap();
        let used = SystemTime::now() - Duration::from_secs(1000 - name as u64);
        File::options().write(true).open(store.path(&key(name))).unwrap().set_modified(used).unwrap();
    }
    store.get(&key(0)).unwrap().expect("it is there");
    store.put(&key(3), &[3; 900]).unwrap();
    let there = |name| store.get(&key(name)).unwrap().is_some();
    assert_eq!([0, 1, 2, 3].map(there), [true, false, true, true]);
    assert!(foreign.exists(), "files of others stay");
    store.with_limit(1000).put(&key(3), &[3; 900]).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[test]
fn what_killed_processes_were_writing_goes_after_an_hour() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    let [old, new] = [".writing-old", ".writing-new"].map(|name| directory.path().join(name));
    for path in [&old, &new] {
        fs::write(path, b"half").unwrap();
    }
    let hours_ago = SystemTime::now() - Duration::from_secs(2 * 60 * 60);
    File::options().write(true).open(&old).unwrap().set_modified(hours_ago).unwrap();
    store.put(&key(0), b"code").unwrap();
    assert_eq!((old.exists(), new.exists()), (false, true));
}
