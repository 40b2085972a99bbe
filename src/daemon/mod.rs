//! The daemon: one supervisor per cluster, a schedule, metrics, HTTP, signals. One broken cluster never stops the others.

pub mod notify;
pub mod open;
pub mod schedule;
pub mod signals;
pub mod state_dir;
