//! The bytes of a file that has no name yet.

use super::place::Regular;
use std::fs::{self, File, Permissions};
use std::io;
use std::path::Path;
use tempfile::NamedTempFile;

/// Of temporary names. Short, and nothing of the file's own name in it, which may be as long as names can be.
const PREFIX: &str = ".signflash.";
const SUFFIX: &str = ".partial";

/// A file on its way.
#[derive(Debug)]
pub(super) enum Draft {
    /// Without a name: it vanishes with the process, whatever ends that.
    #[cfg(target_os = "linux")]
    Nameless(File),
    /// Under a temporary name, where file systems know no nameless files.
    Named(Named),
}

impl Draft {
    /// A draft of the file at `place`, in its directory, with the permissions that the file will have.
    pub(super) fn beside(place: &Regular) -> io::Result<Self> {
        #[cfg(target_os = "linux")]
        if let Some(file) = nameless(place) {
            inherit(&file, place)?;
            return Ok(Self::Nameless(file));
        }
        named(place).map(Self::Named)
    }

    /// The file, to write to.
    pub(super) fn file(&mut self) -> &mut File {
        match self {
            #[cfg(target_os = "linux")]
            Self::Nameless(file) => file,
            Self::Named(named) => named.0.as_file_mut(),
        }
    }

    /// Gives it the name of `place`.
    pub(super) fn publish(self, place: &Regular) -> io::Result<()> {
        match self {
            #[cfg(target_os = "linux")]
            Self::Nameless(file) => {
                if place.older.is_none() {
                    match link(&file, &place.path) {
                        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                        done => return done,
                    }
                }
                // A link cannot take another file's place, but a name can: for a moment it has one of its own.
                let mut builder = tempfile::Builder::new();
                builder.prefix(PREFIX).suffix(SUFFIX);
                let named = Named::new(|| builder.make_in(place.directory(), |path| link(&file, path)))
                    .map_err(plain)?;
                named.rename(&place.path)
            }
            Self::Named(named) => named.rename(&place.path),
        }
    }
}

/// A file with a temporary name, which a signal that ends the process removes.
#[derive(Debug)]
pub(super) struct Named<F = File>(NamedTempFile<F>);

impl<F> Named<F> {
    fn new(create: impl FnOnce() -> io::Result<NamedTempFile<F>>) -> io::Result<Self> {
        #[cfg(unix)]
        let made = super::interrupt::guarded(create, |file| file.path());
        #[cfg(not(unix))]
        let made = create();
        made.map(Self)
    }

    fn rename(self, path: &Path) -> io::Result<()> {
        #[cfg(unix)]
        let temporary = self.0.path().to_path_buf();
        let renamed = self.0.persist(path).map(drop).map_err(|error| error.error);
        #[cfg(unix)]
        super::interrupt::release(&temporary);
        renamed
    }
}

/// A file under a temporary name in the place's directory.
fn named(place: &Regular) -> io::Result<Named> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    if place.older.is_none() {
        use std::os::unix::fs::PermissionsExt;
        // As any program creates a file: the umask takes its share. The default is 0600, meant for secrets.
        builder.permissions(Permissions::from_mode(0o666));
    }
    let named = Named::new(|| builder.tempfile_in(place.directory())).map_err(plain)?;
    inherit(named.0.as_file(), place)?;
    Ok(named)
}

/// A nameless file in the place's directory, if its file system knows such files and can name them later.
#[cfg(target_os = "linux")]
fn nameless(place: &Regular) -> Option<File> {
    use rustix::fs::{Mode, OFlags};
    let mode = if place.older.is_some() { 0o600 } else { 0o666 };
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let file: File = rustix::fs::open(place.directory(), flags, Mode::from_raw_mode(mode)).ok()?.into();
    fs::metadata(by_descriptor(&file)).is_ok().then_some(file)
}

/// The name that /proc gives a file of this process.
#[cfg(target_os = "linux")]
fn by_descriptor(file: &File) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

#[cfg(target_os = "linux")]
fn link(file: &File, path: &Path) -> io::Result<()> {
    use rustix::fs::{AtFlags, CWD};
    Ok(rustix::fs::linkat(CWD, by_descriptor(file), CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

/// Owner and permissions of the older file: what was private stays private.
fn inherit(file: &File, place: &Regular) -> io::Result<()> {
    let Some(older) = &place.older else { return Ok(()) };
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
        let own = file.metadata()?;
        if (own.uid(), own.gid()) != (older.uid(), older.gid()) {
            // Only root may give files away; anybody else keeps what they write.
            let _ = fchown(file, Some(older.uid()), Some(older.gid()));
        }
        file.set_permissions(Permissions::from_mode(older.permissions().mode() & 0o7777))
    }
    #[cfg(not(unix))]
    file.set_permissions(older.permissions())
}

/// tempfile's error names the temporary file; only the cause is of interest.
fn plain(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::NotFound => {
            io::Error::new(error.kind(), "its directory does not exist, create it first")
        }
        kind => kind.into(),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::output::place::{self, Place};
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    const DIRECTORY: &str = "SIGNFLASH_TEST_DRAFTS";

    fn regular(path: &Path) -> Regular {
        match place::find(path).unwrap() {
            Place::Regular(place) => place,
            Place::Device(_) => panic!("{} is no file", path.display()),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// What file systems without nameless files get.
    #[test]
    fn a_named_draft_takes_the_place_and_the_permissions_of_the_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.npz");
        for bits in [None, Some(0o600), Some(0o644)] {
            if let Some(bits) = bits {
                fs::write(&path, "older").unwrap();
                fs::set_permissions(&path, Permissions::from_mode(bits)).unwrap();
            }
            let place = regular(&path);
            let mut draft = Draft::Named(named(&place).unwrap());
            draft.file().write_all(b"new").unwrap();
            draft.publish(&place).unwrap();
            assert_eq!(
                (names(dir.path()), fs::read(&path).unwrap()),
                (vec!["out.npz".into()], b"new".to_vec())
            );
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
            assert!(bits.is_none_or(|bits| mode == bits), "{mode:o}");
        }
    }

    #[test]
    fn a_named_draft_goes_with_the_process_that_a_signal_ends() {
        for (signal, number, ignored) in
            [("TERM", 15, false), ("INT", 2, false), ("HUP", 1, false), ("HUP", 9, true)]
        {
            if super::super::interrupt::ignored() >> (number - 1) & 1 == 1 {
                continue; // of the test program, as in the background of a script: then of its children, too
            }
            let dir = tempfile::tempdir().unwrap();
            // This very test program, in which only the waiting below runs.
            let program = std::env::current_exe().unwrap();
            let script = if ignored { "trap '' HUP; exec \"$0\" \"$@\"" } else { "exec \"$0\" \"$@\"" };
            let mut child = Command::new("sh")
                .args(["-c", script])
                .arg(program)
                .args(["--ignored", "--exact", "output::draft::tests::waits_with_a_named_draft"])
                .env(DIRECTORY, dir.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap();
            let start = Instant::now();
            while names(dir.path()).is_empty() && start.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let kill =
                |signal: &str| Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
            assert!(kill(signal).unwrap().success());
            if ignored {
                std::thread::sleep(Duration::from_millis(100));
                assert_eq!(names(dir.path()).len(), 1, "a signal that is ignored ended it");
                assert!(kill("KILL").unwrap().success());
            }
            assert_eq!(child.wait().unwrap().signal(), Some(number), "{signal}");
            assert!(ignored || names(dir.path()).is_empty(), "{signal}: {:?}", names(dir.path()));
        }
    }

    #[test]
    #[ignore = "a helper of the test above, which starts it"]
    fn waits_with_a_named_draft() {
        let Some(directory) = std::env::var_os(DIRECTORY) else { return };
        let _draft = named(&regular(&Path::new(&directory).join("out.npz"))).unwrap();
        std::thread::sleep(Duration::from_secs(30));
    }
}
