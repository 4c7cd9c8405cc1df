//! Whether what lies on disk is ours alone. What is loaded from there runs on the GPU as if we had compiled it, and a
//! checksum that anybody can compute keeps nobody out: owners and modes do.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::path::Path;

/// Makes a directory, and those above it, for this user alone. One that is there stays as it is.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(path)
}

/// Opens a file for reading. It neither follows a symbolic link nor waits for the other end of a pipe: whoever can put
/// such a thing in our way must not hold us up.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    {
        use rustix::fs::OFlags;
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags.bits() as i32);
    }
    options.read(true).open(path)
}

/// Whether opening failed because a symbolic link was not followed.
pub(super) fn is_link(error: &io::Error) -> bool {
    #[cfg(unix)]
    return error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error());
    #[cfg(not(unix))]
    return false;
}

/// Why somebody else could have written what this is about, or nothing.
#[cfg(unix)]
pub(super) fn distrusted(metadata: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let (owner, me, mode) = (metadata.uid(), rustix::process::geteuid().as_raw(), metadata.mode() & 0o7777);
    if owner != me {
        return Some(format!("it belongs to user {owner}, and this process is user {me}'s"));
    }
    (mode & 0o022 != 0).then(|| format!("others than its owner may write it (mode {mode:o})"))
}

/// Other systems have neither owners nor modes that the standard library knows.
#[cfg(not(unix))]
pub(super) fn distrusted(_: &Metadata) -> Option<String> {
    None
}
