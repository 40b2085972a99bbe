//! The members of a cluster as its HA manager sees them.

use wal::TimelineId;

use crate::primary::{Host, HostName};

/// What Patroni last said. The default, where nothing was asked, knows no member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Topology {
    /// Every member that told Patroni where it listens.
    pub members: Vec<KnownMember>,
    /// Patroni is paused: nobody is promoted by itself.
    pub paused: bool,
    /// What Patroni does with slots, as its dynamic configuration says; `None` before that was read.
    pub slots: Option<SlotRules>,
    /// Why nobody could be asked in the last round; what is known is older then.
    pub error: Option<String>,
}

/// One member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownMember {
    /// Its name in Patroni.
    pub name: String,
    /// Where its PostgreSQL listens.
    pub host: Host,
    /// What it is.
    pub role: Role,
    /// Its state in Patroni's words: `running`, `streaming`, `in archive recovery`, `stopped`, ….
    pub state: String,
    /// Its timeline.
    pub timeline: Option<TimelineId>,
}

/// What a member is to Patroni.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It holds the leader key.
    Leader,
    /// It holds the leader key of a cluster that is itself a standby of another one: in recovery.
    StandbyLeader,
    /// Anything else.
    Replica,
}

/// `slots` and `ignore_slots` of the dynamic configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotRules {
    /// Names of permanent physical slots: Patroni keeps them on every member.
    pub permanent: Vec<String>,
    /// Name and type of slots that it leaves alone; what is absent matches anything.
    pub ignored: Vec<(Option<String>, Option<String>)>,
}

/// Who cares for a slot under Patroni.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotOwner {
    /// Patroni leaves it alone: it is ours.
    Ignored,
    /// Patroni makes and advances it.
    Permanent,
    /// Patroni drops it.
    Nobody,
}

impl SlotRules {
    /// Who cares for the physical slot of this name.
    pub fn owner_of(&self, slot: &str) -> SlotOwner {
        if self.permanent.iter().any(|name| name == slot) {
            return SlotOwner::Permanent;
        }
        let fits = |(name, kind): &(Option<String>, Option<String>)| {
            name.as_deref().is_none_or(|name| name == slot) && kind.as_deref().is_none_or(|kind| kind == "physical")
        };
        if self.ignored.iter().any(fits) { SlotOwner::Ignored } else { SlotOwner::Nobody }
    }
}

impl Topology {
    /// The member that holds the leader key, of either kind.
    pub fn leader(&self) -> Option<&KnownMember> {
        self.members.iter().find(|member| member.role != Role::Replica)
    }

    /// What is left of it when nobody could be asked. Where the members are does not become wrong by being old; what they are,
    /// and what Patroni does with slots, does when it is `too_old`.
    #[must_use]
    pub(super) fn after_silence(self, error: String, too_old: bool) -> Self {
        let mut known = Self { error: Some(error), ..self };
        if too_old {
            for member in &mut known.members {
                (member.role, member.timeline) = (Role::Replica, None);
                "unknown".clone_into(&mut member.state);
            }
            (known.paused, known.slots) = (false, None);
        }
        known
    }

    /// Where the members are, in Patroni's order: it does not change when another one leads.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        self.members.iter().map(|member| &member.host)
    }

    /// The member with this host and port.
    pub fn member_at(&self, host: &str, port: u16) -> Option<&KnownMember> {
        let same =
            |member: &&KnownMember| member.host.port == port && member.host.name == HostName::Tcp(host.to_owned());
        self.members.iter().find(same)
    }
}

impl KnownMember {
    /// The slot that Patroni makes for this member where it is a standby (`slot_name_from_member_name`): lower case, `-`
    /// and `.` as `_`, everything else that cannot stand in a name by its number, 63 characters.
    pub fn slot_name(&self) -> String {
        let mut name = String::new();
        for c in self.name.to_lowercase().chars() {
            match c {
                'a'..='z' | '0'..='9' | '_' => name.push(c),
                '-' | '.' => name.push('_'),
                _ => name.push_str(&format!("u{:04}", u32::from(c))),
            }
        }
        name.chars().take(63).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_silent_api_said_is_forgotten_but_for_where_the_members_are() {
        let host = Host { name: HostName::Tcp("h".to_owned()), address: None, port: 1 };
        let member = KnownMember {
            name: "pg1".to_owned(),
            host: host.clone(),
            role: Role::Leader,
            state: "running".to_owned(),
            timeline: Some(TimelineId::FIRST),
        };
        let slots = Some(SlotRules { permanent: vec!["pgvault".to_owned()], ignored: Vec::new() });
        let told = Topology { members: vec![member], paused: true, slots, error: None };
        let lately = told.clone().after_silence("refused".to_owned(), false);
        assert_eq!(lately, Topology { error: Some("refused".to_owned()), ..told });
        let old = lately.after_silence("refused".to_owned(), true);
        assert_eq!((old.leader(), old.paused, &old.slots), (None, false, &None));
        assert_eq!(old.hosts().collect::<Vec<_>>(), [&host]);
    }

    #[test]
    fn slots_of_members_are_named_as_patroni_does() {
        let named = |name: &str| {
            let host = Host { name: HostName::Tcp("h".to_owned()), address: None, port: 1 };
            let member =
                KnownMember { name: name.to_owned(), host, role: Role::Replica, state: String::new(), timeline: None };
            member.slot_name()
        };
        let cases = [("pg-1.example", "pg_1_example"), ("PGVault", "pgvault"), ("a b", "au0032b"), ("é", "u0233")];
        for (member, slot) in cases {
            assert_eq!(named(member), slot);
        }
        assert_eq!(named(&"x".repeat(80)).len(), 63);
    }
}
