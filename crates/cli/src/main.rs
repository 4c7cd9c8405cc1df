//! The `signflash` command; see the library part for everything.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    signflash_cli::main()
}
