//! The threads that PyTorch computes with, lent for units of our own. They are OpenMP's, which go on spinning for a while
//! when they have nothing to do: threads of ours beside them would wait for the cores, and theirs are awake already.

use signflash_cpu::Team;

/// PyTorch's threads, `threads` of them, if it computes with OpenMP. None in a process that was forked: OpenMP's
/// threads stay behind, and a call of it would wait for them for ever.
pub(crate) fn team(threads: usize) -> Option<Team> {
    (threads > 1 && crate::pool::forks::behind() == 0 && entry::of_torch().is_some())
        .then_some(Team { threads, run: entry::run })
}

#[cfg(target_os = "linux")]
mod entry {
    use std::ffi::{CStr, CString, c_int, c_uint, c_void};
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    /// What compilers call for `#pragma omp parallel`. LLVM's and Intel's libraries have it as GCC's has, by this name.
    type Parallel =
        unsafe extern "C" fn(unsafe extern "C" fn(*mut c_void), *mut c_void, threads: c_uint, flags: c_uint);

    type Work<'a> = &'a (dyn Fn() + Sync);

    /// That of the OpenMP that PyTorch was linked with, and not of another one that the process may hold, too. Looked for
    /// until it is there, since PyTorch may be imported later.
    pub(super) fn of_torch() -> Option<Parallel> {
        static FOUND: OnceLock<Parallel> = OnceLock::new();
        FOUND.get().copied().or_else(|| {
            let found = find()?;
            Some(*FOUND.get_or_init(|| found))
        })
    }

    fn find() -> Option<Parallel> {
        let path = path_of_torch()?;
        // SAFETY: with RTLD_NOLOAD nothing is loaded and no code is run; the path ends with a zero.
        let torch = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if torch.is_null() {
            return None;
        }
        // SAFETY: the handle is an open one, and stays so; a search through it goes on in what it was linked with.
        let found = unsafe { libc::dlsym(torch, c"GOMP_parallel".as_ptr()) };
        // SAFETY: a function of this name has this signature, in all three libraries.
        (!found.is_null()).then(|| unsafe { std::mem::transmute::<*mut c_void, Parallel>(found) })
    }

    /// A walk through the loaded libraries.
    #[derive(Default)]
    pub(super) struct Search {
        path: Option<CString>,
        /// How many libraries the process had ever loaded when one looked for PyTorch's in vain.
        in_vain: u64,
        loaded: u64,
        pub(super) visited: usize,
    }

    /// Where PyTorch's library was loaded from. Its name alone would not do: Debian's has a version behind it.
    fn path_of_torch() -> Option<CString> {
        search().path
    }

    /// Looks again only when a library was loaded since the last time, since every call that computes asks.
    pub(super) fn search() -> Search {
        static IN_VAIN: AtomicU64 = AtomicU64::new(0);
        let mut search = Search { in_vain: IN_VAIN.load(Ordering::Relaxed), ..Search::default() };
        // SAFETY: `data` is the address of `search`, and `is_torch` is called by this call alone.
        unsafe { libc::dl_iterate_phdr(Some(is_torch), (&raw mut search).cast()) };
        if search.path.is_none() {
            IN_VAIN.store(search.loaded, Ordering::Relaxed);
        }
        search
    }

    /// Keeps the path of the library that is looked for, and then says that it is enough.
    ///
    /// # Safety
    /// As `dl_iterate_phdr` calls it, with the address of a `Search` in `data`.
    unsafe extern "C" fn is_torch(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
        // SAFETY: the caller's promise; a name ends with a zero, and lives as long as this call.
        let (search, info) = unsafe { (&mut *data.cast::<Search>(), &*info) };
        (search.loaded, search.visited) = (info.dlpi_adds, search.visited + 1);
        if search.loaded == search.in_vain {
            return 1;
        }
        let name = info.dlpi_name;
        if name.is_null() {
            return 0;
        }
        // SAFETY: as above.
        let name = unsafe { CStr::from_ptr(name) };
        let file = name.to_bytes().rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if !file.starts_with(b"libtorch_cpu.so") {
            return 0;
        }
        search.path = Some(name.to_owned());
        1
    }

    /// Calls `work` on so many threads of OpenMP's; on the calling one alone where that is one of them already.
    pub(super) fn run(threads: usize, work: Work<'_>) {
        let Some(parallel) = of_torch() else { return work() };
        // SAFETY: `data` is the address of `work`, which outlives the call: it returns when all threads have returned.
        unsafe { parallel(enter, (&raw const work).cast_mut().cast(), threads as c_uint, 0) }
    }

    /// # Safety
    /// `data` is the address of a `Work`.
    unsafe extern "C" fn enter(data: *mut c_void) {
        // SAFETY: the caller's promise.
        let work: Work<'_> = unsafe { *data.cast() };
        work();
    }
}

#[cfg(not(target_os = "linux"))]
mod entry {
    /// Nothing is known of how to find it here.
    pub(super) fn of_torch() -> Option<()> {
        None
    }

    pub(super) fn run(_: usize, work: &(dyn Fn() + Sync)) {
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_no_team_where_there_is_no_pytorch() {
        assert!(team(4).is_none());
        let ran = std::sync::atomic::AtomicUsize::new(0);
        entry::run(4, &|| {
            ran.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 1);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn nothing_is_looked_for_twice_while_no_library_was_loaded() {
        entry::search();
        assert_eq!(entry::search().visited, 1);
    }
}
