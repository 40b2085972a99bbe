//! Whether two members are one server under two names.
//!
//! Nothing that a server tells over the replication protocol is its own: two standbys that were promoted at one position, or
//! the two copies of one volume, have the same identifier, the same timeline and, to the byte, the same history. But a slot
//! that is made on one of them is there on the other only when there is no other.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::choose::Seen;
use crate::primary::{ConnectOptions, PgError, ReplicationConnection, SlotName};

/// How long the question may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// After so long it is asked again: a name may have moved to another server.
const AGAIN: Duration = Duration::from_secs(30);
/// The same where it could not be found out.
const SOON: Duration = Duration::from_secs(3);

/// What was found out about pairs of members.
#[derive(Debug, Default)]
pub(super) struct Twins {
    known: BTreeMap<(usize, usize), Answer>,
}

#[derive(Clone, Copy, Debug)]
struct Answer {
    /// Whether they are one server; `None` while it could not be found out.
    one: Option<bool>,
    at: Instant,
}

impl Answer {
    fn again(&self) -> Instant {
        self.at + if self.one.is_some() { AGAIN } else { SOON }
    }
}

impl Twins {
    /// Which pairs are to be asked: members that take writes and tell the same of themselves.
    pub(super) fn to_ask(&self, seen: &[Option<&Seen>], now: Instant) -> Vec<(usize, usize)> {
        let writers: Vec<(usize, &Seen)> = seen
            .iter()
            .enumerate()
            .filter_map(|(member, seen)| Some((member, (*seen)?)))
            .filter(|(_, seen)| !seen.in_recovery)
            .collect();
        let mut pairs = Vec::new();
        for (index, &(first, one)) in writers.iter().enumerate() {
            for &(second, other) in &writers[index + 1..] {
                let alike =
                    one.system_identifier == other.system_identifier && one.position.history == other.position.history;
                let fresh = self.known.get(&(first, second)).is_some_and(|answer| now < answer.again());
                if alike && !fresh {
                    pairs.push((first, second));
                }
            }
        }
        pairs
    }

    /// Notes an answer. One that could not be had says nothing against the one before.
    pub(super) fn note(&mut self, pair: (usize, usize), one: Option<bool>, now: Instant) {
        let before = self.known.get(&pair).and_then(|answer| answer.one);
        self.known.insert(pair, Answer { one: one.or(before), at: now });
    }

    /// The pairs that are two servers.
    pub(super) fn apart(&self) -> Apart {
        let two = self.known.iter().filter(|(_, answer)| answer.one == Some(false));
        Apart { pairs: two.map(|(&pair, _)| pair).collect() }
    }
}

/// Pairs of members that were found to be two servers, whatever they tell of themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::receiver) struct Apart {
    pub(super) pairs: Vec<(usize, usize)>,
}

impl Apart {
    /// Whether these two are.
    pub(super) fn are(&self, one: usize, other: usize) -> bool {
        self.pairs.contains(&(one.min(other), one.max(other)))
    }
}

/// Asks both: a temporary slot of this name, which keeps no WAL, is made on one and then on the other. `None` when it cannot be
/// found out: no slot is free, or one of them does not answer or is no primary any more.
pub(super) async fn are_one(one: &ConnectOptions, other: &ConnectOptions, name: &SlotName) -> Option<bool> {
    let asked = async {
        let (mut one, mut other) = tokio::try_join!(primary(one), primary(other))?;
        one.create_temporary_slot(name).await?;
        match other.create_temporary_slot(name).await {
            Ok(()) => Ok(false),
            Err(error) if error.is_duplicate_slot() => Ok(true),
            Err(error) => Err(error),
        }
    };
    match timeout(PATIENCE, asked).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            tracing::debug!(%error, "whether two members are one server cannot be found out");
            None
        }
        Err(_) => None,
    }
}

async fn primary(options: &ConnectOptions) -> Result<ReplicationConnection, PgError> {
    let mut connection = ReplicationConnection::connect(options).await?;
    if connection.in_recovery().await? {
        return Err(PgError::Protocol("it is a standby now".to_owned()));
    }
    Ok(connection)
}

#[cfg(test)]
mod tests {
    use wal::{Lsn, SystemIdentifier, TimelineHistory, TimelineId};

    use super::*;
    use crate::receiver::start::ServerPosition;

    fn seen(in_recovery: bool, text: &str) -> Seen {
        let timeline = TimelineId::new(if text.is_empty() { 1 } else { 2 }).unwrap();
        let history = TimelineHistory::parse(timeline, text.as_bytes()).unwrap();
        Seen {
            system_identifier: SystemIdentifier::new(7),
            in_recovery,
            position: ServerPosition { history, end: Lsn::new(0x500) },
        }
    }

    #[test]
    fn writers_with_one_history_are_asked_about_now_and_then() {
        let (primary, forked, standby) = (seen(false, ""), seen(false, "1\t0/300\tx\n"), seen(true, ""));
        let all = [Some(&primary), Some(&forked), None, Some(&standby), Some(&primary)];
        let mut twins = Twins::default();
        let start = Instant::now();
        assert_eq!(twins.to_ask(&all, start), [(0, 4)]);
        twins.note((0, 4), None, start);
        assert_eq!((twins.apart(), twins.to_ask(&all, start)), (Apart::default(), vec![]));
        let now = start + SOON;
        assert_eq!(twins.to_ask(&all, now), [(0, 4)]);
        twins.note((0, 4), Some(false), now);
        assert_eq!(twins.to_ask(&all, now), []);
        assert!(twins.apart().are(0, 4) && twins.apart().are(4, 0) && !twins.apart().are(0, 1));
        let later = now + AGAIN;
        assert_eq!(twins.to_ask(&all, later), [(0, 4)]);
        twins.note((0, 4), None, later);
        assert!(twins.apart().are(0, 4), "silence takes nothing back");
        twins.note((0, 4), Some(true), later);
        assert_eq!(twins.apart(), Apart::default());
    }
}
