//! `key init|rotate|list`.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use secrecy::ExposeSecret;
use serde_json::json;
use wal::PgTime;

use super::Ended;
use super::context::Context;
use crate::daemon::open;
use crate::durable::{PRIVATE_FILE, sync_parent};
use crate::error::{Error, ErrorCode, Result};
use crate::repository::keys::{self, GenerationInfo, Identity, new_identity};

/// Makes an identity. It touches no repository.
pub(super) fn init(context: &Context, file: Option<PathBuf>) -> Ended {
    let path = match file {
        Some(file) => file,
        None => {
            let config = context.config()?;
            config.repository.identity.file.clone().unwrap_or_else(|| config.state_dir.join("identity.txt"))
        }
    };
    let identity = new_identity();
    write(&path, &identity, PgTime::from(context.clock.now())).map_err(|error| {
        let help = if error.kind() == io::ErrorKind::AlreadyExists {
            "an identity is never overwritten: name another file, as in pgvault key init /path/identity.txt"
        } else {
            "name another file: pgvault key init /path/identity.txt"
        };
        Error::new(ErrorCode::Refused, format!("no identity was made: {}", path.display())).because(error).help(help)
    })?;
    let recipient = identity.recipient().to_string();
    let shown = path.display().to_string();
    if context.output.json {
        context.output.document(&json!({ "recipient": recipient, "identity_file": shown }));
        return Ok(0);
    }
    context.output.text(&recipient);
    for line in [
        format!("its identity is in {shown}, readable by this user alone"),
        "keep a copy of that file away from this machine and away from the repository: whoever loses it loses every backup,"
            .to_owned(),
        "and whoever has it can read them all".to_owned(),
        "to encrypt, in the configuration:".to_owned(),
        format!("  [repository]  encryption = [\"{recipient}\"]  identity_file = \"{shown}\""),
    ] {
        context.output.note(&line);
    }
    Ok(0)
}

/// In the form of `age-keygen`, so that the `age` command reads it.
fn write(path: &Path, identity: &Identity, now: PgTime) -> io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(PRIVATE_FILE).open(path)?;
    writeln!(file, "# created: {now}")?;
    writeln!(file, "# public key: {}", identity.recipient())?;
    file.write_all(identity.secret().expose_secret().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    sync_parent(path)
}

/// Adds a generation to the key ring.
pub(super) async fn rotate(context: &Context) -> Ended {
    let config = context.config()?;
    let objects = open::key_ring(&config, &context.clock).await?;
    let options = open::encryption(&config)?;
    let recipients: Vec<String> = options.recipients.iter().map(ToString::to_string).collect();
    let generation = keys::rotate(&objects, &options, PgTime::from(context.clock.now())).await.map_err(Error::from)?;
    if context.output.json {
        context.output.document(&json!({ "generation": generation, "recipients": recipients }));
        return Ok(0);
    }
    context.output.text(&format!("generation {generation} is for {}", recipients.join(", ")));
    context.output.note("a running daemon uses it from its next backup on, at once after: systemctl reload pgvault");
    context.output.note("what was stored before keeps its keys: whoever could read that still can");
    Ok(0)
}

/// Shows the key ring; needs no identity.
pub(super) async fn list(context: &Context) -> Ended {
    let config = context.config()?;
    let objects = open::key_ring(&config, &context.clock).await?;
    let generations = keys::list(&objects, &open::encryption(&config)?).await.map_err(Error::from)?;
    if context.output.json {
        let all: Vec<_> = generations.iter().map(document).collect::<Result<_>>()?;
        context.output.document(&json!({ "generations": all }));
        return Ok(0);
    }
    if generations.is_empty() {
        context.output.text("the repository is not encrypted: it has no key ring");
        return Ok(0);
    }
    let row = |info: &GenerationInfo| {
        let opens = if info.opens { "yes" } else { "no" };
        let document = &info.document;
        vec![
            document.generation.to_string(),
            document.created_at.to_string(),
            opens.to_owned(),
            document.recipients.join("\n"),
        ]
    };
    context.output.table(&["GENERATION", "MADE", "OPENS", "RECIPIENTS"], generations.iter().map(row).collect());
    Ok(0)
}

fn document(info: &GenerationInfo) -> Result<serde_json::Value> {
    Ok(json!({
        "generation": info.document.generation,
        "created_at": super::window::to_value(&info.document.created_at)?,
        "recipients": info.document.recipients,
        "opens": info.opens,
    }))
}
