//! (to be built)

pub mod tar;
