//! The `signflash` command: exact attention with sign-bit dropout on files, pictures of it, and its benchmark.
//!
//! [`main`] is the whole program. The readers of [`files`] are public for tests and fuzzing: they must survive any
//! input.
#![deny(unsafe_code)] // one room implements an allocator: memory/allocator.rs

pub mod args;
pub mod attend;
pub mod bench;

pub mod compute;
pub mod dropout_mask;
pub mod engine;
pub mod errors;
pub mod files;
pub mod info;
pub mod input;
pub mod joined;
pub mod kernels;
pub mod machine;
pub mod memory;
pub mod output;
pub mod packed;
pub mod plot;
pub mod progress;
pub mod sequences;
pub mod settings;
pub mod table;
pub mod text;
pub mod verify;

pub use errors::Error;

use args::{Cli, Command};
use clap::Parser;
use clap::error::ErrorKind;
use std::io::{self, Write};
use std::process::ExitCode;

/// Parses the command line, runs the command, reports at most one line of error.
pub fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| complain(&format!("internal error, please report it: {panic}"))));
    #[cfg(unix)]
    output::survive_file_size_limits();
    // What libraries have to say: warnings, as `signflash: warning: ...`; with SIGNFLASH_LOG=info also which kernels
    // are used.
    env_logger::Builder::new()
        .filter_level(log::LevelFilter::Warn)
        .parse_env("SIGNFLASH_LOG")
        .format(|out, record| {
            let level = record.level().as_str().to_lowercase();
            let level = if level == "warn" { "warning" } else { &level };
            writeln!(out, "signflash: {level}: {}", text::line(&record.args().to_string()))
        })
        .init();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return usage(&refused),
    };
    match std::panic::catch_unwind(|| run(cli)) {
        Ok(done) => report(done),
        Err(_) => ExitCode::from(101),
    }
}

fn run(cli: Cli) -> Result<(), Error> {
    let mut stdout = io::stdout().lock();
    match cli.command {
        Command::Attend(args) => attend::run(&args, cli.quiet, &mut stdout),
        Command::DropoutMask(args) => dropout_mask::run(&args, cli.quiet, &mut stdout),
        Command::Plot(args) => plot::run(&args, cli.quiet, &mut stdout),
        Command::Bench(args) => bench::run(&args, cli.quiet, &mut stdout),
        Command::Info(args) => info::run(&args, &mut stdout),
        Command::Kernels(args) => kernels::run(&args, &mut stdout),
    }?;
    stdout.flush().map_err(Error::Stdout)
}

/// A reader that went away (`signflash ... | head`) is no failure: commands print when their work is done.
fn report(done: Result<(), Error>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_closed_pipe() => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error.to_string());
            ExitCode::from(error.exit_code())
        }
    }
}

/// clap's several lines as one, except where they are what was asked for.
fn usage(refused: &clap::Error) -> ExitCode {
    match refused.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let mut stdout = io::stdout().lock();
            report(write!(stdout, "{refused}").and_then(|()| stdout.flush()).map_err(Error::Stdout))
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(io::stderr(), "{refused}");
            ExitCode::from(2)
        }
        _ => {
            complain(&one_line(&refused.to_string()));
            ExitCode::from(2)
        }
    }
}

/// `error: A\n\n  tip: B\n\nUsage: ...` becomes `A; tip: B; see --help`.
fn one_line(text: &str) -> String {
    let body = text.trim_start_matches("error: ").split("\nUsage:").next().unwrap_or(text);
    let lines = body.lines().map(str::trim).filter(|line| !line.is_empty());
    let kept: Vec<&str> = lines.filter(|line| !line.starts_with("For more information")).collect();
    format!("{}; see --help", kept.join(" "))
}

fn complain(message: &str) {
    // If even stderr is closed there is nobody left to tell.
    let _ = writeln!(io::stderr(), "signflash: error: {}", text::line(message));
}
