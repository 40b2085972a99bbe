//! What each member of a cluster says about itself, by SQL. Everything here is optional: a role with REPLICATION alone
//! gets less, never an outage.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;

use super::view::Member;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode};
use crate::primary::sql::{self, SqlSession};
use crate::primary::{ConnectOptions, Host, HostName, PgError};

/// A member that does not answer must not hold up the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sessions with the members of one cluster, kept between rounds.
#[derive(Debug)]
pub struct Members {
    options: ConnectOptions,
    clock: Arc<dyn Clock>,
    sessions: Vec<Option<SqlSession>>,
}

impl Members {
    /// No session yet.
    pub fn new(options: ConnectOptions, clock: Arc<dyn Clock>) -> Self {
        let sessions = options.conninfo.hosts().iter().map(|_| None).collect();
        Self { options, clock, sessions }
    }

    /// Members that have not been asked yet, so that every series exists from the start.
    pub fn unasked(options: &ConnectOptions) -> Vec<Member> {
        options.conninfo.hosts().iter().map(|host| blank(options, host)).collect()
    }

    /// Asks every member.
    ///
    /// Dropping the future forgets the sessions that were in use; the next round connects anew.
    pub async fn ask(&mut self) -> Vec<Member> {
        let hosts = self.options.conninfo.hosts().to_vec();
        let asked = hosts.iter().enumerate().zip(self.sessions.iter_mut()).map(|((index, host), slot)| {
            let options = ConnectOptions { host: Some(index), ..self.options.clone() };
            let clock = Arc::clone(&self.clock);
            async move {
                let session = slot.take().filter(SqlSession::is_open);
                match timeout(PATIENCE, ask(&options, host, session, clock.as_ref())).await {
                    Ok((member, session)) => {
                        *slot = session;
                        member
                    }
                    Err(_) => Member {
                        error: Some(
                            Error::new(ErrorCode::PostgresFailed, format!("{host} does not answer"))
                                .because(format!("no answer within {} s", PATIENCE.as_secs())),
                        ),
                        ..blank(&options, host)
                    },
                }
            }
        });
        futures_util::future::join_all(asked).await
    }
}

fn blank(options: &ConnectOptions, host: &Host) -> Member {
    let name = match &host.name {
        HostName::Tcp(name) => name.clone(),
        HostName::Unix(directory) => directory.display().to_string(),
    };
    Member { host: name, port: host.port, role: options.conninfo.user().to_owned(), ..Member::default() }
}

async fn ask(
    options: &ConnectOptions,
    host: &Host,
    session: Option<SqlSession>,
    clock: &dyn Clock,
) -> (Member, Option<SqlSession>) {
    let mut member = blank(options, host);
    let session = match session {
        Some(session) => session,
        None => match sql::connect(options).await {
            Ok(session) => session,
            Err(error) => {
                member.error = Some(error.explain(format!("cannot connect to {host}")));
                return (member, None);
            }
        },
    };
    match fill(&mut member, &session, clock).await {
        Ok(()) => (member, Some(session)),
        Err(error) => {
            member.error = Some(error.explain(format!("cannot ask {host}")));
            (member, None)
        }
    }
}

async fn fill(member: &mut Member, session: &SqlSession, clock: &dyn Clock) -> Result<(), PgError> {
    member.version = Some(session.server_version());
    member.in_recovery = Some(session.is_in_recovery().await?);
    member.settings = Some(session.settings().await?);
    member.slots = session.slots().await?;
    member.replication = session.replication().await?;
    member.current_lsn = session.current_lsn().await?;
    member.rights = Some(session.rights().await?);
    let before = clock.now();
    let server = session.server_time().await?.to_datetime();
    // Between the two is when the server looked at its clock.
    let middle = before + (clock.now() - before) / 2;
    member.clock_ahead_ms = Some((server - middle).num_milliseconds());
    Ok(())
}
