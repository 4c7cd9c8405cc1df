//! A sink that takes anything once it has failed.
//!
//! A `ZipWriter` tries to end its archive when it is dropped, and says on stderr that it could not; who wrote knows
//! that already. So after the first error this sink only pretends: it counts where a file would be, and keeps the
//! error.

use std::io::{self, Seek, SeekFrom, Write};

pub(super) struct Latch<'a, W> {
    sink: &'a mut W,
    failed: Option<io::Error>,
    position: u64,
    end: u64,
}

impl<'a, W> Latch<'a, W> {
    pub(super) fn new(sink: &'a mut W) -> Self {
        Self { sink, failed: None, position: 0, end: 0 }
    }

    /// The first error, if there was one.
    pub(super) fn into_error(self) -> Option<io::Error> {
        self.failed
    }

    fn attempt<T>(&mut self, act: impl FnOnce(&mut W) -> io::Result<T>) -> Option<io::Result<T>> {
        if self.failed.is_some() {
            return None;
        }
        Some(act(self.sink).map_err(|error| {
            let kind = error.kind();
            if kind != io::ErrorKind::Interrupted {
                self.failed = Some(error);
            }
            kind.into()
        }))
    }

    fn moved<T>(&mut self, position: u64, result: T) -> io::Result<T> {
        self.position = position;
        self.end = self.end.max(position);
        Ok(result)
    }
}

impl<W: Write> Write for Latch<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.attempt(|sink| sink.write(bytes)).unwrap_or(Ok(bytes.len()))?;
        self.moved(self.position + written as u64, written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.attempt(W::flush).unwrap_or(Ok(()))
    }
}

impl<W: Seek> Seek for Latch<'_, W> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let pretended = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
            SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        let pretended = pretended.ok_or(io::Error::from(io::ErrorKind::InvalidInput));
        let position = self.attempt(|sink| sink.seek(to)).unwrap_or(pretended)?;
        self.moved(position, position)
    }
}
