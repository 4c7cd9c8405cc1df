//! The command, run as its users run it. One program for all, since each takes seconds to build:
//! `cargo test -p signflash-cli --test all verify::` runs one room.

mod common;
#[path = "common/survive.rs"]
mod survive;

mod attend;
mod bench;
mod dropout_mask;
mod errors;
mod gpu;
mod outputs;
mod packed;
mod plot;
mod readers;
mod scores;
mod settings;
mod starved;
mod verify;
mod windows;
