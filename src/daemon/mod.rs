//! The daemon: one supervisor per cluster, a schedule, metrics, HTTP, signals. One broken cluster never stops the others.

pub mod check;
pub mod members;
pub mod metrics;
pub mod notify;
pub mod open;
pub mod probe;
pub mod schedule;
pub mod signals;
pub mod state_dir;
pub mod status;
pub mod view;
