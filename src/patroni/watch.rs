//! Asks Patroni every other second, and tells when something has changed.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::address::PatroniUrl;
use super::answer;
use super::client::Client;
use super::topology::{SlotRules, Topology};
use crate::primary::{Host, HostName};

/// How often the API is asked. Patroni itself looks every `loop_wait`, ten seconds unless configured otherwise, but tells a
/// change of the leader at once.
const ASK_EVERY: Duration = Duration::from_secs(2);
/// After so many answers the dynamic configuration is read anew.
const CONFIGURATION_EVERY: u32 = 15;
/// What an API that does not answer said longer ago is believed no more, but for where the members are.
const TOO_OLD: Duration = Duration::from_secs(60);
/// How long the name of a host may take to be looked up.
const NAME: Duration = Duration::from_secs(2);

/// Asks until `stop`, and tells every change. A member that is one of `named`, the hosts of the conninfo, is called as it is
/// there. Without URLs there is nothing to do but wait.
pub async fn keep_asking(
    urls: &[PatroniUrl],
    named: &[Host],
    tell: &watch::Sender<Topology>,
    stop: &CancellationToken,
) {
    if urls.is_empty() {
        stop.cancelled().await;
    }
    let mut asker = Asker::default();
    let mut heard_at = Instant::now();
    while !stop.is_cancelled() {
        let round = async {
            let heard = asker.ask(urls, named).await;
            if heard.is_ok() {
                heard_at = Instant::now();
            }
            tell.send_if_modified(|known| {
                let now = match heard {
                    Ok(topology) => topology,
                    Err(error) => known.clone().after_silence(error, heard_at.elapsed() >= TOO_OLD),
                };
                let changed = *known != now;
                if changed {
                    let leader = now.leader().map(|leader| leader.name.as_str());
                    tracing::debug!(leader, error = now.error.as_deref(), "patroni tells");
                }
                *known = now;
                changed
            });
            sleep(ASK_EVERY).await;
        };
        tokio::select! {
            () = round => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Asks the API once: what a client command does.
pub async fn ask_once(urls: &[PatroniUrl], named: &[Host]) -> Topology {
    if urls.is_empty() {
        return Topology::default();
    }
    Asker::default()
        .ask(urls, named)
        .await
        .unwrap_or_else(|error| Topology { error: Some(error), ..Topology::default() })
}

/// Whom to ask first, and what is read from disk for that.
#[derive(Debug, Default)]
struct Asker {
    /// Which URL answered last.
    last: usize,
    /// Made anew after a failure: certificates may have been renewed.
    client: Option<Client>,
    /// What the dynamic configuration says of slots, and how many answers ago it was read.
    slots: (Option<SlotRules>, u32),
}

impl Asker {
    /// The first answer, beginning with the URL that answered last; else what every one of them said.
    async fn ask(&mut self, urls: &[PatroniUrl], named: &[Host]) -> Result<Topology, String> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::new(urls).map_err(|error| error.to_string())?,
        };
        let mut failures = Vec::new();
        for step in 0..urls.len() {
            let index = (self.last + step) % urls.len();
            let url = &urls[index];
            let answer = match client.get(url, "/cluster").await {
                Ok(body) => answer::read(&body).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            match answer {
                Ok(mut topology) => {
                    call_as_named(&mut topology, named).await;
                    topology.slots = self.slot_rules(&client, url).await;
                    self.last = index;
                    self.client = Some(client);
                    return Ok(topology);
                }
                Err(error) => failures.push(format!("{url}: {error}")),
            }
        }
        Err(failures.join("; "))
    }

    async fn slot_rules(&mut self, client: &Client, url: &PatroniUrl) -> Option<SlotRules> {
        let (known, age) = &mut self.slots;
        *age += 1;
        if known.is_none() || *age >= CONFIGURATION_EVERY {
            // An answer that cannot be had says nothing against what is known.
            if let Ok(body) = client.get(url, "/config").await
                && let Ok(rules) = answer::read_slot_rules(&body)
            {
                (*known, *age) = (Some(rules), 0);
            }
        }
        known.clone()
    }
}

/// Calls each member as the conninfo does, where both names lead to the same place: it must not be taken for two servers.
async fn call_as_named(topology: &mut Topology, named: &[Host]) {
    // All names at once: one that nobody answers for holds up no other.
    let places = join_all(named.iter().map(async |host| (host, addresses(host).await))).await;
    let told = join_all(topology.members.iter().map(|member| addresses(&member.host))).await;
    for (member, here) in topology.members.iter_mut().zip(told) {
        let same = |(host, _): &&(&Host, _)| host.name == member.host.name && host.port == member.host.port;
        let known = places.iter().find(same).or_else(|| places.iter().find(|(_, there)| !here.is_disjoint(there)));
        if let Some((host, _)) = known {
            member.host = (*host).clone();
        }
    }
}

async fn addresses(host: &Host) -> HashSet<SocketAddr> {
    match (&host.name, host.address) {
        (HostName::Tcp(_), Some(address)) => HashSet::from([SocketAddr::new(address, host.port)]),
        (HostName::Tcp(name), None) => match timeout(NAME, lookup_host((name.as_str(), host.port))).await {
            Ok(Ok(found)) => found.collect(),
            // Nobody knows the name: it is nobody else's.
            Ok(Err(_)) | Err(_) => HashSet::new(),
        },
        (HostName::Unix(_), _) => HashSet::new(),
    }
}
