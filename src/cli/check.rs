//! `check` and `health`.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Ended;
use super::args::{Check, Health};
use super::context::Context;
use super::output::{Color, Output};
use super::source;
use crate::config::{ClusterConfig, Config};
use crate::daemon::check::{Finding, findings};
use crate::daemon::http::check_document;
use crate::daemon::probe::{self, Probes};
use crate::daemon::status::counted;
use crate::daemon::{deep, open};
use crate::error::{Error, ErrorCode, Result};

/// Exit codes of a plugin for Nagios.
const NAGIOS: [(u8, &str); 4] = [(0, "OK"), (1, "WARNING"), (2, "CRITICAL"), (3, "UNKNOWN")];

pub(super) async fn run(context: &Context, args: &Check) -> Ended {
    let found = look(context, args).await;
    if args.nagios {
        return Ok(nagios(&context.output, found));
    }
    let document = found?;
    let failed = count(&document, "failed");
    let warned = count(&document, "warn");
    if context.output.json {
        context.output.document(&document);
    } else {
        screen(&context.output, &document);
    }
    Ok(match (failed, warned) {
        (1.., _) => ErrorCode::CheckFailed.exit_code(),
        (0, 1..) if args.strict => ErrorCode::CheckWarned.exit_code(),
        _ => 0,
    })
}

/// The document of `check`, from the daemon or by ourselves.
async fn look(context: &Context, args: &Check) -> Result<Value> {
    let config = context.config()?;
    let clusters = context.clusters(&config, &args.of)?;
    let Some(daemon) = source::daemon(&config).await? else {
        let mut all = BTreeMap::new();
        for cluster in &clusters {
            all.insert(cluster.name.clone(), by_ourselves(context, &config, cluster, args.deep).await?);
        }
        return Ok(check_document(&all));
    };
    let mut documents = Vec::new();
    for cluster in &clusters {
        let name = source::query(&cluster.name);
        let mut document = daemon.get(&format!("/api/v1/check?cluster={name}")).await?;
        let mut of_cluster = document["clusters"][0].take();
        if args.deep {
            let finding =
                daemon.post(&format!("/api/v1/check/deep?cluster={name}"), &Value::Object(Default::default())).await?;
            if finding["status"] == "failed" {
                of_cluster["status"] = finding["status"].clone();
            }
            if let Some(checks) = of_cluster["checks"].as_array_mut() {
                checks.push(finding);
            }
        }
        documents.push(of_cluster);
    }
    Ok(serde_json::json!({ "clusters": documents }))
}

async fn by_ourselves(
    context: &Context,
    config: &Config,
    cluster: &ClusterConfig,
    wants_deep: bool,
) -> Result<Vec<Finding>> {
    let connect = open::connect_options(config, cluster)?;
    let view = source::view(context, config, cluster);
    let repository = async {
        match source::repository(context, config).await {
            Ok(repository) => probe::repository(&repository, &context.clock).await,
            Err(error) => Err(error),
        }
    };
    let data_directory = probe::data_directory(cluster.data_directory.as_deref(), &connect);
    let (view, replication, data_directory, repository) =
        tokio::join!(view, probe::replication(&connect), data_directory, repository);
    let probes = Probes { replication, data_directory, repository: Some(repository) };
    let mut found = findings(&view?, &probes, context.clock.now());
    if wants_deep {
        let cluster = source::cluster_repository(context, config, cluster).await?;
        found.push(deep::check(&connect, &cluster, &context.clock).await);
    }
    Ok(found)
}

fn checks(document: &Value) -> impl Iterator<Item = (&str, &Value)> {
    document["clusters"].as_array().into_iter().flatten().flat_map(|cluster| {
        let name = cluster["name"].as_str().unwrap_or_default();
        cluster["checks"].as_array().into_iter().flatten().map(move |check| (name, check))
    })
}

fn count(document: &Value, status: &str) -> usize {
    checks(document).filter(|(_, check)| check["status"] == status).count()
}

fn screen(output: &Output, document: &Value) {
    let mut last = "";
    let names = checks(document).filter_map(|(_, check)| check["name"].as_str());
    let width = names.map(str::len).max().unwrap_or_default();
    for (cluster, check) in checks(document) {
        if cluster != last {
            output.text(cluster);
            last = cluster;
        }
        let (word, color) = match check["status"].as_str() {
            Some("ok") => ("OK", Color::Green),
            Some("warn") => ("WARN", Color::Yellow),
            Some("failed") => ("FAILED", Color::Red),
            _ => ("-", Color::Green),
        };
        let name = check["name"].as_str().unwrap_or_default();
        let message = check["message"].as_str().unwrap_or_default();
        output.text(&format!("  {} {name:<width$}  {message}", output.paint(color, &format!("{word:<7}"))));
        if let Some(fix) = check["fix"].as_str().filter(|_| matches!(word, "WARN" | "FAILED")) {
            output.text(&format!("          fix:  {fix}"));
        }
    }
    output.text(&format!(
        "{} failed, {}, {} ok",
        count(document, "failed"),
        counted(count(document, "warn") as u64, "warning"),
        count(document, "ok")
    ));
}

/// One line, and 0, 1, 2 or 3; what cannot be looked at is UNKNOWN.
fn nagios(output: &Output, found: Result<Value>) -> u8 {
    let (kind, message) = match &found {
        Err(error) => (3, error.message().to_owned()),
        Ok(document) => {
            let bad: Vec<String> = ["failed", "warn"]
                .iter()
                .flat_map(|status| checks(document).filter(move |(_, check)| check["status"] == *status))
                .map(|(cluster, check)| {
                    format!(
                        "{cluster} {}: {}",
                        check["name"].as_str().unwrap_or_default(),
                        check["message"].as_str().unwrap_or_default()
                    )
                })
                .collect();
            let kind = if count(document, "failed") > 0 {
                2
            } else if count(document, "warn") > 0 {
                1
            } else {
                0
            };
            (kind, if bad.is_empty() { format!("{} checks ok", count(document, "ok")) } else { bad.join("; ") })
        }
    };
    let perfdata = found.ok().map_or_else(String::new, |document| {
        format!(
            " | failed={} warnings={} ok={}",
            count(&document, "failed"),
            count(&document, "warn"),
            count(&document, "ok")
        )
    });
    let (code, word) = NAGIOS[kind];
    output.text(&format!("PGVAULT {word} - {}{perfdata}", message.replace(['\n', '|'], " ")));
    code
}

/// `health`: for container probes; quick, from what the daemon knows.
pub(super) async fn health(context: &Context, args: &Health) -> Ended {
    let config = context.config()?;
    let Some(daemon) = source::daemon(&config).await? else {
        return Err(Error::new(ErrorCode::CheckFailed, format!("no daemon serves {}", config.state_dir.display()))
            .help("pgvault serve"));
    };
    let path = match (args.ready, args.strict) {
        (true, _) => "/readyz",
        (false, true) => "/healthz",
        (false, false) => "/livez",
    };
    let (status, body) = daemon.status(path).await?;
    let well = status == 200;
    let document = serde_json::from_str(&body).unwrap_or_else(|_| serde_json::json!({ "ok": well }));
    match path {
        _ if context.output.json => context.output.document(&document),
        "/healthz" => screen(&context.output, &document),
        "/readyz" if well => context.output.text("ready"),
        "/readyz" if document["spool_writable"] == false => {
            context.output.text("not ready: the spool cannot be written")
        }
        "/readyz" => context.output.text("not ready: no cluster is configured"),
        _ => context.output.text(body.trim_end()),
    }
    if well { Ok(0) } else { Ok(ErrorCode::CheckFailed.exit_code()) }
}
