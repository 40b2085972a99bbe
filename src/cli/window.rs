//! `window`: to which moments one can go back.

use serde_json::Value;
use wal::PgTime;

use super::Ended;
use super::args::Window;
use super::context::Context;
use super::output::{Color, Output};
use super::source;
use super::status::shown;
use crate::daemon::{http, stored, window};
use crate::error::{Error, ErrorCode, Result};

pub(super) async fn run(context: &Context, args: &Window) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, &args.of)?;
    // Read here, so that a wrong time is a usage error wherever the answer comes from.
    let at = args.at.as_deref().map(|text| http::moment(text, PgTime::from(context.clock.now()))).transpose()?;
    let document = match source::daemon_if_allowed(&config).await {
        Some(daemon) => {
            let at = at.map_or_else(String::new, |time| format!("&at={}", source::query(&time.to_string())));
            daemon.get(&format!("/api/v1/window?cluster={}{at}", source::query(&cluster.name))).await?
        }
        None => {
            let lineage = source::lineage(context, &config, &cluster).await?;
            let stored = stored::read(&lineage, context.clock.now()).await?;
            let mut document = window::document(&stored);
            if let Some(time) = at {
                document.at = Some(window::at(&lineage, &stored.catalog, time).await?);
            }
            to_value(&document)?
        }
    };
    if context.output.json {
        context.output.document(&document);
    } else {
        screen(&context.output, &document);
    }
    let unreachable = document["at"]["reachable"] == false;
    Ok(if unreachable { ErrorCode::TargetTooLate.exit_code() } else { 0 })
}

pub(super) fn to_value(document: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(document).map_err(|error| {
        Error::new(ErrorCode::Unclassified, "internal error: a document cannot be written").because(error)
    })
}

fn screen(output: &Output, document: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    output.text(&format!("{}  lineage {}", text(&document["cluster"]), text(&document["lineage"])));
    let moment = |moment: &Value| {
        vec![moment["time"].as_str().unwrap_or("?").to_owned(), text(&moment["lsn"]), text(&moment["timeline"])]
    };
    let ranges = document["ranges"].as_array().cloned().unwrap_or_default();
    if ranges.is_empty() {
        output.text("nothing can be recovered yet: there is no usable backup");
    } else {
        let rows = ranges.iter().map(|range| {
            let mut row = moment(&range["from"]);
            row.extend(moment(&range["to"]));
            row.push(text(&range["first_backup"]));
            row
        });
        output.table(&["FROM", "LSN", "TL", "TO", "LSN", "TL", "FIRST BACKUP"], rows.collect());
    }
    for gap in document["gaps"].as_array().into_iter().flatten() {
        let line = format!(
            "gap on timeline {}: {} .. {}  {}",
            gap["timeline"],
            text(&gap["from_lsn"]),
            text(&gap["to_lsn"]),
            text(&gap["reason"])
        );
        output.text(&output.paint(Color::Yellow, &line));
    }
    for timeline in
        document["timelines"].as_array().into_iter().flatten().filter(|timeline| !timeline["parent"].is_null())
    {
        output.text(&format!(
            "timeline {} forked from {} at {}",
            timeline["timeline"],
            timeline["parent"],
            text(&timeline["switch_lsn"])
        ));
    }
    for backup in document["unreadable_backups"].as_array().into_iter().flatten() {
        let (id, reason) = (text(&backup["id"]), text(&backup["reason"]));
        let line = format!("backup {id} cannot be read, so more may be recoverable than is shown: {reason}");
        output.text(&output.paint(Color::Yellow, &line));
    }
    let at = &document["at"];
    if at.is_null() {
        return;
    }
    let time = at["time"].as_str().unwrap_or("?");
    if at["reachable"] == true {
        output.text(
            &output.paint(Color::Green, &format!("{time} can be recovered, from backup {}", text(&at["backup"]))),
        );
        for (name, commit) in
            [("last commit before", &at["commit_before"]), ("first commit after", &at["commit_after"])]
        {
            if !commit.is_null() {
                output.text(&format!(
                    "  {name}: {} at {}, transaction {}",
                    shown(&commit["time"]),
                    text(&commit["lsn"]),
                    commit["xid"]
                ));
            }
        }
    } else {
        let reason = text(&at["reason"]);
        let reason = reason.strip_prefix(time).map_or_else(|| reason.clone(), |rest| format!("it{rest}"));
        output.text(&output.paint(Color::Red, &format!("{time} cannot be recovered: {reason}")));
        let commit = &at["commit_before"];
        if !commit.is_null() {
            let what = format!("{} at {}, transaction {}", shown(&commit["time"]), text(&commit["lsn"]), commit["xid"]);
            output.text(&format!("  last commit before: {what}"));
        }
    }
}
