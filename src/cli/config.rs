//! `config check|show|init`.

use serde_json::json;

use super::Ended;
use super::context::Context;
use crate::config;
use crate::daemon::open;

pub(super) fn check(context: &Context) -> Ended {
    let config = context.config()?;
    for cluster in &config.clusters {
        open::conninfo(&config, cluster)?;
    }
    let without_effect = config.without_effect();
    let output = &context.output;
    if output.json {
        let clusters: Vec<&str> = config.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        output.document(
            &json!({ "ok": true, "files": config.files, "clusters": clusters, "without_effect": without_effect }),
        );
        return Ok(0);
    }
    for line in &without_effect {
        output.note(&format!("note: {line}"));
    }
    if config.clusters.is_empty() {
        output.note("note: no cluster is configured: set [cluster.main] conninfo, or PGHOST");
    }
    let files: Vec<String> = config.files.iter().map(|file| file.display().to_string()).collect();
    let from = if files.is_empty() { "no file, environment only".to_owned() } else { files.join(", ") };
    output.text(&format!("configuration ok ({from})"));
    Ok(0)
}

pub(super) fn show(context: &Context) -> Ended {
    let config = context.config()?;
    let shown = config::show(&config);
    if context.output.json {
        context.output.document(&json!({ "files": config.files, "settings": shown }));
        return Ok(0);
    }
    let rows =
        shown.into_iter().map(|row| vec![format!("{}.{}", row.section, row.key), row.value, row.source]).collect();
    context.output.table(&["KEY", "VALUE", "SOURCE"], rows);
    Ok(0)
}

pub(super) fn init(context: &Context) -> Ended {
    context.output.text(config::template().trim_end());
    Ok(0)
}
