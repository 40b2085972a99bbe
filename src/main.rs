//! The `pgvault` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgvault::cli::main()
}
