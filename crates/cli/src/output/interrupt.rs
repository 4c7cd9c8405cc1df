//! Temporary names that go when a signal ends the process.
//!
//! A thread waits for the signals that end a program, removes the files and lets the signal do what it does. It starts
//! with the first name; a program that has none is ended at once. A signal that was ignored when the program started
//! (`nohup`, a job in the background) stays ignored.

use rustix::fs::unlink;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGXCPU};
use signal_hook::iterator::Signals;
use std::ffi::CString;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

/// The names, ready for the system: removing them takes no memory.
static NAMES: Mutex<Vec<CString>> = Mutex::new(Vec::new());
static WATCH: Once = Once::new();
/// The thread does next to nothing.
const STACK_BYTES: usize = 128 << 10;

/// Makes a file, whose name is removed if a signal ends the process before [`release`].
pub(super) fn guarded<F>(
    create: impl FnOnce() -> std::io::Result<F>,
    name: impl Fn(&F) -> &Path,
) -> std::io::Result<F> {
    WATCH.call_once(watch);
    // A signal that comes now waits until the name is in the list.
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    let file = create()?;
    names.extend(CString::new(name(&file).as_os_str().as_bytes()).ok());
    Ok(file)
}

/// Forgets a name, which is gone or another file's now.
pub(super) fn release(name: &Path) {
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    names.retain(|known| known.as_bytes() != name.as_os_str().as_bytes());
}

/// Removes all of them, for a process that is about to end. Does not wait for a lock that this very thread may hold.
pub(crate) fn remove_all() {
    if let Ok(names) = NAMES.try_lock() {
        remove(&names);
    }
}

fn remove(names: &[CString]) {
    for name in names {
        // Nobody is left to tell.
        let _ = unlink(name.as_c_str());
    }
}

fn watch() {
    let ignored = ignored();
    let wanted = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXCPU];
    let wanted: Vec<i32> = wanted.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).collect();
    let (ready, wait) = channel();
    // Signals are taken only once there is a thread that hears them: a signal that nobody hears would be lost.
    let hear = move || {
        let mut signals = Signals::new(wanted);
        let _ = ready.send(());
        for signal in signals.iter_mut().flat_map(|signals| signals.forever()) {
            let names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
            remove(&names);
            // The process ends here as if nobody had waited; the shell sees 128 and the signal's number.
            let _ = signal_hook::low_level::emulate_default_handler(signal);
        }
    };
    // Without memory for a thread a name may stay behind: that is no reason not to compute.
    if thread::Builder::new().name("signals".into()).stack_size(STACK_BYTES).spawn(hear).is_ok() {
        let _ = wait.recv();
    }
}

/// A bit for each signal that is ignored. A system that does not tell is taken to ignore SIGHUP alone, for `nohup`.
pub(super) fn ignored() -> u64 {
    let told = fs::read_to_string("/proc/self/status").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
        u64::from_str_radix(line.trim(), 16).ok()
    });
    told.unwrap_or(1 << (SIGHUP - 1))
}
