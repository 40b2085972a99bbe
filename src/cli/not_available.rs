//! Commands that the interface promises and this version does not have.

use super::Ended;
use crate::error::{Error, ErrorCode};

/// Refuses; nothing is pretended.
pub(super) fn command(name: &str) -> Ended {
    Err(error(name))
}

/// The refusal, for flags too.
pub(super) fn error(name: &str) -> Error {
    Error::new(ErrorCode::NotAvailable, format!("`{name}` is not available in this version"))
        .because("nothing was done")
        .help("pgvault --help lists what there is")
}
