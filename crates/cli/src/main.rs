//! The `signflash` command.
fn main() {}
