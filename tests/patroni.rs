//! Does pgvault follow a cluster under Patroni, with either owner of the slot, and lose nothing? Run by `make integration`.

use std::time::Instant;

use wal::Lsn;

use crate::support::follow_timer::FollowTimer;
use crate::support::ledger::{Ledger, Load};
use crate::support::page::snippet;
use crate::support::patroni::PatroniCluster;
use crate::support::pg::{PgNode, test_dir};
use crate::support::pgvault::Pgvault;
use crate::support::scene::LIMIT;
use crate::support::survivor::nothing_is_lost;

const PAGE: &str = "docs/INTEGRATIONS.md";
const MAJOR: u32 = 17;

/// A cluster under load, with pgvault configured as the page says.
struct Setup {
    cluster: PatroniCluster,
    pgvault: Pgvault,
    ledger: Ledger,
    load: Load,
    began: Instant,
    // Last, so that it outlives everything.
    dir: tempfile::TempDir,
}

/// Starts the cluster as the page's section says, with these words of Patroni besides.
fn setup(section: &str, more: &str) -> Setup {
    let began = Instant::now();
    let dir = test_dir();
    let cluster = PatroniCluster::start(dir.path(), 3, MAJOR, &(snippet(PAGE, section, "yaml") + more));
    let leader = cluster.leader().unwrap();
    let ledger = Ledger::create(&cluster.member(&leader).node, &dir.path().join("ledger"), None);
    let pgvault = Pgvault::new(dir.path());
    // The page's members are these.
    let toml = snippet(PAGE, section, "toml")
        .replace("host=pg1,pg2,pg3 user=pgvault", &cluster.conninfo(&[0, 1, 2]))
        .replace("host=pg1 user=pgvault", &cluster.conninfo(&[0]))
        .replace("[\"http://pg1:8008\", \"http://pg2:8008\", \"http://pg3:8008\"]", &cluster.urls());
    assert!(!toml.contains("pg1"), "{toml}");
    pgvault.config(&format!("{toml}schedule = \"\"\nmax_rpo = \"500ms\"\n"));
    let load = ledger.load(&cluster.member(&leader).node, 3);
    load.wait_for_more(20);
    Setup { cluster, pgvault, ledger, load, began, dir }
}

impl Setup {
    fn leader(&self) -> &PgNode {
        &self.cluster.member(&self.cluster.leader().unwrap()).node
    }

    /// Lets something happen to the leader, waits until another one is followed, and goes on writing there.
    fn change_of_leader(&mut self, what: &str, happen: impl FnOnce(&mut PatroniCluster, &str)) {
        let before = self.cluster.leader().unwrap();
        let others = self.cluster.members().iter().filter(|member| member.name != before);
        let timer = FollowTimer::start(others.map(|member| &member.node));
        let start = Instant::now();
        happen(&mut self.cluster, &before);
        self.cluster.wait("another leader", |cluster| cluster.leader().is_some_and(|leader| leader != before));
        let after = self.cluster.leader().unwrap();
        self.load.redirect(&self.cluster.member(&after).node);
        let waited = timer.stop();
        println!(
            "{what}: {before} -> {after} in {:.1} s; streaming {} ms after the new primary accepts",
            start.elapsed().as_secs_f64(),
            waited.as_millis()
        );
        self.pgvault.wait_streaming();
        self.load.wait_for_more(50);
    }

    /// Every member has the slot, and none of them keeps much.
    fn slots_follow(&self) {
        let restart = |node: &PgNode| -> Option<Lsn> {
            let sql = "SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'pgvault'";
            node.try_sql(sql).ok()?.parse().ok()
        };
        self.leader().sql("SELECT pg_switch_wal()");
        let end: Lsn = self.leader().sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap();
        self.pgvault.wait("slots on every member, near the end", LIMIT, || {
            let near = |node| restart(node).is_some_and(|kept| end.bytes_since(kept) <= 2 << 20);
            self.cluster.members().iter().all(|member| near(&member.node))
        });
    }

    fn nothing_is_lost(self, all_survive: bool) {
        let leader = self.cluster.leader().unwrap();
        let leader = &self.cluster.member(&leader).node;
        self.load.stop();
        nothing_is_lost(&self.pgvault, &self.ledger, leader, self.dir.path(), all_survive);
        println!("{:.0} s in all", self.began.elapsed().as_secs_f64());
    }
}

#[test]
#[ignore = "needs Patroni and etcd: make integration"]
fn patroni_urls_find_members_and_leaders_and_pgvault_owns_the_slots() {
    let mut setup = setup("pgvault owns the slot", "synchronous_mode: true\n");
    let _daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    let (code, backup) = setup.pgvault.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert_eq!(code, 0, "{backup}");
    setup.slots_follow();
    // With synchronous replication nobody else may take over, and Patroni names that one in its own time.
    let synchronous = |cluster: &PatroniCluster| {
        let known = cluster.cluster();
        let named = known["members"].as_array()?.iter().find(|member| member["role"] == "sync_standby")?;
        named["name"].as_str().map(str::to_owned)
    };
    let is_named = |cluster: &PatroniCluster| synchronous(cluster).is_some();
    setup.cluster.wait("a synchronous standby", is_named);
    setup.change_of_leader("switchover", |cluster, _| cluster.switchover(&synchronous(cluster).unwrap()));
    setup.slots_follow();
    setup.cluster.wait("a synchronous standby", is_named);
    let mut killed = String::new();
    setup.change_of_leader("kill -9 of the leader's whole node", |cluster, before| {
        killed = before.to_owned();
        cluster.kill(before);
    });
    // The killed one comes back as a standby, rewound by Patroni, and gets its slot again.
    setup.cluster.revive(&killed);
    setup.slots_follow();
    let (_, checks) = setup.pgvault.json(&["check", "main"]);
    let slot =
        checks["clusters"][0]["checks"].as_array().unwrap().iter().find(|check| check["name"] == "slot").unwrap();
    assert_eq!(slot["status"], "ok", "{slot}");
    setup.nothing_is_lost(true);
}

#[test]
#[ignore = "needs Patroni and etcd: make integration"]
fn with_several_hosts_alone_and_slots_that_patroni_owns() {
    let mut setup = setup("Patroni owns the slot", "");
    let _daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    let (code, backup) = setup.pgvault.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert_eq!(code, 0, "{backup}");
    setup.slots_follow();
    setup.change_of_leader("switchover", |cluster, before| {
        let to = cluster.members().iter().find(|member| member.name != before).unwrap().name.clone();
        cluster.switchover(&to);
    });
    setup.slots_follow();
    setup.change_of_leader("kill -9 of the leader's PostgreSQL", |cluster, before| cluster.kill_postgres(before));
    setup.slots_follow();
    setup.nothing_is_lost(false);
}

#[test]
#[ignore = "needs Patroni and etcd: make integration"]
fn a_new_member_comes_from_the_repository_and_its_leader_is_not_read() {
    let mut setup = setup("pgvault owns the slot", "");
    let _daemon = setup.pgvault.serve();
    setup.pgvault.wait_streaming();
    let (code, backup) = setup.pgvault.json(&["backup", "now", "main", "--wait", "--fast-checkpoint"]);
    assert_eq!(code, 0, "{backup}");
    setup.load.wait_for_more(50);
    let page = snippet(PAGE, "A new replica from the repository", "yaml");
    let program = format!("{} -c {}", setup.pgvault.binary.display(), setup.pgvault.config.display());
    let member = setup.cluster.add(|data| {
        let text = page.replace("/var/lib/postgresql/17/main", data.to_str().unwrap());
        // Nobody else may help: the page has pg_basebackup as the second way.
        let text = text.replace("[pgvault, basebackup]", "[pgvault]").replace(": pgvault ", &format!(": {program} "));
        text.lines().skip(1).map(|line| format!("{}\n", line.strip_prefix("  ").unwrap())).collect()
    });
    assert!(member.log().contains("replica has been created using pgvault"), "{}", member.log());
    let (name, node) = (member.name.clone(), member.node.conninfo());
    setup.cluster.wait("it streams", |cluster| {
        let sql = "SELECT status FROM pg_stat_wal_receiver";
        cluster.member(&name).node.try_sql(sql).as_deref() == Ok("streaming")
    });
    println!("{name} at {node} streams");
    setup.nothing_is_lost(true);
}
