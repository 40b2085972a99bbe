//! What a person reads when more than one server claims to be the cluster.

use super::{Choice, Decision, Follower};
use crate::error::{Error, ErrorCode};

/// The alarm that a decision raises, if it does.
pub(super) fn conflict(follower: &Follower, decision: &Decision, cluster: &str) -> Option<Error> {
    if !decision.rivals.is_empty() {
        return Some(two_primaries(follower, decision, cluster));
    }
    let stranger = *decision.strangers.first()?;
    let seen = follower.seen(stranger)?;
    Some(
        Error::new(
            ErrorCode::ForeignCluster,
            format!("{} is not a member of cluster \"{cluster}\"", follower.host(stranger)),
        )
        .because(format!("it has system identifier {}; it is not followed", seen.system_identifier))
        .help("take it out of conninfo, or give it a cluster name of its own"),
    )
}

fn two_primaries(follower: &Follower, decision: &Decision, cluster: &str) -> Error {
    let describe = |member: usize| {
        let position = follower.seen(member).map(|seen| &seen.position);
        position.map_or_else(
            || follower.host(member).to_owned(),
            |position| {
                format!("{}, timeline {}, at {}", follower.host(member), position.history.timeline(), position.end)
            },
        )
    };
    let message = format!("more than one server takes writes as \"{cluster}\"");
    let error = match decision.choice {
        Choice::Primary(source) => {
            Error::new(ErrorCode::TimelineConflict, message).because(format!("followed: {}", describe(source)))
        }
        Choice::Standby(source) => {
            let followed = format!("followed: {}, a standby", describe(source));
            Error::new(ErrorCode::TimelineConflict, message).because(followed)
        }
        Choice::Refused(_) | Choice::Nobody if decision.rivals.len() == 1 => {
            let message =
                format!("the only server that takes writes as \"{cluster}\" does not continue what is stored");
            Error::new(ErrorCode::TimelineConflict, message)
        }
        Choice::Refused(_) | Choice::Nobody => Error::new(ErrorCode::TimelineConflict, message)
            .because("none can be told to be the right one: none is followed"),
    };
    let error =
        decision.rivals.iter().fold(error, |error, &rival| error.because(format!("not followed: {}", describe(rival))));
    error
        .because("what is written there is not received; what is stored stays as it is")
        .help("stop the server that is not to be the primary, and rebuild it as a standby (pg_rewind)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::primary::{ConnectOptions, Conninfo, Environment};
    use crate::receiver::follow::{Seen, Witness};
    use crate::receiver::start::ServerPosition;
    use wal::{Lsn, SystemIdentifier, TimelineHistory, TimelineId};

    #[tokio::test]
    async fn the_alarm_names_every_server_with_its_timeline_and_position() {
        let conninfo = Conninfo::parse("host=a,b user=x", &Environment::default()).unwrap();
        let mut follower = Follower::new(ConnectOptions::new(conninfo, "pgvault"), Witness::silent());
        for (member, timeline) in [(0, 1), (1, 2)] {
            let history = TimelineHistory::root(TimelineId::new(timeline).unwrap());
            follower.members[member].seen = Some(Seen {
                system_identifier: SystemIdentifier::new(7),
                in_recovery: false,
                position: ServerPosition { history, end: Lsn::new(0x300_0000) },
            });
        }
        let none = Decision { choice: Choice::Primary(0), rivals: vec![], strangers: vec![] };
        assert!(conflict(&follower, &none, "main").is_none());
        let two = Decision { rivals: vec![1], ..none.clone() };
        let said = conflict(&follower, &two, "main").unwrap().to_string();
        for fact in ["a:5432, timeline 1", "b:5432, timeline 2", "0/3000000", "\"main\""] {
            assert!(said.contains(fact), "{said}");
        }
        let stranger = conflict(&follower, &Decision { strangers: vec![1], ..none }, "main").unwrap();
        assert_eq!(stranger.code(), ErrorCode::ForeignCluster);
    }
}
