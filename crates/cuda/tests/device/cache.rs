//! Compiled once, found ever after.

use crate::support::{add_program, check_add, gpu, say};
use signflash_cuda::{CacheDirectory, Device, ModuleCache, Stream};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;
use std::{fs, thread};

fn cache_in(directory: &Path) -> ModuleCache {
    ModuleCache::at(CacheDirectory::At(directory.into()))
}

/// Asks `cache` for the kernel, runs it, and returns how many microseconds asking took.
fn ask(cache: &ModuleCache, device: &Device) -> u128 {
    let start = Instant::now();
    let add = cache.get_or_compile(device, "add", add_program).unwrap();
    let micros = start.elapsed().as_micros();
    check_add(&add, &Stream::new(device).unwrap());
    micros
}

#[test]
fn the_next_process_finds_what_this_one_compiled() {
    let Some(device) = gpu() else { return };
    let directory = tempfile::tempdir().unwrap();
    let (cold, warm) = (cache_in(directory.path()), cache_in(directory.path()));
    let (compiled, loaded, found) = (ask(&cold, &device), ask(&warm, &device), ask(&warm, &device));
    say(&format!(
        "compiled in {compiled} us, loaded from disk in {loaded} us, found in memory in {found} us"
    ));
    assert_eq!((cold.status().compiled, cold.status().loaded), (1, 0));
    assert_eq!((warm.status().compiled, warm.status().loaded), (0, 1));
    assert_eq!((cold.status().problem, warm.status().problem), (None, None));
}

#[test]
fn a_kernel_found_in_memory_is_not_even_written() {
    let Some(device) = gpu() else { return };
    let cache = ModuleCache::at(CacheDirectory::Off);
    let first = cache.get_or_compile(&device, "add", add_program).unwrap();
    let again = cache.get_or_compile(&device, "add", || unreachable!("it is there")).unwrap();
    assert!(std::sync::Arc::ptr_eq(&first, &again));
}

#[test]
fn threads_that_ask_for_one_kernel_compile_it_once() {
    let Some(device) = gpu() else { return };
    let (cache, written) = (ModuleCache::at(CacheDirectory::Off), AtomicU32::new(0));
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let program = || {
                    written.fetch_add(1, Ordering::Relaxed);
                    add_program()
                };
                let add = cache.get_or_compile(&device, "add", program).unwrap();
                check_add(&add, &Stream::new(&device).unwrap());
            });
        }
    });
    assert_eq!((written.into_inner(), cache.status().compiled), (1, 1));
}

#[test]
fn a_damaged_file_is_compiled_anew_and_replaced() {
    let Some(device) = gpu() else { return };
    let directory = tempfile::tempdir().unwrap();
    ask(&cache_in(directory.path()), &device);
    let file = fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&file).unwrap();
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let cache = cache_in(directory.path());
    ask(&cache, &device);
    assert_eq!((cache.status().damaged, cache.status().compiled), (1, 1));
    let next = cache_in(directory.path());
    ask(&next, &device);
    assert_eq!((next.status().damaged, next.status().loaded), (0, 1));
}

#[test]
fn a_directory_that_cannot_be_used_costs_only_the_compilation() {
    let Some(device) = gpu() else { return };
    let file = tempfile::NamedTempFile::new().unwrap();
    let cache = cache_in(&file.path().join("below/a/file"));
    ask(&cache, &device);
    let status = cache.status();
    assert_eq!(status.compiled, 1);
    say(&status.problem.expect("it says why nothing is kept"));
}

#[test]
fn a_kernel_that_failed_is_tried_again() {
    let Some(device) = gpu() else { return };
    let cache = ModuleCache::at(CacheDirectory::Off);
    let mut broken = add_program();
    broken.ptx.push_str("no PTX");
    assert!(cache.get_or_compile(&device, "add", || broken).is_err());
    ask(&cache, &device);
}
