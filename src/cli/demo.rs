//! `demo`: the main job on a throw-away PostgreSQL: write, back up, drop a table, recover to before the drop.

mod place;
mod server;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::process::{Child, Command};
use wal::Lsn;

use super::Ended;
use super::args::Demo;
use super::context::Context;
use super::output::{Color, Output};
use crate::daemon::control::Client;
use crate::daemon::signals::{Signals, Stop};
use crate::error::{Error, ErrorCode, Result};
use place::Place;
use server::Server;

/// How long any one step may take.
const STEP_WITHIN: Duration = Duration::from_secs(60);
/// Rows before the backup, and after it.
const ROWS: (i64, i64) = (100_000, 500);

pub(super) async fn run(context: &Context, args: &Demo) -> Ended {
    let mut signals = Signals::listen()?;
    let mut story = Story::begin(context, args)?;
    let told = tokio::select! {
        told = story.tell() => told,
        stop = signals.next_stop() => {
            story.end(args.keep).await;
            context.output.error(&Error::new(ErrorCode::Interrupted, "interrupted"));
            return Ok(if stop == Stop::Interrupt { 130 } else { 143 });
        }
    };
    story.end(args.keep).await;
    told.map(|()| 0)
}

/// What is running, and how far the story is.
struct Story<'a> {
    context: &'a Context,
    place: Place,
    primary: Option<Server>,
    recovered: Option<Server>,
    daemon: Option<Child>,
    step: u32,
    began: Instant,
}

impl<'a> Story<'a> {
    fn begin(context: &'a Context, args: &Demo) -> Result<Self> {
        let place = Place::make(&context.variables, args.dir.as_deref())?;
        Ok(Self {
            context,
            place,
            primary: None,
            recovered: None,
            daemon: None,
            step: 0,
            began: context.clock.instant(),
        })
    }

    async fn tell(&mut self) -> Result<()> {
        self.output().text(&format!("pgvault demo in {}\n", self.place.dir.display()));
        let primary = self.start_primary().await?;
        self.start_daemon().await?;
        self.say("Create a table and write rows");
        primary
            .execute("CREATE TABLE accounts (id bigint PRIMARY KEY, owner text NOT NULL, balance bigint NOT NULL)")
            .await?;
        primary.execute(&insert(1, ROWS.0)).await?;
        self.detail(&format!("{} rows in accounts", ROWS.0));
        self.back_up().await?;
        self.say("Write more rows, after the backup");
        primary.execute(&insert(ROWS.0 + 1, ROWS.0 + ROWS.1)).await?;
        let before = summary(&primary).await?;
        self.detail(&format!("accounts now: {before}"));
        let moment = primary
            .value("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")
            .await?;
        self.say("Note the time, then make the mistake");
        self.detail(&format!("it is {moment}"));
        // The mistake must be later than the noted time, to the microsecond.
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Someone else goes on working. Recovery stops before the first commit after the noted time: were that the DROP
        // itself, its lock on the table would already be there, and looking would wait for it.
        primary.execute("INSERT INTO accounts VALUES (0, 'someone else', 0)").await?;
        primary.execute("DROP TABLE accounts").await?;
        self.detail(&self.output().paint(Color::Red, "DROP TABLE accounts;   -- oh no"));
        self.wait_until_stored(&primary).await?;
        let recovering = self.context.clock.instant();
        self.recover(&moment).await?;
        let after = self.look(&moment).await?;
        let took = self.context.clock.instant().saturating_duration_since(recovering);
        if after != before {
            return Err(Error::new(ErrorCode::Damaged, "the recovered table is not the one that was dropped")
                .because(format!("before: {before}"))
                .because(format!("after:  {after}")));
        }
        let all = self.context.clock.instant().saturating_duration_since(self.began);
        let good = self.output().paint(Color::Green, "everything is back");
        self.output().text(&format!(
            "\n{good}: recovered in {:.1} s, the whole demo took {:.1} s",
            took.as_secs_f64(),
            all.as_secs_f64()
        ));
        Ok(())
    }

    fn output(&self) -> &Output {
        &self.context.output
    }

    fn say(&mut self, what: &str) {
        self.step += 1;
        self.output().text(&format!("{:>2}  {what}", self.step));
    }

    fn detail(&self, what: &str) {
        self.output().text(&format!("      {what}"));
    }

    async fn start_primary(&mut self) -> Result<server::Session> {
        self.say("Start a throw-away PostgreSQL");
        let server = Server::initialise(&self.place, "data").await?;
        self.detail(&format!("{} in {}", server.version, server.data.display()));
        let server = self.primary.insert(server);
        server.start(&self.place).await?;
        server.session().await
    }

    async fn start_daemon(&mut self) -> Result<()> {
        self.say("Start pgvault: it makes its slot and streams the WAL");
        let server = self.primary.as_ref().ok_or_else(|| internal("no server"))?;
        let config = format!(
            "[daemon]\nstate_dir = \"{state}\"\n\n[repository]\nurl = \"file://{repository}\"\n\n[cluster.main]\nconninfo = \"{conninfo}\"\nmax_rpo = \"1s\"\nschedule = \"\"\n\n[http]\nlisten = \"\"\n",
            state = self.place.dir.join("state").display(),
            repository = self.place.dir.join("repository").display(),
            conninfo = server.conninfo(),
        );
        self.place.write("pgvault.toml", &config)?;
        let log = self.place.log("pgvault.log")?;
        let mut command = self.pgvault(&["serve"]);
        command.stdout(Stdio::null()).stderr(log);
        let child = command.spawn().map_err(|error| cannot("start pgvault serve", &error))?;
        self.daemon = Some(child);
        self.wait_for("pgvault streams", async |story| {
            let status = story.status().await;
            Ok(status.is_some_and(|status| status["wal"]["streaming"] == true))
        })
        .await?;
        self.detail(&format!("pgvault -c {} serve", self.place.dir.join("pgvault.toml").display()));
        Ok(())
    }

    async fn back_up(&mut self) -> Result<()> {
        self.say("Take a base backup");
        let output = self.run_pgvault(&["backup", "now", "--wait", "--fast-checkpoint"]).await?;
        self.detail(output.lines().last().unwrap_or_default());
        Ok(())
    }

    /// What was dropped must be in the repository too: recovery to a time stops at the first commit that is later.
    async fn wait_until_stored(&mut self, primary: &server::Session) -> Result<()> {
        let end: Lsn = primary
            .value("SELECT pg_current_wal_insert_lsn()::text")
            .await?
            .parse()
            .map_err(|error| internal(&format!("{error}")))?;
        self.wait_for("the WAL is in the repository", async |story| {
            let shipped =
                story.status().await.and_then(|status| status["wal"]["shipped_lsn"].as_str()?.parse::<Lsn>().ok());
            Ok(shipped.is_some_and(|shipped| shipped >= end))
        })
        .await
    }

    async fn recover(&mut self, moment: &str) -> Result<()> {
        self.say("Recover to the moment before");
        let to = self.place.dir.join("recovered");
        let to = to.to_str().ok_or_else(|| internal("the directory is not UTF-8"))?.to_owned();
        self.detail(&format!("pgvault recover main --target-time {moment} --to {to}"));
        let output = self.run_pgvault(&["recover", "main", "--target-time", moment, "--to", &to]).await?;
        self.detail(output.lines().next().unwrap_or_default());
        Ok(())
    }

    async fn look(&mut self, moment: &str) -> Result<String> {
        self.say("Start the recovered server and look");
        let server = self.recovered.insert(Server::of(&self.place, "recovered", 5433)?);
        server.start(&self.place).await?;
        let session = server.session().await?;
        self.wait_for("recovery reaches the moment", async |_| {
            Ok(session.value("SELECT pg_get_wal_replay_pause_state()").await? == "paused")
        })
        .await?;
        let found = summary(&session).await?;
        self.detail(&format!("accounts at {moment}: {found}"));
        Ok(found)
    }

    /// The status of our cluster, when the daemon answers.
    async fn status(&self) -> Option<Value> {
        let client = Client::connect(&self.place.dir.join("state/control.sock")).await.ok()??;
        let document = client.get("/api/v1/status").await.ok()?;
        document["clusters"].get(0).cloned()
    }

    /// Polls until something holds. What ended meanwhile, or does not come in time, is told with the end of its log.
    async fn wait_for(&mut self, what: &str, holds: impl AsyncFn(&Self) -> Result<bool>) -> Result<()> {
        let start = self.context.clock.instant();
        loop {
            if holds(self).await? {
                return Ok(());
            }
            if let Some(daemon) = &mut self.daemon
                && let Ok(Some(status)) = daemon.try_wait()
            {
                return Err(Error::new(ErrorCode::Unclassified, format!("pgvault serve ended with {status}"))
                    .because(self.place.tail("pgvault.log")));
            }
            if self.context.clock.instant().saturating_duration_since(start) > STEP_WITHIN {
                return Err(Error::new(
                    ErrorCode::Unclassified,
                    format!("still not after {} s: {what}", STEP_WITHIN.as_secs()),
                )
                .because(self.place.tail("pgvault.log"))
                .help(format!("run it again with --keep and look into {}", self.place.dir.display())));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The program with the demo's configuration.
    fn pgvault(&self, args: &[&str]) -> Command {
        let mut command = self.place.command(&self.place.pgvault);
        command.arg("-c").arg(self.place.dir.join("pgvault.toml")).args(args);
        command
    }

    async fn run_pgvault(&self, args: &[&str]) -> Result<String> {
        let output = self.pgvault(args).output().await.map_err(|error| cannot("run pgvault", &error))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::new(ErrorCode::Unclassified, format!("`pgvault {}` failed with {}", args.join(" "), output.status))
            .because(said))
    }

    /// Removes the directory. What was interrupted (initdb and its children) may write a moment longer: it is tried again.
    async fn take_away(&self) -> std::io::Result<()> {
        for _ in 0..50 {
            if self.place.remove().is_ok() {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        self.place.remove()
    }

    /// Stops what runs, in the order in which it depends, and takes everything away.
    async fn end(&mut self, keep: bool) {
        if let Some(server) = &mut self.recovered {
            server.stop().await;
        }
        if let Some(daemon) = &mut self.daemon {
            server::stop_child(daemon, rustix::process::Signal::TERM).await;
        }
        if let Some(server) = &mut self.primary {
            server.stop().await;
        }
        if keep {
            self.output().text(&format!("kept: {}", self.place.dir.display()));
        } else if let Err(error) = self.take_away().await {
            self.output().note(&format!("cannot remove {}: {error}", self.place.dir.display()));
        }
    }
}

fn insert(from: i64, to: i64) -> String {
    format!("INSERT INTO accounts SELECT i, 'owner ' || i, i % 1000 FROM generate_series({from}, {to}) i")
}

/// What is in the table, in one line.
async fn summary(session: &server::Session) -> Result<String> {
    session
        .value("SELECT count(*) || ' rows, balances ' || coalesce(sum(balance), 0) || ', md5 ' || left(md5(string_agg(id || owner, ',' ORDER BY id)), 8) FROM accounts")
        .await
}

fn cannot(what: &str, error: &dyn std::fmt::Display) -> Error {
    Error::new(ErrorCode::Unclassified, format!("cannot {what}")).because(error)
}

fn internal(what: &str) -> Error {
    Error::new(ErrorCode::Unclassified, format!("internal error: {what}"))
}

/// A unix socket takes paths of so many bytes.
fn fits_socket(dir: &Path) -> bool {
    dir.as_os_str().len() <= 80
}
