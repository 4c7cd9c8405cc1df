//! What the engines have to say (a call that does without the GPU's own kernels, a disk that cannot be written) goes to
//! Python's `logging`, to the logger `signflash`.

use log::{LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

struct ToPython;

impl Log for ToPython {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("signflash") && metadata.level() <= log::Level::Warn
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        // A message that cannot be told (the interpreter is ending) is lost; it was only a warning.
        let _ = Python::try_attach(|py| -> PyResult<()> {
            let logger = py.import("logging")?.call_method1("getLogger", ("signflash",))?;
            logger.call_method1("warning", (message,))?;
            Ok(())
        });
    }

    fn flush(&self) {}
}

/// Once a process; a second call changes nothing.
pub(crate) fn install() {
    if log::set_logger(&ToPython).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}
