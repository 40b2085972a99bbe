//! From what we hold to a member to stream from, and away from it when another is to be followed.

use std::time::Duration;

use tokio::time::Instant;
use wal::{Lsn, PgTime, SegmentSize, TimelineHistory, TimelineId};

use super::conflict::conflict;
use super::{Choice, Decision, Follower, Leaning, Ours, Witness};
use crate::error::{Error, ErrorCode, Result};
use crate::primary::ConnectOptions;
use crate::receiver::contact::{Contact, contact};
use crate::receiver::start::{self, ServerPosition, Start};
use crate::receiver::trouble::Trouble;
use crate::receiver::{PATIENCE_WITH_A_LENDER, Receiver};
use crate::repository::ClusterName;
use crate::wal_pipeline::Failover;

/// How many changes of the timeline are remembered.
const FAILOVERS_KEPT: usize = 50;
/// How long we do without any source before a standby will do: a primary that is only restarted is back by then.
const BEFORE_A_STANDBY: Duration = Duration::from_secs(2);

/// Silence of a source that makes us ask it over another connection; an idle server's keepalives come every half minute.
const QUIET_MICROS: i64 = 10_000_000;

/// The member to stream from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::receiver) struct Source {
    /// Its number in the conninfo.
    pub(in crate::receiver) member: usize,
    /// Whether it was a standby when it was chosen.
    pub(in crate::receiver) standby: bool,
    /// It only lends what the member to follow has removed, up to this position.
    pub(in crate::receiver) until: Option<Lsn>,
}

impl Source {
    fn primary(member: usize) -> Self {
        Self { member, standby: false, until: None }
    }

    /// With whom we stay after a stream from here, at whose end we were `loyal` to this member or not. A member that only
    /// lent leaves it as it was: between two primaries it may be the very rival.
    pub(in crate::receiver) fn stays_with(self, before: Option<usize>, loyal: bool) -> Option<usize> {
        if self.until.is_some() { before } else { loyal.then_some(self.member) }
    }
}

impl Receiver {
    /// Asks the members and chooses one. A single host is streamed from whatever it is: it may be a name that moves.
    pub(in crate::receiver) async fn find_source(
        &mut self,
        follower: &mut Follower,
    ) -> std::result::Result<Source, Trouble> {
        if follower.count() == 1 {
            return Ok(Source::primary(0));
        }
        let ours = self.ours()?;
        let without_since = *self.without_since.get_or_insert_with(Instant::now);
        let waited = without_since.elapsed() >= BEFORE_A_STANDBY;
        let leaning =
            Leaning { loyal_to: self.loyal_to, last: self.last, standby_will_do: waited, ..follower.leaning() };
        let decision = follower.look(&ours, leaning).await;
        match decision.choice {
            Choice::Primary(member) | Choice::Standby(member) => {
                let standby = matches!(decision.choice, Choice::Standby(_));
                Ok(self.lender(follower, &ours, member).unwrap_or(Source { standby, ..Source::primary(member) }))
            }
            // Its refusal is told by the same checks as any other's; but first the right one may come.
            Choice::Refused(member) if waited => Ok(Source::primary(member)),
            Choice::Nobody if waited && !decision.rivals.is_empty() => {
                self.note_conflict(follower, &decision);
                let cluster = self.settings.cluster.as_str();
                Err(conflict(follower, &decision, cluster).map_or_else(|| follower.nobody().into(), Trouble::Refused))
            }
            Choice::Refused(_) | Choice::Nobody => Err(Trouble::NoSource(follower.nobody())),
        }
    }

    /// When the member to follow has removed what we need next: another one that has it, and up to where it is wanted.
    fn lender(&mut self, follower: &Follower, ours: &Ours, chosen: usize) -> Option<Source> {
        let cluster = self.spool.system_identifier();
        let removed = self.removed.as_mut()?;
        let next = &follower.seen(chosen)?.position;
        // It is about what we need now, and not about what was lost and gone on without.
        match start::decide(ours.held, &ours.history, next, ours.segment_size) {
            Start::At { timeline, start, .. } if (timeline, start) == (removed.timeline, removed.start) => {}
            _ => return None,
        }
        let asked =
            removed.asked.iter().filter(|&(_, &times)| times >= PATIENCE_WITH_A_LENDER).map(|(&member, _)| member);
        let member = follower.lender(&asked.collect::<Vec<_>>(), cluster, removed.timeline, removed.start)?;
        let position = &follower.seen(member)?.position;
        let end = position.history.switch_point_of(removed.timeline).unwrap_or(position.end);
        let until = next.history.switch_point_of(removed.timeline).map_or(end, |fork| fork.min(end));
        *removed.asked.entry(member).or_default() += 1;
        tracing::info!(host = follower.host(member), timeline = %removed.timeline, start = %removed.start, %until, "has what the next server removed");
        Some(Source { member, standby: true, until: Some(until) })
    }

    /// What the members are measured by.
    pub(in crate::receiver) fn ours(&self) -> std::result::Result<Ours, Trouble> {
        let held = self.held();
        let timeline = held.map_or(TimelineId::FIRST, |held| held.timeline);
        Ok(Ours {
            system_identifier: Some(self.spool.system_identifier()),
            held,
            history: self.spool.history(timeline)?,
            segment_size: self.spool.segment_size(),
        })
    }

    /// Tells whom we stream from, and that a new timeline is followed.
    pub(in crate::receiver) fn note_source(
        &mut self,
        source: Source,
        host: &(String, u16),
        version: u32,
        timeline: TimelineId,
        server: &ServerPosition,
        gap: bool,
    ) {
        let held = self.held().map(|held| held.timeline);
        let before = self.followed.or(held);
        let at = self.clock.now();
        self.board.update(|status| {
            // Nothing of the new timeline is held yet: what is missing is missing at the switch.
            if let Some(last) =
                status.failovers.last_mut().filter(|last| gap && last.timeline == timeline && held < Some(timeline))
            {
                last.gap = true;
            }
            if let Some(left) = before.filter(|&before| before < timeline) {
                let lsn = server.history.switch_point_of(left);
                status.failovers.push(Failover {
                    at,
                    from: status.source.clone(),
                    to: host.clone(),
                    lsn,
                    timeline,
                    gap,
                });
                let excess = status.failovers.len().saturating_sub(FAILOVERS_KEPT);
                status.failovers.drain(..excess);
                status.counters.timeline_switches += 1;
            }
            status.source = Some(host.clone());
            status.primary = (!source.standby).then(|| host.clone());
            status.postgres_version = Some(version);
            status.slot = self.settings.slot.as_ref().map(ToString::to_string);
            status.slot_lost = None;
        });
        self.followed = before.max(Some(timeline));
    }

    /// Whom we stayed with when this process began, if that is still a member.
    pub(in crate::receiver) async fn remember(&mut self, follower: &Follower) {
        self.loyal_to = self.loyalty.read().await.and_then(|host| follower.number_of_text(&host));
    }

    /// Stays with this member and no other.
    pub(in crate::receiver) async fn stream_begins(&mut self, source: Source) {
        if source.until.is_some() {
            return;
        }
        self.last = Some(source.member);
        if self.loyal_to.is_some_and(|stays_with| stays_with != source.member) {
            self.loyal_to = None;
            self.loyalty.write(None).await;
        }
    }

    /// Whether the server has said nothing for longer than a busy one is silent.
    fn is_quiet(&self) -> bool {
        let now = PgTime::from(self.clock.now());
        let last = self.board.read(|status| status.last_message);
        last.is_none_or(|last| now.as_micros().saturating_sub(last.as_micros()) > QUIET_MICROS)
    }

    /// Tells a conflict, and that it is over.
    pub(in crate::receiver) fn note_conflict(&self, follower: &Follower, decision: &Decision) {
        let now = conflict(follower, decision, self.settings.cluster.as_str());
        if self.board.read(|status| status.conflict.as_ref().map(ToString::to_string))
            == now.as_ref().map(ToString::to_string)
        {
            return;
        }
        let known = self.board.read(|status| status.conflict.is_some());
        match &now {
            Some(error) if !known => {
                tracing::error!(cluster = %self.settings.cluster, error = %error.in_one_line(), "conflict")
            }
            None if known => tracing::info!(cluster = %self.settings.cluster, "the conflict is over"),
            Some(_) | None => {}
        }
        self.board.update(|status| status.conflict = now);
    }
}

/// Watches the members while `source` streams; returns when another is to be streamed from. With a single one it never does,
/// nor while one lends: that ends by itself.
///
/// Returns too when the spool cannot be read any more: whoever streams will notice.
pub(in crate::receiver) async fn elsewhere(
    receiver: &Receiver,
    follower: &mut Follower,
    source: Source,
    loyal: &mut bool,
) {
    while follower.count() == 1 || source.until.is_some() {
        follower.witness_changed().await;
    }
    // A single look may see two moments of one failover: what it finds is told when the next one finds it as well.
    let mut suspected = false;
    loop {
        follower.next_watch(source).await;
        let Ok(ours) = receiver.ours() else { continue };
        let quiet = receiver.is_quiet();
        let decision = follower.watch_round(source, quiet, &ours).await;
        let conflict = !decision.rivals.is_empty() || !decision.strangers.is_empty();
        if conflict == suspected {
            receiver.note_conflict(follower, &decision);
        }
        suspected = conflict;
        match decision.choice {
            Choice::Primary(other) | Choice::Standby(other) if other != source.member => return,
            Choice::Primary(_) if *loyal == decision.rivals.is_empty() => {
                *loyal = !decision.rivals.is_empty();
                receiver.loyalty.write(loyal.then(|| follower.host(source.member))).await;
            }
            _ => {}
        }
    }
}

/// First words with the member that is to be followed, before anything is known of the cluster or where nothing is to be
/// continued.
pub(crate) async fn meet(
    options: &ConnectOptions,
    witness: Witness,
    cluster: &ClusterName,
    doing: &str,
) -> Result<Contact> {
    let explain = |error: crate::primary::PgError| error.explain(doing);
    let mut follower = Follower::new(options.clone(), witness);
    if follower.count() == 1 {
        return contact(options).await.map_err(explain);
    }
    let ours = Ours {
        system_identifier: None,
        held: None,
        history: TimelineHistory::root(TimelineId::FIRST),
        segment_size: SegmentSize::DEFAULT,
    };
    let leaning = Leaning { standby_will_do: true, ..follower.leaning() };
    let decision = follower.look(&ours, leaning).await;
    if let Some(error) = different_clusters(&follower, doing) {
        return Err(error);
    }
    match decision.choice {
        Choice::Primary(member) | Choice::Standby(member) | Choice::Refused(member) => {
            contact(&follower.options_for(member)).await.map_err(explain)
        }
        Choice::Nobody => match conflict(&follower, &decision, cluster.as_str()) {
            Some(error) => Err(error),
            None => Err(explain(follower.nobody())),
        },
    }
}

/// Hosts of different clusters under one name: nobody can say which one is meant.
fn different_clusters(follower: &Follower, doing: &str) -> Option<Error> {
    let mut seen = (0..follower.count()).filter_map(|member| Some((member, follower.seen(member)?.system_identifier)));
    let (first, identifier) = seen.next()?;
    let (other, another) = seen.find(|&(_, other)| other != identifier)?;
    Some(
        Error::new(ErrorCode::ForeignCluster, doing)
            .because(format!("{} has system identifier {identifier}", follower.host(first)))
            .because(format!("{} has system identifier {another}", follower.host(other)))
            .help("name the members of one cluster only in conninfo"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_lent_does_not_change_with_whom_we_stay() {
        let lender = Source { member: 1, standby: true, until: Some(Lsn::new(0x500)) };
        assert_eq!(lender.stays_with(Some(0), false), Some(0));
        assert_eq!(lender.stays_with(None, false), None);
        assert_eq!(Source::primary(1).stays_with(Some(0), false), None);
        assert_eq!(Source::primary(1).stays_with(Some(1), true), Some(1));
    }
}
