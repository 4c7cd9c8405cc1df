//! The language, its interpreter and what it detects, room by room:
//! `cargo test -p signflash-ptx --test all orderings::` runs one.

mod assemble;
mod defects;
mod mutations;
mod orderings;
mod probes;
mod rules;
mod text;
mod tutorial;
