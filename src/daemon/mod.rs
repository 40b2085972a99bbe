//! The daemon: one supervisor per cluster, a schedule, metrics, HTTP, signals. One broken cluster never stops the others.

pub mod backup_run;
pub mod backups;
pub mod check;
pub mod cluster;
pub mod control;
pub mod deep;
pub mod gaps;
pub mod http;
pub mod members;
pub mod metrics;
pub mod notify;
pub mod open;
mod pipeline_thread;
pub mod probe;
pub mod schedule;
pub mod serve;
pub mod signals;
pub mod slots;
pub mod state_dir;
pub mod status;
pub mod stored;
pub mod supervisor;
pub mod verified;
pub mod view;
pub mod window;
