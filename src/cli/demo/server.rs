//! A PostgreSQL server of the demo.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Child;
use tokio_postgres::NoTls;

use super::place::Place;
use super::{STEP_WITHIN, cannot};
use crate::error::{Error, ErrorCode, Result};

/// One server, reached by a unix socket that only this user can use.
#[derive(Debug)]
pub(super) struct Server {
    /// Its data directory.
    pub(super) data: PathBuf,
    /// `PostgreSQL 17.5`
    pub(super) version: String,
    run: PathBuf,
    port: u16,
    log: String,
    child: Option<Child>,
}

impl Server {
    /// initdb.
    pub(super) async fn initialise(place: &Place, name: &str) -> Result<Self> {
        let server = Self::of(place, name, 5432)?;
        let output = place
            .command(&place.bin.join("initdb"))
            .arg("-D")
            .arg(&server.data)
            .args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"])
            .output()
            .await
            .map_err(|error| cannot("run initdb", &error))?;
        if !output.status.success() {
            return Err(Error::new(ErrorCode::PostgresFailed, format!("initdb ended with {}", output.status))
                .because(String::from_utf8_lossy(&output.stderr).trim()));
        }
        Ok(server)
    }

    /// A server for a data directory.
    pub(super) fn of(place: &Place, name: &str, port: u16) -> Result<Self> {
        let output = std::process::Command::new(place.bin.join("postgres"))
            .arg("--version")
            .output()
            .map_err(|error| cannot("run postgres", &error))?;
        let version = String::from_utf8_lossy(&output.stdout).trim().replace("postgres (PostgreSQL)", "PostgreSQL");
        Ok(Self {
            data: place.dir.join(name),
            version,
            run: place.dir.join("run"),
            port,
            log: format!("{name}.log"),
            child: None,
        })
    }

    /// libpq words.
    pub(super) fn conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.run.display(), self.port)
    }

    /// Starts it and waits until it answers.
    pub(super) async fn start(&mut self, place: &Place) -> Result<()> {
        let port = self.port.to_string();
        let mut command = place.command(&place.bin.join("postgres"));
        command.arg("-D").arg(&self.data).args(["-p", &port, "-k"]).arg(&self.run);
        // It is thrown away: what it loses in a crash nobody misses. What pgvault keeps is flushed all the same.
        for setting in [
            "listen_addresses=",
            "fsync=off",
            "wal_level=replica",
            "shared_buffers=32MB",
            "max_wal_senders=10",
            "max_slot_wal_keep_size=1GB",
        ] {
            command.args(["-c", setting]);
        }
        command.stdout(place.log(&self.log)?).stderr(place.log(&self.log)?);
        let mut child = command.spawn().map_err(|error| cannot("start postgres", &error))?;
        let steps = STEP_WITHIN.as_millis() / 100;
        for _ in 0..steps {
            if let Ok(Some(status)) = child.try_wait() {
                return Err(Error::new(ErrorCode::PostgresFailed, format!("postgres ended with {status}"))
                    .because(place.tail(&self.log)));
            }
            if self.session().await.is_ok() {
                self.child = Some(child);
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        stop_child(&mut child, Signal::QUIT).await;
        Err(Error::new(ErrorCode::PostgresFailed, "postgres does not answer").because(place.tail(&self.log)))
    }

    /// A session.
    pub(super) async fn session(&self) -> Result<Session> {
        let connected = tokio_postgres::Config::new()
            .host_path(&self.run)
            .port(self.port)
            .user("postgres")
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(5))
            .connect(NoTls)
            .await;
        let (client, connection) = connected.map_err(|error| failed("connect to PostgreSQL", &error))?;
        // Ends when the session is dropped; its errors are those of the session's queries.
        tokio::spawn(async move {
            drop(connection.await);
        });
        Ok(Session { client })
    }

    /// Fast shutdown.
    pub(super) async fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            stop_child(&mut child, Signal::INT).await;
        }
    }
}

/// Asks a child to end, and ends it when it does not.
pub(super) async fn stop_child(child: &mut Child, signal: Signal) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    // It may have ended by itself.
    let asked = pid.is_some_and(|pid| kill_process(pid, signal).is_ok());
    if !asked || tokio::time::timeout(Duration::from_secs(20), child.wait()).await.is_err() {
        // Nothing more can be done about a child that cannot be killed.
        drop(child.kill().await);
    }
}

/// A session with one server.
#[derive(Debug)]
pub(super) struct Session {
    client: tokio_postgres::Client,
}

impl Session {
    /// Runs a statement.
    pub(super) async fn execute(&self, sql: &str) -> Result<()> {
        self.client.batch_execute(sql).await.map_err(|error| failed(sql, &error))
    }

    /// The one value of a query, as text.
    pub(super) async fn value(&self, sql: &str) -> Result<String> {
        let row = self.client.query_one(sql, &[]).await.map_err(|error| failed(sql, &error))?;
        row.try_get::<_, String>(0).map_err(|error| failed(sql, &error))
    }
}

fn failed(what: &str, error: &tokio_postgres::Error) -> Error {
    Error::new(ErrorCode::PostgresFailed, format!("PostgreSQL refused: {what}")).caused_by(error)
}
