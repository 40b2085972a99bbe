//! The HTTP server's requests: the same for the TCP port and for the control socket, which may act.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use recovery::time_text::{self, LocalZone};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};
use wal::PgTime;

use super::backups::{BackupWish, Run};
use super::check::{CheckStatus, Finding, worst};
use super::supervisor::Supervisor;
use super::{deep, status, stored, window};
use crate::codec::digest::sha256;
use crate::error::{Error, ErrorCode, Result};

/// So long an answer may be held back until something has happened.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Who may do what on one listener.
#[derive(Clone, Debug)]
pub enum Access {
    /// The control socket: only this user can open it, and may do everything.
    Owner,
    /// A TCP port.
    Network {
        /// Whether it is reachable from this machine only.
        loopback: bool,
        /// What requests that act must bring; also what reading must bring where others can reach the port.
        token: Option<SecretString>,
        /// Whether requests may act at all.
        actions: bool,
    },
}

/// What every request works with.
#[derive(Clone, Debug)]
struct Shared {
    supervisor: Arc<Supervisor>,
    access: Arc<Access>,
}

/// All requests.
pub fn router(supervisor: Arc<Supervisor>, access: Access) -> Router {
    Router::new()
        .route("/", get(front))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/healthz", get(healthz))
        .route("/metrics", get(metrics))
        .route("/api/v1/status", get(get_status))
        .route("/api/v1/window", get(get_window))
        .route("/api/v1/backups", get(get_backups).post(post_backup))
        .route("/api/v1/backups/run", get(get_run))
        .route("/api/v1/check", get(get_check))
        .route("/api/v1/check/deep", post(post_deep_check))
        .route("/api/v1/refresh", post(post_refresh))
        .fallback(async || Failure::from(Error::new(ErrorCode::NotFound, "no such page")))
        .with_state(Shared { supervisor, access: Arc::new(access) })
}

/// An error as a response: the document of INTERFACE section 3, and a status for those who look at it only.
struct Failure(Error, Option<StatusCode>);

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(error, None)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let by_code = match self.0.code() {
            ErrorCode::Usage | ErrorCode::TimeWithoutZone => StatusCode::BAD_REQUEST,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Refused | ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::NotAvailable => StatusCode::NOT_IMPLEMENTED,
            ErrorCode::RepositoryDenied | ErrorCode::NoPrimary => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (self.1.unwrap_or(by_code), Json(document(&self.0))).into_response()
    }
}

/// INTERFACE section 3.
pub fn document(error: &Error) -> Value {
    json!({
        "type": "error",
        "code": error.code().as_str(),
        "message": error.message(),
        "causes": error.causes(),
        "help": error.help_lines(),
    })
}

/// The error that a document tells of.
pub fn error_of(document: &Value) -> Error {
    let text = |name: &str| document[name].as_str().unwrap_or_default();
    let lines = |name: &str| document[name].as_array().into_iter().flatten().filter_map(Value::as_str);
    let code = ErrorCode::ALL.iter().find(|code| code.as_str() == text("code")).copied();
    let error = Error::new(code.unwrap_or(ErrorCode::Unclassified), text("message"));
    let error = lines("causes").fold(error, |error, cause| error.because(cause));
    lines("help").fold(error, Error::help)
}

#[derive(Debug, Deserialize)]
struct Question {
    cluster: Option<String>,
    #[serde(default)]
    strict: Option<String>,
    at: Option<String>,
    run: Option<u64>,
    /// Of a run: for so many milliseconds its end is waited for.
    wait_ms: Option<u64>,
}

type Answer = std::result::Result<Response, Failure>;
type Allowed = std::result::Result<(), Failure>;

async fn front() -> &'static str {
    "pgvault\n\n/metrics\n/livez\n/readyz\n/healthz\n/api/v1/status\n/api/v1/window\n/api/v1/backups\n/api/v1/check\n"
}

/// The process only: PostgreSQL or the store being down is no reason to restart it.
async fn livez() -> &'static str {
    "ok\n"
}

/// Configured, and WAL can be kept.
async fn readyz(State(shared): State<Shared>) -> Response {
    let config = shared.supervisor.config();
    let writable = rustix::fs::access(&config.state_dir, rustix::fs::Access::WRITE_OK).is_ok()
        && (!config.spool.dir.exists() || rustix::fs::access(&config.spool.dir, rustix::fs::Access::WRITE_OK).is_ok());
    let configured = !config.clusters.is_empty();
    let status = if writable && configured { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": writable && configured, "configured": configured, "spool_writable": writable })))
        .into_response()
}

/// The verdict of `check`, from what is known.
async fn healthz(State(shared): State<Shared>, Query(question): Query<Question>) -> Answer {
    let names: Vec<String> = shared
        .supervisor
        .clusters(question.cluster.as_deref())?
        .iter()
        .map(|cluster| cluster.config.name.clone())
        .collect();
    let mut findings = shared.supervisor.findings();
    findings.retain(|name, _| names.contains(name));
    let strict = question.strict.is_some_and(|strict| strict != "0" && strict != "false");
    let worst = findings.values().map(|findings| worst(findings)).max().unwrap_or(CheckStatus::Failed);
    let bad = worst == CheckStatus::Failed || (strict && worst == CheckStatus::Warn);
    let status = if bad { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    Ok((status, Json(check_document(&findings))).into_response())
}

/// INTERFACE section 4, `check`.
pub fn check_document(findings: &BTreeMap<String, Vec<Finding>>) -> Value {
    let clusters: Vec<Value> = findings
        .iter()
        .map(|(name, findings)| json!({ "name": name, "status": worst(findings), "checks": findings }))
        .collect();
    json!({ "clusters": clusters })
}

async fn metrics(State(shared): State<Shared>) -> Answer {
    let supervisor = &shared.supervisor;
    let text = supervisor.metrics.scrape(&supervisor.views(), &supervisor.findings(), supervisor.clock.now())?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

async fn get_status(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_read(&headers)?;
    let now = shared.supervisor.clock.now();
    let clusters = shared.supervisor.clusters(question.cluster.as_deref())?;
    let statuses: Vec<_> = clusters.iter().map(|cluster| status::status(&cluster.view(), now)).collect();
    Ok(Json(json!({ "clusters": statuses })).into_response())
}

async fn get_window(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_read(&headers)?;
    let cluster = shared.supervisor.one_cluster(question.cluster.as_deref())?;
    let read = cluster.read_now().await?;
    let mut document = window::document(&read);
    if let Some(text) = question.at {
        let time = moment(&text, PgTime::from(shared.supervisor.clock.now()))?;
        let lineage = stored::newest_lineage(&cluster.repository()?).await?;
        document.at = Some(window::at(&lineage, &read.catalog, time).await?);
    }
    Ok(Json(document).into_response())
}

/// A moment as people write it; without a zone it is refused with both readings.
pub fn moment(text: &str, now: PgTime) -> Result<PgTime> {
    time_text::parse(text, now, &local_zone(now)).map_err(|error| match &error {
        time_text::TimeTextError::WithoutZone { utc, local, zone, .. } => {
            Error::new(ErrorCode::TimeWithoutZone, format!("\"{text}\" has no time zone"))
                .help(format!("if UTC is meant: {utc}"))
                .help(format!("if {zone} is meant: {local}"))
        }
        time_text::TimeTextError::Ambiguous { first, second, .. } => {
            Error::new(ErrorCode::TimeWithoutZone, error.to_string())
                .help(format!("write {first}"))
                .help(format!("or    {second}"))
        }
        _ => Error::new(ErrorCode::Usage, error.to_string()).help("write it with a zone: \"2026-11-20 05:22:36+00\""),
    })
}

/// The zone of this machine, for the second reading of a time without one.
fn local_zone(now: PgTime) -> LocalZone {
    let offset = *now.to_datetime().with_timezone(&chrono::Local).offset();
    let name =
        std::env::var("TZ").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| format!("local time ({offset})"));
    LocalZone { name, offset }
}

async fn get_backups(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_read(&headers)?;
    let clusters = shared.supervisor.clusters(question.cluster.as_deref())?;
    let mut list = Vec::new();
    for cluster in clusters {
        match cluster.read_now().await {
            Ok(_) => {}
            Err(error) if error.code() == ErrorCode::NotFound => {}
            Err(error) => return Err(error.into()),
        }
        list.extend(status::backup_list(&cluster.view()));
    }
    Ok(Json(list).into_response())
}

async fn post_backup(
    State(shared): State<Shared>,
    headers: HeaderMap,
    Query(question): Query<Question>,
    body: Bytes,
) -> Answer {
    // Who may not act is told so, whatever the body is.
    shared.may_act(&headers)?;
    let wish: &[u8] = if body.is_empty() { b"{}" } else { &body };
    let wish: BackupWish = serde_json::from_slice(wish)
        .map_err(|error| Error::new(ErrorCode::Usage, "the body is no wish for a backup").because(error))?;
    let cluster = shared.supervisor.one_cluster(question.cluster.as_deref())?;
    let number = cluster.backups.start(wish).await?;
    Ok((StatusCode::ACCEPTED, Json(json!({ "cluster": cluster.config.name, "run": number }))).into_response())
}

async fn get_run(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_read(&headers)?;
    let cluster = shared.supervisor.one_cluster(question.cluster.as_deref())?;
    let number = question.run.unwrap_or_default();
    let patience = Duration::from_millis(question.wait_ms.unwrap_or_default()).min(LONGEST_WAIT);
    let run = cluster
        .backups
        .run_when_ended(number, patience)
        .await
        .ok_or_else(|| Error::new(ErrorCode::NotFound, format!("no run {number} of a backup")))?;
    Ok(Json(run_document(&run, &cluster.view())).into_response())
}

/// How a run stands: `state` is running, ok or failed.
fn run_document(run: &Run, view: &super::view::ClusterView) -> Value {
    let running = &run.running;
    let progress = json!({ "phase": running.phase, "done_bytes": running.done_bytes, "total_bytes": running.total_bytes, "started_at": PgTime::from(running.started_at), "not_files": running.not_files, "reason": running.reason });
    match &run.outcome {
        None => json!({ "state": "running", "id": running.id, "progress": progress }),
        Some(Err(error)) => {
            json!({ "state": "failed", "id": running.id, "progress": progress, "error": document(error) })
        }
        Some(Ok(backup)) => {
            let known = view.backups().iter().find(|known| known.id == backup.id).unwrap_or(backup);
            json!({ "state": "ok", "id": backup.id, "progress": progress, "backup": status::backup_summary(view, known) })
        }
    }
}

async fn get_check(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_read(&headers)?;
    let clusters = shared.supervisor.clusters(question.cluster.as_deref())?;
    // Trying things out writes to the repository and opens connections: only who may act may ask for it.
    let try_out = shared.may_act(&headers).is_ok();
    let known = shared.supervisor.findings();
    let mut findings = BTreeMap::new();
    for cluster in clusters {
        let name = cluster.config.name.clone();
        let found = if try_out {
            shared.supervisor.check_now(&cluster).await
        } else {
            known.get(&name).cloned().unwrap_or_default()
        };
        findings.insert(name, found);
    }
    Ok(Json(check_document(&findings)).into_response())
}

async fn post_deep_check(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_act(&headers)?;
    let cluster = shared.supervisor.one_cluster(question.cluster.as_deref())?;
    let finding = deep::check(&cluster.connect, &cluster.repository()?, &shared.supervisor.clock).await;
    Ok(Json(finding).into_response())
}

/// Something was written beside the daemon: it reads the repository now.
async fn post_refresh(State(shared): State<Shared>, headers: HeaderMap, Query(question): Query<Question>) -> Answer {
    shared.may_act(&headers)?;
    shared.supervisor.one_cluster(question.cluster.as_deref())?.read_now().await?;
    Ok(Json(json!({})).into_response())
}

/// Nobody may, with whatever token.
fn forbidden(message: &str, help: &str) -> Failure {
    Failure(Error::new(ErrorCode::Refused, message.to_owned()).help(help.to_owned()), Some(StatusCode::FORBIDDEN))
}

impl Shared {
    fn may_read(&self, headers: &HeaderMap) -> Allowed {
        match &*self.access {
            Access::Owner | Access::Network { loopback: true, .. } => Ok(()),
            Access::Network { token: Some(token), .. } => self.has_token(headers, token),
            Access::Network { token: None, .. } => Err(forbidden(
                "reading from other machines needs a token",
                "set `token_file` in [http] and send it: Authorization: Bearer TOKEN",
            )),
        }
    }

    fn may_act(&self, headers: &HeaderMap) -> Allowed {
        match &*self.access {
            Access::Owner => Ok(()),
            Access::Network { actions: false, .. } => Err(forbidden(
                "this server does not act over HTTP",
                "set `actions = true` in [http], or use the command line on this machine",
            )),
            Access::Network { token: Some(token), .. } => self.has_token(headers, token),
            Access::Network { token: None, .. } => Err(forbidden("acting needs a token", "set `token_file` in [http]")),
        }
    }

    fn has_token(&self, headers: &HeaderMap, token: &SecretString) -> Allowed {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, given)| given);
        // Hashes are compared: how long that takes says nothing about the token.
        let right = given
            .is_some_and(|given| sha256(given.trim().as_bytes()) == sha256(token.expose_secret().trim().as_bytes()));
        if right {
            Ok(())
        } else {
            let error = Error::new(ErrorCode::Refused, "the token is missing or wrong");
            Err(Failure(error.help("send it: Authorization: Bearer TOKEN"), Some(StatusCode::UNAUTHORIZED)))
        }
    }
}
