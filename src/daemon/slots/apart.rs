//! Members that are on a branch of their own: asked now and then, not every time.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::decide::{Act, Why};
use crate::primary::Host;

/// How often such a member is asked on which branch it is: each time takes a connection, and only a person brings it back.
const ASK_EVERY: Duration = Duration::from_secs(60);

/// What was decided about members that are apart, and when they were asked.
#[derive(Debug, Default)]
pub(super) struct Apart {
    members: HashMap<Host, (Instant, Act)>,
}

impl Apart {
    /// What was decided lately: then the member need not be asked again.
    pub(super) fn lately(&self, host: &Host, now: Instant) -> Option<Act> {
        let &(asked, act) = self.members.get(host)?;
        (now.saturating_duration_since(asked) < ASK_EVERY).then_some(act)
    }

    /// A member was asked, and this is what follows.
    pub(super) fn asked(&mut self, host: &Host, now: Instant, act: Act) {
        match act {
            Act::Leave(Why::OtherBranch | Why::Left | Why::LeftLately) => {
                self.members.insert(host.clone(), (now, act));
            }
            Act::Leave(_) | Act::AskBranch | Act::Create | Act::Renew | Act::Advance(_) | Act::Touch(_) | Act::Drop => {
                self.members.remove(host);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::primary::HostName;

    #[test]
    fn who_is_apart_is_asked_once_a_minute_and_who_is_not_each_time() {
        let host = Host { name: HostName::Tcp("pg2".to_owned()), address: None, port: 5432 };
        let now = SystemClock.instant();
        let mut apart = Apart::default();
        assert_eq!(apart.lately(&host, now), None);
        let other = Act::Leave(Why::OtherBranch);
        apart.asked(&host, now, other);
        assert_eq!(apart.lately(&host, now + ASK_EVERY / 2), Some(other));
        assert_eq!(apart.lately(&host, now + ASK_EVERY), None);
        apart.asked(&host, now, Act::Create);
        assert_eq!(apart.lately(&host, now), None);
    }
}
