//! `completions`, `man`, `version`.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use serde_json::json;

use super::Ended;
use super::args::Cli;
use super::context::Context;
use crate::error::{Error, ErrorCode};

pub(super) fn completions(context: &Context, shell: clap_complete::Shell) -> Ended {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgvault", &mut script);
    context.output.text(String::from_utf8_lossy(&script).trim_end());
    Ok(0)
}

pub(super) fn man(context: &Context, dir: &Path) -> Ended {
    let cannot = |error: &std::io::Error| {
        Error::new(ErrorCode::Unclassified, format!("cannot write man pages to {}", dir.display()))
            .because(error)
            .help(format!("mkdir -p {}", dir.display()))
    };
    fs::create_dir_all(dir).map_err(|error| cannot(&error))?;
    clap_mangen::generate_to(Cli::command(), dir).map_err(|error| cannot(&error))?;
    context.output.note(&format!("man pages written to {}", dir.display()));
    Ok(0)
}

pub(super) fn version(context: &Context) -> Ended {
    let version = env!("CARGO_PKG_VERSION");
    if context.output.json {
        context
            .output
            .document(&json!({ "name": "pgvault", "version": version, "repository_format": 1, "postgresql": "14-18" }));
    } else {
        context.output.text(&format!("pgvault {version}"));
    }
    Ok(0)
}
