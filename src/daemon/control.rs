//! The control socket: HTTP on a unix socket that only this user can open. The daemon's end and the client's.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

use super::http::error_of;
use super::state_dir;
use crate::error::{Error, ErrorCode, Result};

/// Longest path of a unix socket (`sun_path`).
const MAX_PATH: usize = 107;
/// How long a request may take: `check --deep` waits for a segment.
const PATIENCE: Duration = Duration::from_secs(180);
/// No answer of ours is larger.
const MAX_ANSWER: usize = 256 << 20;

/// Listens. The caller holds the lock of the state directory, so a socket that is there is left over.
pub fn listen(path: &Path) -> Result<UnixListener> {
    let cannot = |error: &dyn std::fmt::Display| {
        Error::new(ErrorCode::InvalidConfig, format!("cannot listen on {}", path.display())).because(error)
    };
    if path.as_os_str().len() > MAX_PATH {
        return Err(cannot(&format!(
            "the path is {} bytes long, a unix socket takes {MAX_PATH}",
            path.as_os_str().len()
        ))
        .help("use a shorter `state_dir` in [daemon]"));
    }
    state_dir::remove_stale(path).map_err(|error| cannot(&error))?;
    let listener = UnixListener::bind(path).map_err(|error| cannot(&error))?;
    // The directory is 0700 where we made it; this is for those that were made by others. A client that connects before
    // is one that the directory lets in.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(|error| cannot(&error))?;
    Ok(listener)
}

/// A running daemon, as a client sees it.
#[derive(Debug)]
pub struct Client {
    path: std::path::PathBuf,
}

impl Client {
    /// The daemon behind this socket; `None` when none runs.
    ///
    /// # Errors
    ///
    /// When one may run and this user may not ask it.
    pub async fn connect(path: &Path) -> Result<Option<Self>> {
        match UnixStream::connect(path).await {
            Ok(_) => Ok(Some(Self { path: path.to_owned() })),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(Error::new(ErrorCode::Refused, format!("cannot ask the daemon at {}", path.display()))
                .because(error)
                .help("run the command as the user that runs `pgvault serve`")),
        }
    }

    /// Asks, and returns the document.
    pub async fn get(&self, path_and_query: &str) -> Result<Value> {
        self.request(Method::GET, path_and_query, None).await.and_then(|(_, body)| parse(&body))
    }

    /// Asks for something to be done.
    pub async fn post(&self, path_and_query: &str, body: &Value) -> Result<Value> {
        self.request(Method::POST, path_and_query, Some(body)).await.and_then(|(_, body)| parse(&body))
    }

    /// The status alone: for probes.
    pub async fn status(&self, path_and_query: &str) -> Result<(u16, String)> {
        let (status, body) = self.exchange(Method::GET, path_and_query, None).await?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    async fn request(&self, method: Method, path_and_query: &str, body: Option<&Value>) -> Result<(u16, Bytes)> {
        let (status, bytes) = self.exchange(method, path_and_query, body).await?;
        if status >= 400 {
            return Err(match serde_json::from_slice::<Value>(&bytes) {
                Ok(document) if document["type"] == "error" => error_of(&document),
                _ => Error::new(ErrorCode::Unclassified, format!("the daemon answered with status {status}"))
                    .because(String::from_utf8_lossy(&bytes)),
            });
        }
        Ok((status, bytes))
    }

    async fn exchange(&self, method: Method, path_and_query: &str, body: Option<&Value>) -> Result<(u16, Bytes)> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::new(ErrorCode::Unclassified, "the daemon does not answer")
                .because(error)
                .help("see whether it runs: pgvault health")
        };
        let exchange = async {
            let stream = UnixStream::connect(&self.path).await.map_err(|error| failed(&error))?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
            // Ends with the exchange; an error of it is also the error of the request.
            let connection = tokio::spawn(connection);
            let request = Request::builder()
                .method(method)
                .uri(path_and_query)
                .header("host", "pgvault")
                .header("content-type", "application/json")
                .body(Full::new(Bytes::from(body.map(Value::to_string).unwrap_or_default())))
                .map_err(|error| failed(&error))?;
            let response = sender.send_request(request).await.map_err(|error| failed(&error))?;
            let status = response.status().as_u16();
            let body = http_body_util::Limited::new(response.into_body(), MAX_ANSWER)
                .collect()
                .await
                .map_err(|error| failed(&error))?;
            connection.abort();
            Ok((status, body.to_bytes()))
        };
        timeout(PATIENCE, exchange)
            .await
            .unwrap_or_else(|_| Err(failed(&format!("no answer within {} s", PATIENCE.as_secs()))))
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused | NotADirectory)
}

fn parse(body: &Bytes) -> Result<Value> {
    serde_json::from_slice(body)
        .map_err(|error| Error::new(ErrorCode::Unclassified, "the daemon's answer cannot be understood").because(error))
}
