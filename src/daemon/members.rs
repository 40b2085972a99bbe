//! What each member of a cluster says about itself, by SQL. Everything here is optional: a role with REPLICATION alone
//! gets less, never an outage.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use super::slots::{self, SlotKeeper, SlotTrouble};
use super::view::Member;
use crate::clock::Clock;
use crate::error::{Error, ErrorCode};
use crate::patroni::Topology;
use crate::primary::sql::{self, SqlSession};
use crate::primary::{ConnectOptions, Host, HostName, PgError, SlotName};
use crate::wal_pipeline::WalStatus;

/// A member that does not answer must not hold up the others.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sessions with the members of one cluster, kept between rounds.
#[derive(Debug)]
pub struct Members {
    options: ConnectOptions,
    clock: Arc<dyn Clock>,
    topology: Option<watch::Receiver<Topology>>,
    sessions: HashMap<Host, SqlSession>,
    keeper: Option<SlotKeeper>,
}

impl Members {
    /// No session yet. With a watch on the members that an HA manager knows, those are asked too.
    pub fn new(options: ConnectOptions, clock: Arc<dyn Clock>, topology: Option<watch::Receiver<Topology>>) -> Self {
        Self { options, clock, topology, sessions: HashMap::new(), keeper: None }
    }

    /// Keeps this slot on every member, when [`Members::keep_slots`] is called.
    pub(super) fn keeping(mut self, slot: SlotName) -> Self {
        self.keeper = Some(SlotKeeper::new(slot, Arc::clone(&self.clock)));
        self
    }

    /// Members that have not been asked yet, so that every series exists from the start.
    pub fn unasked(options: &ConnectOptions) -> Vec<Member> {
        options.conninfo.hosts().iter().map(|host| blank(options, host)).collect()
    }

    /// The hosts of the conninfo, then those that only the HA manager names; each with options for it alone.
    pub fn places(&self) -> Vec<(Host, ConnectOptions)> {
        let known = self.topology.as_ref().map(|topology| topology.borrow().clone()).unwrap_or_default();
        let all = self.options.conninfo.clone().with_more_hosts(known.hosts());
        let alone = |host: &Host| {
            let conninfo = all.clone().for_host(host.clone());
            (host.clone(), ConnectOptions { conninfo, host: Some(0), ..self.options.clone() })
        };
        all.hosts().iter().map(alone).collect()
    }

    /// Asks every member.
    ///
    /// Dropping the future forgets the sessions that were in use; the next round connects anew.
    pub async fn ask(&mut self) -> Vec<Member> {
        let hosts = self.places();
        let asked = hosts.iter().map(|(host, options)| {
            let clock = Arc::clone(&self.clock);
            let session = self.sessions.remove(host).filter(SqlSession::is_open);
            async move {
                match timeout(PATIENCE, ask(options, host, session, clock.as_ref())).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        let error = Error::new(ErrorCode::PostgresFailed, format!("{host} does not answer"))
                            .because(format!("no answer within {} s", PATIENCE.as_secs()));
                        (Member { error: Some(error), ..blank(options, host) }, None)
                    }
                }
            }
        });
        let answers = futures_util::future::join_all(asked).await;
        let (members, sessions): (Vec<_>, Vec<_>) = answers.into_iter().unzip();
        self.sessions =
            hosts.into_iter().zip(sessions).filter_map(|((host, _), session)| Some((host, session?))).collect();
        members
    }

    /// Keeps our slot on every member that a session is open with. Why that did not succeed, by host and port.
    ///
    /// With one member there is nothing to do: its slot is the receiver's.
    pub(super) async fn keep_slots(&mut self, wal: &WalStatus) -> Vec<KeptSlot> {
        let hosts = self.places();
        let Some(keeper) = self.keeper.as_mut().filter(|_| hosts.len() > 1) else { return Vec::new() };
        let mut kept = Vec::new();
        for (host, options) in &hosts {
            let Some(session) = self.sessions.get(host).filter(|session| session.is_open()) else { continue };
            let member = slots::Member { host, options, session };
            let trouble = match timeout(PATIENCE, keeper.tend(&member, wal)).await {
                Ok(trouble) => trouble,
                Err(_) => {
                    // Until the next round has connected anew it holds up nobody.
                    self.sessions.remove(host);
                    Some(SlotTrouble::Failed(format!("no answer within {} s", PATIENCE.as_secs())))
                }
            };
            kept.push(KeptSlot { host: name(host), port: host.port, trouble });
        }
        kept
    }
}

/// How keeping the slot of one member went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KeptSlot {
    /// The member, as [`Member::host`] has it.
    pub(super) host: String,
    /// Its port.
    pub(super) port: u16,
    /// What was wrong, if anything.
    pub(super) trouble: Option<SlotTrouble>,
}

fn name(host: &Host) -> String {
    match &host.name {
        HostName::Tcp(name) => name.clone(),
        HostName::Unix(directory) => directory.display().to_string(),
    }
}

fn blank(options: &ConnectOptions, host: &Host) -> Member {
    Member { host: name(host), port: host.port, role: options.conninfo.user().to_owned(), ..Member::default() }
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
