//! (to be built)

pub mod file_table;
pub mod manifest;
pub mod pack;
