//! What Patroni's REST API tells of a cluster's members: a hint where to look, never a reason to believe. Whoever is followed
//! is asked by PostgreSQL's own protocol first.

mod address;
mod answer;
mod client;
mod topology;
mod watch;

pub use address::{InvalidUrl, PatroniUrl};
pub use answer::{AnswerError, read, read_slot_rules};
pub use client::{Client, ClientError};
pub use topology::{KnownMember, Role, SlotOwner, SlotRules, Topology};
pub use watch::{ask_once, keep_asking};
