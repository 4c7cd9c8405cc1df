//! The store on disk: what is put is got, whoever else is at it, and what is damaged is seen.

use signflash_cuda::{CubinStore, StoreError, StoreKey};
use std::process::Command;
use std::{env, fs, thread};

/// Tells a copy of this test program which directory to race in.
const RACE_DIRECTORY: &str = "SIGNFLASH_TEST_RACE_DIRECTORY";
const HEADER_BYTES: usize = 84;

fn key(name: usize) -> StoreKey {
    StoreKey::of(&["store", &name.to_string()])
}

/// Payloads of one key differ by writer, in length and in every byte.
fn payload(writer: usize) -> Vec<u8> {
    vec![writer as u8; 50_000 + 1000 * writer]
}

#[test]
fn what_is_put_is_got_and_put_again_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path().join("not/made/yet"));
    assert_eq!(store.get(&key(0)).unwrap(), None);
    for payload in [&b"first"[..], b"", b"second, longer"] {
        store.put(&key(0), payload).unwrap();
        assert_eq!(store.get(&key(0)).unwrap().as_deref(), Some(payload));
    }
    assert_eq!(store.get(&key(1)).unwrap(), None);
    assert_eq!(
        CubinStore::open(store.directory()).get(&key(0)).unwrap().as_deref(),
        Some(&b"second, longer"[..])
    );
}

#[test]
fn one_wrong_bit_anywhere_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), &[7; 40]).unwrap();
    let path = store.path(&key(0));
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len(), HEADER_BYTES + 40);
    for at in 0..whole.len() {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << (at % 8);
        fs::write(&path, damaged).unwrap();
        let error = store.get(&key(0)).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "byte {at}: {error}");
        let expected = match at {
            0..8 => "no compiled kernel",
            8..12 => "another version",
            12..44 => "another kernel's",
            44..52 => "length",
            _ => "checksum",
        };
        assert!(error.to_string().contains(expected), "byte {at}: {error}");
    }
    store.put(&key(0), &[8; 40]).unwrap();
    assert_eq!(store.get(&key(0)).unwrap(), Some(vec![8; 40]));
}

#[test]
fn a_file_cut_short_or_with_more_behind_it_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), &[7; 40]).unwrap();
    let path = store.path(&key(0));
    let whole = fs::read(&path).unwrap();
    let longer = [&whole[..], b"more"].concat();
    for length in (0..whole.len()).chain([longer.len()]) {
        fs::write(&path, &longer[..length]).unwrap();
        let error = store.get(&key(0)).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{length} bytes: {error}");
    }
}

#[test]
fn a_file_of_another_key_is_seen() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    store.put(&key(0), b"code").unwrap();
    fs::rename(store.path(&key(0)), store.path(&key(1))).unwrap();
    assert!(matches!(store.get(&key(1)), Err(StoreError::Damaged { .. })));
}

#[test]
fn a_directory_that_cannot_be_made_or_written_is_a_sentence() {
    // Below a regular file, because permissions do not bind who runs as root.
    let file = tempfile::NamedTempFile::new().unwrap();
    for directory in [file.path().to_owned(), file.path().join("below")] {
        let store = CubinStore::open(&directory);
        let error = store.put(&key(0), b"code").unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("compiled kernels are not kept in {}", directory.display())),
            "{error}"
        );
        assert!(!matches!(store.get(&key(0)), Ok(Some(_))));
    }
}

#[test]
fn a_directory_in_the_place_of_an_entry_is_seen_and_stays() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path());
    fs::create_dir(store.path(&key(0))).unwrap();
    assert!(store.get(&key(0)).unwrap_err().to_string().contains("it is no regular file"));
    assert!(store.put(&key(0), b"code").is_err());
    let left = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(left, 1, "a file that could not be renamed is deleted");
}

/// Writes and reads a few keys as fast as it can; whatever is read must be what some writer put.
fn race(store: &CubinStore, writer: usize) {
    for round in 0..40 {
        let key = key(round % 3);
        store.put(&key, &payload(writer)).unwrap();
        let read = store.get(&key).unwrap().expect("somebody put it");
        assert_eq!(read, payload(usize::from(read[0])));
    }
}

#[test]
fn threads_may_race() {
    let directory = tempfile::tempdir().unwrap();
    let store = CubinStore::open(directory.path().join("made/by/whoever/is/first"));
    thread::scope(|scope| {
        for writer in 1..=8 {
            let store = &store;
            scope.spawn(move || race(store, writer));
        }
    });
    assert_eq!(
        fs::read_dir(store.directory()).unwrap().count(),
        3,
        "nothing is left of what was being written"
    );
}

#[test]
fn processes_may_race() {
    let directory = tempfile::tempdir().unwrap();
    let racers: Vec<_> = (1..=4)
        .map(|writer| {
            Command::new(env::current_exe().unwrap())
                .args(["--exact", "one_process_of_the_race", "--nocapture"])
                .env(RACE_DIRECTORY, directory.path().join("made/by/whoever/is/first"))
                .env("SIGNFLASH_TEST_RACE_WRITER", writer.to_string())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut racer in racers {
        assert!(racer.wait().unwrap().success());
    }
    let left = fs::read_dir(directory.path().join("made/by/whoever/is/first")).unwrap().count();
    assert_eq!(left, 3);
}

/// Nothing by itself; `processes_may_race` runs it in processes of their own.
#[test]
fn one_process_of_the_race() {
    if let Some(directory) = env::var_os(RACE_DIRECTORY) {
        let writer = env::var("SIGNFLASH_TEST_RACE_WRITER").unwrap().parse().unwrap();
        race(&CubinStore::open(directory), writer);
    }
}
