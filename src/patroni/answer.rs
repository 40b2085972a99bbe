//! Reads what `GET /cluster` answers. The bytes come from outside: every field may be absent or something else.

use serde_json::Value;
use wal::TimelineId;

use super::topology::{KnownMember, Role, SlotRules, Topology};
use crate::primary::{Host, HostName};

/// No cluster has more members; an answer that claims to is none.
const MOST_MEMBERS: usize = 100;
/// Longest name that is taken over.
const LONGEST: usize = 255;

/// The answer cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnswerError {
    /// It is not JSON.
    #[error("the answer is not JSON: {0}")]
    NotJson(String),
    /// It is JSON, and no cluster.
    #[error("the answer names no members: is this Patroni's REST API?")]
    NoMembers,
    /// More than there can be.
    #[error("the answer names {0} members")]
    TooMany(usize),
}

/// Reads an answer. Members that do not say where they listen are left out: they have not started yet.
pub fn read(body: &[u8]) -> Result<Topology, AnswerError> {
    let document: Value = serde_json::from_slice(body).map_err(|error| AnswerError::NotJson(error.to_string()))?;
    let members = document["members"].as_array().ok_or(AnswerError::NoMembers)?;
    if members.len() > MOST_MEMBERS {
        return Err(AnswerError::TooMany(members.len()));
    }
    Ok(Topology {
        members: members.iter().filter_map(member).collect(),
        paused: document["pause"] == true,
        slots: None,
        error: None,
    })
}

/// Reads what `GET /config` answers: the dynamic configuration.
pub fn read_slot_rules(body: &[u8]) -> Result<SlotRules, AnswerError> {
    let document: Value = serde_json::from_slice(body).map_err(|error| AnswerError::NotJson(error.to_string()))?;
    let text = |value: &Value, name: &str| value[name].as_str().map(str::to_owned);
    let permanent = document["slots"].as_object().into_iter().flatten();
    // Without a type a permanent slot is a physical one, unless it names a database.
    let physical = |value: &Value| match value["type"].as_str() {
        Some(kind) => kind == "physical",
        None => value["database"].is_null(),
    };
    let ignored = document["ignore_slots"].as_array().into_iter().flatten();
    Ok(SlotRules {
        permanent: permanent.filter(|(_, slot)| physical(slot)).map(|(name, _)| name.clone()).collect(),
        // A matcher that names a plugin or a database means logical slots.
        ignored: ignored
            .filter(|matcher| matcher.is_object() && matcher["database"].is_null() && matcher["plugin"].is_null())
            .map(|matcher| (text(matcher, "name"), text(matcher, "type")))
            .collect(),
    })
}

fn member(value: &Value) -> Option<KnownMember> {
    let text = |name: &str| value[name].as_str().filter(|text| text.len() <= LONGEST && !text.contains('\0'));
    let host = text("host").filter(|host| !host.is_empty())?;
    let port = u16::try_from(value["port"].as_u64()?).ok().filter(|&port| port != 0)?;
    // `master` until version 4.
    let role = match text("role") {
        Some("leader" | "master") => Role::Leader,
        Some("standby_leader") => Role::StandbyLeader,
        _ => Role::Replica,
    };
    let timeline = value["timeline"].as_u64().and_then(|number| TimelineId::new(u32::try_from(number).ok()?));
    Some(KnownMember {
        name: text("name").unwrap_or(host).to_owned(),
        host: Host { name: HostName::Tcp(host.to_owned()), address: None, port },
        role,
        state: text("state").unwrap_or("unknown").to_owned(),
        timeline,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_patroni_is_read() {
        // As Patroni 4.1.5 gives it.
        let body = br#"{"members": [
            {"name": "pg1", "role": "leader", "state": "running", "api_url": "http://127.0.0.1:8011/patroni",
             "host": "127.0.0.1", "port": 5511, "timeline": 2},
            {"name": "pg2", "role": "replica", "state": "streaming", "api_url": "http://127.0.0.1:8012/patroni",
             "host": "127.0.0.1", "port": 5512, "timeline": 2, "receive_lag": 0, "receive_lsn": "0/5000060", "lag": 0},
            {"name": "pg3", "role": "replica", "state": "start failed", "api_url": "http://127.0.0.1:8013/patroni",
             "host": "127.0.0.1", "port": 5513, "lag": "unknown"},
            {"name": "pg4", "role": "uninitialized", "state": "initializing"}],
            "pause": true, "scope": "demo"}"#;
        let topology = read(body).unwrap();
        assert!(topology.paused);
        let leader = topology.leader().unwrap();
        assert_eq!((leader.name.as_str(), leader.host.port, leader.role), ("pg1", 5511, Role::Leader));
        assert_eq!(leader.timeline, TimelineId::new(2));
        let ports: Vec<u16> = topology.hosts().map(|host| host.port).collect();
        assert_eq!(ports, [5511, 5512, 5513], "the one that has not started yet is left out");
        assert_eq!(topology.members[2].timeline, None);
        assert_eq!(topology.member_at("127.0.0.1", 5512).unwrap().name, "pg2");
    }

    #[test]
    fn a_standby_leader_is_a_leader_in_recovery() {
        let topology = read(br#"{"members":[{"name":"a","role":"standby_leader","host":"h","port":5432}]}"#).unwrap();
        assert_eq!(topology.leader().unwrap().role, Role::StandbyLeader);
    }

    #[test]
    fn it_is_read_who_cares_for_which_slot() {
        use crate::patroni::SlotOwner::{Ignored, Nobody, Permanent};
        let body = br#"{"ttl": 20, "slots": {"mine": {"type": "physical"}, "old": {"cluster_type": "primary"},
            "logical": {"type": "logical", "database": "x", "plugin": "test_decoding"}},
            "ignore_slots": [{"name": "pgvault", "type": "physical"}, {"plugin": "wal2json"}, {"name": "any"}, 7]}"#;
        let rules = read_slot_rules(body).unwrap();
        for (slot, owner) in [
            ("mine", Permanent),
            ("old", Permanent),
            ("logical", Nobody),
            ("pgvault", Ignored),
            ("any", Ignored),
            ("x", Nobody),
        ] {
            assert_eq!(rules.owner_of(slot), owner, "{slot}");
        }
        for nothing in [&b"{}"[..], b"[]", br#"{"slots": [], "ignore_slots": {}}"#] {
            assert_eq!(read_slot_rules(nothing).unwrap().owner_of("pgvault"), Nobody);
        }
    }

    #[test]
    fn whatever_else_comes_is_refused_or_left_out() {
        assert!(matches!(read(b"<html>"), Err(AnswerError::NotJson(_))));
        for other in [&b"{}"[..], b"[]", b"7", br#"{"members": 3}"#, br#"{"members": {}}"#] {
            assert_eq!(read(other), Err(AnswerError::NoMembers));
        }
        let many = format!("{{\"members\":[{}]}}", vec!["{}"; 101].join(","));
        assert_eq!(read(many.as_bytes()), Err(AnswerError::TooMany(101)));
        let strange = br#"{"members": [7, null, {"host": 7, "port": 1}, {"host": "h", "port": 70000},
            {"host": "h", "port": "5432"}, {"host": "", "port": 1}, {"host": "h", "port": 0}, {"host": "h\u0000", "port": 1},
            {"host": "h", "port": 1, "timeline": -1, "role": 3, "state": [], "name": {}}]}"#;
        let members = read(strange).unwrap().members;
        assert_eq!(members.len(), 1);
        assert_eq!((members[0].name.as_str(), members[0].timeline), ("h", None));
    }
}
