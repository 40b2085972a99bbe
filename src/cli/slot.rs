//! `slot show|create|drop`.

use serde_json::{Value, json};

use super::Ended;
use super::args::OfCluster;
use super::context::Context;
use super::output::bytes;
use super::source;
use crate::config::ClusterConfig;
use crate::daemon::open;
use crate::daemon::view::Member;
use crate::error::{Error, ErrorCode, Result};
use crate::primary::{ConnectOptions, Host, PgError, ReplicationConnection, SlotName};

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

/// What became of the slot on one member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Created,
    Exists,
    Dropped,
    Missing,
}

impl Done {
    fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Exists => "exists",
            Self::Dropped => "dropped",
            Self::Missing => "missing",
        }
    }
}

/// Creates the slot on every member where it is missing, with WAL kept from now on.
pub(super) async fn create(context: &Context, of: &OfCluster) -> Ended {
    let config = context.config()?;
    let cluster = context.cluster(&config, of)?;
    let name = configured(&cluster)?;
    let places = source::members(context, &config, &cluster).await?.0.places();
    let mut outcomes = Vec::new();
    for (host, options) in places {
        outcomes.push((host, create_on(&options, &name).await));
    }
    if outcomes.iter().all(|(_, outcome)| matches!(outcome, Ok(Done::Exists))) {
        let hosts: Vec<String> = outcomes.iter().map(|(host, _)| host.to_string()).collect();
        return Err(Error::new(ErrorCode::Refused, format!("slot \"{name}\" exists on {}", hosts.join(", ")))
            .because("nothing was changed")
            .help("see how it is: pgvault slot show"));
    }
    let doing = format!("cannot create slot \"{name}\" of {}", cluster.name);
    told(context, &cluster, &name, Done::Created, &doing, outcomes)
}

async fn create_on(options: &ConnectOptions, name: &SlotName) -> std::result::Result<Done, PgError> {
    match ReplicationConnection::connect(options).await?.create_physical_slot(name).await {
        Ok(()) => Ok(Done::Created),
        Err(error) if error.is_duplicate_slot() => Ok(Done::Exists),
        Err(error) => Err(error),
    }
}

/// Drops the slot on every member that has it: they forget how far pgvault is.
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
    let places = source::members(context, &config, &cluster).await?.0.places();
    let mut outcomes = Vec::new();
    for (host, options) in places {
        outcomes.push((host, drop_on(&options, &name).await));
    }
    if outcomes.iter().all(|(_, outcome)| matches!(outcome, Ok(Done::Missing))) {
        let hosts: Vec<String> = outcomes.iter().map(|(host, _)| host.to_string()).collect();
        return Err(Error::new(ErrorCode::NotFound, format!("there is no slot \"{name}\" on {}", hosts.join(", "))));
    }
    let doing = format!("cannot drop slot \"{name}\" of {}", cluster.name);
    told(context, &cluster, &name, Done::Dropped, &doing, outcomes)
}

async fn drop_on(options: &ConnectOptions, name: &SlotName) -> std::result::Result<Done, PgError> {
    match ReplicationConnection::connect(options).await?.drop_slot(name).await {
        Ok(()) => Ok(Done::Dropped),
        Err(error) if error.is_missing_slot() => Ok(Done::Missing),
        Err(error) => Err(error),
    }
}

type Outcome = (Host, std::result::Result<Done, PgError>);

/// Tells what was done where. A member on which it failed is an error, after the others have been told.
fn told(
    context: &Context,
    cluster: &ClusterConfig,
    name: &SlotName,
    done: Done,
    doing: &str,
    outcomes: Vec<Outcome>,
) -> Ended {
    let members: Vec<Value> = outcomes
        .iter()
        .map(|(host, outcome)| {
            json!({
                "host": host.to_string(),
                "done": outcome.as_ref().map(|done| done.as_str()).ok(),
                "error": outcome.as_ref().err().map(ToString::to_string),
            })
        })
        .collect();
    let failure = outcomes
        .iter()
        .position(|(_, outcome)| outcome.is_err())
        .and_then(|index| outcomes.get(index).map(|(host, _)| format!("{doing} on {host}")));
    if context.output.json && failure.is_none() {
        let document = json!({
            "type": "result", "cluster": cluster.name, "slot": name.as_str(), "done": done.as_str(), "members": members,
        });
        context.output.document(&document);
    } else if !context.output.json {
        for (host, done) in outcomes.iter().filter_map(|(host, outcome)| Some((host, outcome.as_ref().ok()?))) {
            let text = match done {
                Done::Created => "created; it keeps WAL from now on",
                Done::Exists => "exists already",
                Done::Dropped => "dropped",
                Done::Missing => "was not there",
            };
            context.output.text(&format!("slot \"{name}\" on {host} {text}"));
        }
    }
    match outcomes.into_iter().find_map(|(_, outcome)| outcome.err()).zip(failure) {
        Some((error, doing)) => Err(error.explain(doing)),
        None => Ok(0),
    }
}
