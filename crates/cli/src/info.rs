//! `signflash info`.

use crate::cli::VERSION;
use crate::errors::Error;
use crate::{machine, memory};
use signflash_cpu::Isa;
use std::io::Write;

/// Prints what this machine offers.
///
/// # Errors
/// [`Error::Stdout`].
pub fn run(stdout: &mut dyn Write) -> Result<(), Error> {
    let names = |all: &[Isa]| all.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
    let memory = memory::available().map_or_else(|| "unknown".to_string(), memory::readable);
    let lines = [
        ("version", VERSION.to_string()),
        ("cpu", machine::cpu_model()),
        ("threads", machine::cores().to_string()),
        ("memory", format!("{memory} available")),
        ("isa", format!("{} (chosen; --isa picks another)", Isa::best())),
        ("available", names(&Isa::available())),
        ("built in", names(&Isa::ALL)),
        ("devices", machine::DEVICES.join(", ")),
    ];
    for (name, value) in lines {
        writeln!(stdout, "{name:<10} {value}").map_err(Error::Stdout)?;
    }
    Ok(())
}
