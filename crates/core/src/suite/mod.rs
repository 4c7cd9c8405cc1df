//! The suite of named cases that every implementation runs.
