//! `slot show|create|drop`.

use serde_json::{Value, json};

use super::Ended;
use super::args::OfCluster;
use super::context::Context;
use super::output::bytes;
use super::source;
use crate::config::{ClusterConfig, Config};
use crate::daemon::open;
use crate::daemon::view::Member;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ReplicationConnection, SlotName, sql};

fn configured(cluster: &ClusterConfig) -> Result<SlotName> {
    open::slot_name(cluster)?.ok_or_else(|| {
        Error::new(ErrorCode::InvalidConfig, format!("cluster {} is configured without a slot", cluster.name))
            .help("set `slot` in the cluster's section")
    })
}

/// The slot on every member.
pub(super) async fn show(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let name = configured(&cluster)?;
    let members = source::members(context, &config, &cluster).await?.0.ask().await;
    if let [only] = members.as_slice()
        && let Some(error) = &only.error
    {
        return Err(error.clone());
    }
    let slots: Vec<Value> = members.iter().map(|member| describe(member, &name)).collect();
    if context.output.json {
        context.output.document(&json!({ "cluster": cluster.name, "slots": slots }));
        return Ok(0);
    }
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(count) => bytes(count.as_u64().unwrap_or_default()),
        _ => "-".to_owned(),
    };
    let rows = slots.iter().map(|slot| {
        ["host", "name", "exists", "active", "wal_status", "restart_lsn", "retained_bytes", "error"]
            .map(|column| text(&slot[column]))
            .to_vec()
    });
    context.output.table(&["HOST", "SLOT", "EXISTS", "ACTIVE", "WAL", "RESTART", "HOLDS", "ERROR"], rows.collect());
    Ok(0)
}

fn describe(member: &Member, name: &SlotName) -> Value {
    let row = member.slots.iter().flatten().find(|row| row.name == name.as_str());
    json!({
        "host": format!("{}:{}", member.host, member.port),
        "name": name.as_str(),
        "exists": member.slots.as_ref().map(|_| row.is_some()),
        "active": row.map(|row| row.active),
        "wal_status": row.and_then(|row| row.wal_status.clone()),
        "restart_lsn": row.and_then(|row| row.restart_lsn),
        "retained_bytes": row.and_then(|row| Some(member.current_lsn?.bytes_since(row.restart_lsn?))),
        "safe_wal_bytes": row.and_then(|row| row.safe_wal_size),
        "error": member.error.as_ref().map(|error| error.message().to_owned()),
    })
}

/// Creates the slot, with WAL kept from now on.
pub(super) async fn create(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let name = configured(&cluster)?;
    let doing = format!("cannot create slot \"{name}\" of {}", cluster.name);
    if let Some((host, true)) = on_server(&config, &cluster, &name).await? {
        return Err(Error::new(ErrorCode::Refused, format!("slot \"{name}\" exists on {host}"))
            .because("nothing was changed")
            .help("see how it is: pgvault slot show"));
    }
    let mut connection = connect(&config, &cluster, &doing).await?;
    connection.create_physical_slot(&name).await.map_err(|error| error.explain(doing))?;
    told(context, &cluster, &name, "created", "created; it keeps WAL from now on")
}

/// Drops the slot: the primary forgets how far pgvault is.
pub(super) async fn drop(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let name = configured(&cluster)?;
    context
        .confirm(&format!("drop slot \"{name}\" of {}? WAL that pgvault has not received may be lost", cluster.name))?;
    if source::daemon(&config).await?.is_some() && cluster.create_slot {
        return Err(Error::new(ErrorCode::Refused, "the daemon is running and would make the slot anew")
            .help("stop it first: systemctl stop pgvault"));
    }
    let doing = format!("cannot drop slot \"{name}\" of {}", cluster.name);
    // Looked at first: to drop a slot that is not there is "not found", whatever the server says to it.
    if let Some((host, false)) = on_server(&config, &cluster, &name).await? {
        return Err(Error::new(ErrorCode::NotFound, format!("there is no slot \"{name}\" on {host}")));
    }
    let mut connection = connect(&config, &cluster, &doing).await?;
    connection.drop_slot(&name).await.map_err(|error| error.explain(doing))?;
    told(context, &cluster, &name, "dropped", "dropped")
}

fn told(context: &Context, cluster: &ClusterConfig, name: &SlotName, done: &str, text: &str) -> Ended {
    if context.output.json {
        let document = json!({ "type": "result", "cluster": cluster.name, "slot": name.as_str(), "done": done });
        context.output.document(&document);
    } else {
        context.output.text(&format!("slot \"{name}\" {text}"));
    }
    Ok(0)
}

/// The server and whether the slot is there; `None` when it cannot be seen, as without the right to run queries.
async fn on_server(config: &Config, cluster: &ClusterConfig, name: &SlotName) -> Result<Option<(String, bool)>> {
    let Ok(session) = sql::connect(&open::connect_options(config, cluster)?).await else { return Ok(None) };
    let Ok(Some(slots)) = session.slots().await else { return Ok(None) };
    Ok(Some((session.host().to_string(), slots.iter().any(|row| row.name == name.as_str()))))
}

async fn connect(config: &Config, cluster: &ClusterConfig, doing: &str) -> Result<ReplicationConnection> {
    ReplicationConnection::connect(&open::connect_options(config, cluster)?).await.map_err(|error| error.explain(doing))
}
