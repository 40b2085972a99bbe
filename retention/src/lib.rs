//! What may be forgotten.
//!
//! This crate is pure: from a [`recovery::Catalog`], a [`Policy`] and the time, [`decide`] gives a [`Verdict`] on every
//! backup, with its reasons, and [`plan`] says what deleting the obsolete ones sets free, WAL included; [`may_delete`] judges
//! a backup that a person wants to delete. It names no object and deletes nothing.
//!
//! Retention is defined through recovery: WAL goes only when no kept backup can be replayed through it. When in doubt,
//! everything stays: a rule that is given keeps what it needs whatever other rules say, and backups that cannot be restored
//! cleanly never count towards a rule.

mod by_hand;
mod calendar;
mod decide;
mod expire;
mod policy;
mod verdict;

pub use by_hand::{DeleteRefused, LostMoments, lost_without, may_delete};
pub use calendar::Period;
pub use decide::decide;
pub use expire::{ExpirePlan, WalKeepFrom, plan};
pub use policy::Policy;
pub use verdict::{Reason, Verdict, hold};

#[cfg(test)]
mod tests;
