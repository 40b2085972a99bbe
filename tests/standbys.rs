//! Is a standby made and brought back from the repository alone, and does it follow its primary?

mod create;
mod refresh;
mod refused;
mod stage;
