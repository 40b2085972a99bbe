//! Keeps our replication slot on every member, so that a failover leaves no gap.
//!
//! A physical slot does not move with the primary: the next primary has only the slots that were made on it while it was a
//! standby. pgvault makes its own on each member and lets it go on as WAL becomes durable here.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wal::Lsn;

use crate::clock::Clock;
use crate::primary::sql::{MemberSlot, SqlSession};
use crate::primary::{ConnectOptions, Host, HostName, PgError, SlotName};
use crate::receiver::contact;
use crate::wal_pipeline::WalStatus;

mod apart;
pub mod branch;
pub mod decide;

use apart::Apart;
use branch::Branch;
use decide::{Act, Ours, Seen, SeenSlot, Why, decide};

/// PostgreSQL 18 gives up slots that nobody has used for `idle_replication_slot_timeout`, a minute or more.
const IDLE_TIMEOUT_SINCE: u32 = 180_000;
/// How often a slot that need not move is used all the same.
const TOUCH_EVERY: Duration = Duration::from_secs(20);

/// Cares for the slots of one cluster.
#[derive(Debug)]
pub struct SlotKeeper {
    slot: SlotName,
    clock: Arc<dyn Clock>,
    /// Since when a member has been on a branch that we left.
    left: HashMap<Host, Instant>,
    /// Members on branches of their own.
    apart: Apart,
    /// When the slot of a member was last used by us.
    touched: HashMap<Host, Instant>,
    /// What was last logged of a member, so that it is logged once.
    said: HashMap<Host, String>,
}

impl SlotKeeper {
    /// For a slot of this name.
    pub(super) fn new(slot: SlotName, clock: Arc<dyn Clock>) -> Self {
        Self {
            slot,
            clock,
            left: HashMap::new(),
            apart: Apart::default(),
            touched: HashMap::new(),
            said: HashMap::new(),
        }
    }

    /// Looks at the slot on one member and does what has to be done. Why that did not succeed, if it did not.
    ///
    /// Dropping the future at any point leaves a slot that is as it was, or as it should be.
    pub(super) async fn tend(&mut self, member: &Member<'_>, wal: &WalStatus) -> Option<SlotTrouble> {
        let ours = ours(wal)?;
        let outcome = self.act(member, &ours, wal).await;
        let (said, trouble) = match &outcome {
            Ok((act, kept)) => (describe(*act), self.retained(*act, *kept)),
            Err(error) => (Some(error.to_string()), Some(SlotTrouble::Failed(error.to_string()))),
        };
        match said {
            Some(said) if self.said.get(member.host) != Some(&said) => {
                if outcome.is_err() {
                    tracing::warn!(host = %member.host, slot = %self.slot, error = said, "cannot keep the slot of a member");
                } else {
                    tracing::info!(host = %member.host, slot = %self.slot, "{said}");
                }
                self.said.insert(member.host.clone(), said);
            }
            Some(_) => {}
            None => drop(self.said.remove(member.host)),
        }
        trouble
    }

    /// A slot that is left alone on another branch still makes its server keep WAL.
    fn retained(&self, act: Act, kept: Option<Lsn>) -> Option<SlotTrouble> {
        let kept = kept.filter(|_| act == Act::Leave(Why::OtherBranch))?;
        Some(SlotTrouble::OtherBranch { slot: self.slot.to_string(), kept })
    }

    /// What was done, and from where on the slot kept WAL before.
    async fn act(&mut self, member: &Member<'_>, ours: &Ours, wal: &WalStatus) -> Result<(Act, Option<Lsn>), PgError> {
        let (session, name) = (member.session, &self.slot);
        let look = session.member_slot(name).await?;
        let kept = look.slot.as_ref().filter(|slot| slot.physical).and_then(|slot| slot.restart_lsn);
        let Some(end) = look.end else { return Ok((Act::Leave(Why::UpToDate), kept)) };
        let now = self.clock.instant();
        let since =
            |times: &HashMap<Host, Instant>| times.get(member.host).map(|&then| now.saturating_duration_since(then));
        let seen = Seen {
            in_recovery: look.in_recovery,
            end,
            slot: look.slot.map(seen_slot),
            is_source: wal.source.as_ref().is_some_and(|source| is_host(member.host, source)),
            left_for: since(&self.left).unwrap_or_default(),
            touch: session.server_version().number() >= IDLE_TIMEOUT_SINCE
                && since(&self.touched).is_none_or(|idle| idle >= TOUCH_EVERY),
        };
        let mut act = decide(ours, &seen, None);
        if act == Act::AskBranch
            && let Some(lately) = self.apart.lately(member.host, now)
        {
            act = lately;
        } else if act == Act::AskBranch {
            let met = contact(&to_watch(member.options)).await?;
            if Some(met.system_identifier) != wal.system_identifier {
                return Err(PgError::Protocol(format!(
                    "system identifier {} is another cluster's",
                    met.system_identifier
                )));
            }
            let branch = Branch { end: met.position.end, history: met.position.history };
            act = decide(ours, &seen, Some(&branch));
            self.apart.asked(member.host, now, act);
        }
        let left = matches!(act, Act::Leave(Why::Left | Why::LeftLately) | Act::Drop);
        if left {
            self.left.entry(member.host.clone()).or_insert(now);
        } else {
            self.left.remove(member.host);
        }
        let may = match act {
            Act::Leave(_) | Act::AskBranch => true,
            Act::Create => made(session.create_physical_slot(name).await)?,
            Act::Renew => session.drop_slot(name).await? && made(session.create_physical_slot(name).await)?,
            Act::Advance(to) | Act::Touch(to) => session.advance_slot(name, to).await?.is_some(),
            Act::Drop => session.drop_slot(name).await?,
        };
        if !matches!(act, Act::Leave(_)) {
            self.touched.insert(member.host.clone(), now);
        }
        if may { Ok((act, kept)) } else { Err(PgError::Protocol("the role lacks REPLICATION".to_owned())) }
    }
}

/// What is wrong with our slot on a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SlotTrouble {
    /// It cannot be made or moved, for this reason.
    Failed(String),
    /// The member is on another branch, which we may yet have to follow: its slot stays and keeps WAL.
    OtherBranch {
        /// The slot.
        slot: String,
        /// First byte that it keeps.
        kept: Lsn,
    },
}

impl fmt::Display for SlotTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(reason) => f.write_str(reason),
            Self::OtherBranch { kept, .. } => {
                write!(
                    f,
                    "the member is on another branch than the one that is followed, and keeps WAL from {kept} on for us"
                )
            }
        }
    }
}

/// A member that answers.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Which.
    pub(super) host: &'a Host,
    /// How to connect to it alone.
    pub(super) options: &'a ConnectOptions,
    /// A session with it.
    pub(super) session: &'a SqlSession,
}

/// Another name than the stream's: nobody is to take a connection that only asks for a synchronous standby.
fn to_watch(options: &ConnectOptions) -> ConnectOptions {
    let name = options.conninfo.application_name().unwrap_or(&options.application_name);
    let conninfo = options.conninfo.clone().with_application_name(format!("{name}_watch"));
    ConnectOptions { conninfo, ..options.clone() }
}

/// What we hold; `None` before anything was received: then nothing is known of which WAL is needed.
fn ours(wal: &WalStatus) -> Option<Ours> {
    let branch = wal.followed.as_ref()?;
    Some(Ours {
        branch: Branch { history: branch.history.clone(), end: branch.durable },
        segment_size: wal.segment_size?,
        streaming: wal.streaming(),
    })
}

fn seen_slot(slot: MemberSlot) -> SeenSlot {
    SeenSlot {
        physical: slot.physical,
        active: slot.active,
        lost: slot.restart_lsn.is_none() || slot.wal_status.as_deref() == Some("lost"),
        restart: slot.restart_lsn,
    }
}

/// Whether the slot is there now. That someone else, such as the receiver, was quicker is as good.
fn made(result: Result<Option<Lsn>, PgError>) -> Result<bool, PgError> {
    match result {
        Ok(position) => Ok(position.is_some()),
        Err(error) if error.is_duplicate_slot() => Ok(true),
        Err(error) => Err(error),
    }
}

/// Whether a server is the one of this name and port, as the board has it.
fn is_host(host: &Host, (name, port): &(String, u16)) -> bool {
    let same = match &host.name {
        HostName::Tcp(host) => host == name,
        HostName::Unix(directory) => *directory.to_string_lossy() == **name,
    };
    same && host.port == *port
}

/// What is worth a line in the log; advancing is the daily bread.
fn describe(act: Act) -> Option<String> {
    let text = match act {
        Act::Create => "slot made, with WAL kept from now on",
        Act::Renew => "slot was lost and is made anew",
        Act::Drop => "slot dropped: the member is on a branch that was left",
        Act::Leave(Why::LeftLately) => "the member is on a branch that was left: its slot goes unless it comes back",
        Act::Leave(Why::Left) => "the member is on a branch that was left: no slot is made on it",
        Act::Leave(Why::OtherBranch) => "the member is on another branch: its slot is left alone",
        Act::Leave(Why::NotOurs) => "a logical slot has our name: it is left alone",
        Act::Leave(_) | Act::AskBranch | Act::Advance(_) | Act::Touch(_) => return None,
    };
    Some(text.to_owned())
}
