//! The program's allocator: the system's, counted, and the end of the program where it has nothing left.
//!
//! Rust aborts where memory for a vector cannot be had, and libraries allocate where they like. Here, beneath all of
//! them, the last thing that the program does is to remove what it has half written and to say one line.
#![allow(unsafe_code)] // an allocator is unsafe to implement; this is the command's only such room

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

#[global_allocator]
static ALLOCATOR: Counted = Counted;

static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counted;

// SAFETY: every block is the system allocator's, asked for and given back with the layout that the caller gave; what
// is added counts, or ends the process instead of returning null.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the promises of `alloc`, and they are the same.
        counted(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller keeps the promises of `alloc_zeroed`, and they are the same.
        counted(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's block came from this allocator, so from the system's, with this layout.
        unsafe { System.dealloc(block, layout) };
        USED.fetch_sub(layout.size(), Ordering::Relaxed);
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's block came from this allocator, so from the system's, with this layout.
        let moved = unsafe { System.realloc(block, layout, size) };
        if !moved.is_null() {
            USED.fetch_sub(layout.size(), Ordering::Relaxed);
        }
        counted(moved, size)
    }
}

fn counted(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        give_up(size);
    }
    let used = USED.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(used, Ordering::Relaxed);
    block
}

/// Bytes allocated now.
pub(super) fn used() -> usize {
    USED.load(Ordering::Relaxed)
}

/// The most bytes that were allocated at once since [`reset_peak`].
pub(super) fn peak() -> usize {
    PEAK.load(Ordering::Relaxed)
}

/// Starts a new peak.
pub(super) fn reset_peak() {
    PEAK.store(used(), Ordering::Relaxed);
}

/// Ends the process with one line. Nothing here allocates.
fn give_up(size: usize) -> ! {
    static GIVING_UP: AtomicBool = AtomicBool::new(false);
    if GIVING_UP.swap(true, Ordering::AcqRel) {
        // Another thread is at it.
        loop {
            std::thread::yield_now();
        }
    }
    let mut line = Line { bytes: [0; 256], length: 0 };
    let _ = writeln!(
        line,
        "signflash: error: not enough memory: {size} bytes more were needed and refused; choose a smaller problem, or \
         raise the limit (ulimit -v, the container's)"
    );
    last_words(&line.bytes[..line.length])
}

#[cfg(unix)]
fn last_words(line: &[u8]) -> ! {
    crate::output::interrupt::remove_all();
    // If even stderr is closed there is nobody left to tell.
    let _ = rustix::io::write(rustix::stdio::stderr(), line);
    signal_hook::low_level::exit(crate::errors::MEMORY.into())
}

#[cfg(not(unix))]
fn last_words(line: &[u8]) -> ! {
    let _ = std::io::Write::write_all(&mut std::io::stderr(), line);
    std::process::exit(crate::errors::MEMORY.into())
}

/// Text in a fixed place; what does not fit is cut off.
struct Line {
    bytes: [u8; 256],
    length: usize,
}

impl std::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let room = &mut self.bytes[self.length..];
        let fits = text.len().min(room.len());
        room[..fits].copy_from_slice(&text.as_bytes()[..fits]);
        self.length += fits;
        Ok(())
    }
}
