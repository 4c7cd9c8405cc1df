//! What core promises, room by room: `cargo test -p signflash-core --test all oracle::` runs one.

mod codec;
mod dropout;
mod dropout_statistics;
mod errors;
mod generator;
mod oracle;
mod oracle_entries;
mod scores;
mod vectors;
