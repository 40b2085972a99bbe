//! (to be built)

pub mod chunk_reader;
pub mod file_table;
pub mod manifest;
pub mod pack;
