//! Does streaming come back by itself, and without a storm, whatever happens to the server or on the way to it?

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use wal::Lsn;

use crate::support::attacked::{LIMIT, wait_shipped};
use crate::support::pg::{PgNode, give_to_server_user, test_dir};
use crate::support::pgvault::{Daemon, Pgvault};
use crate::support::proxy::{Direction, Proxy};
use crate::support::tap::tapped;

/// A server, and a pgvault that reaches it through a proxy.
struct Scene {
    node: PgNode,
    proxy: Proxy,
    pgvault: Pgvault,
    // Last, so that it outlives the server.
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(settings: &[(&str, &str)], more: &str) -> Self {
        let dir = test_dir();
        let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], settings);
        node.start();
        node.sql("CREATE TABLE t (n int)");
        let proxy = Proxy::start(node.port);
        let pgvault = Pgvault::new(dir.path());
        pgvault.config(&format!(
            "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=postgres connect_timeout=2\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n{more}",
            proxy.port()
        ));
        Self { node, proxy, pgvault, _dir: dir }
    }

    fn write(&self) -> Lsn {
        self.node.sql("INSERT INTO t SELECT generate_series(1, 100)");
        self.node.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
    }

    /// Everything that was written arrives, without a gap and without anybody's help.
    fn assert_all_is_well(&self, daemon: &mut Daemon) {
        let end = self.write();
        wait_shipped(&self.pgvault, end);
        self.pgvault.wait_streaming();
        let (code, gaps) = self.pgvault.json(&["wal", "gaps", "main"]);
        assert_eq!((code, &gaps["gaps"]), (0, &serde_json::json!([])), "{gaps}");
        assert!(!daemon.has_ended());
    }

    fn walsender(&self) -> String {
        self.node.sql("SELECT pid FROM pg_stat_replication WHERE application_name = 'pgvault'")
    }

    /// How often a stream or an attempt to get one has ended.
    fn reconnects(&self) -> f64 {
        let (_, metrics) = self.pgvault.http("/metrics");
        let lines = metrics.lines().filter(|line| line.starts_with("pgvault_wal_reconnects_total{"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
    }

    /// Waits until streaming has been given up.
    fn wait_not_streaming(&self) {
        self.pgvault.wait("not streaming", LIMIT, || {
            self.pgvault.json(&["status", "main"]).1["clusters"][0]["wal"]["streaming"] == false
        });
    }

    /// Goes on for so long, and counts the attempts meanwhile. Pauses that double, of which jitter takes half at most, allow
    /// 12 in half a minute; each attempt may take a connection for SQL besides.
    fn assert_no_storm(&self, during: Duration) {
        let (reconnects, connections, begun) = (self.reconnects(), self.proxy.connections(), Instant::now());
        std::thread::sleep(during);
        let took = begun.elapsed().as_secs();
        let (reconnects, connections) = (self.reconnects() - reconnects, self.proxy.connections() - connections);
        println!("{reconnects} attempts and {connections} connections in {took} s");
        #[expect(clippy::cast_precision_loss, reason = "seconds")]
        let most = 8.0 + took as f64;
        assert!(reconnects <= most, "{reconnects} attempts in {took} s");
        assert!(connections <= 20 + 3 * usize::try_from(took).unwrap(), "{connections} connections in {took} s");
    }
}

#[test]
fn a_network_that_swallows_everything_is_noticed_and_left() {
    let scene = Scene::new(&[("wal_sender_timeout", "1s")], "");
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    wait_shipped(&scene.pgvault, scene.write());
    let before = scene.walsender();
    scene.proxy.stall_both(true);
    scene.wait_not_streaming();
    scene.write();
    scene.assert_no_storm(Duration::from_secs(8));
    scene.proxy.cut();
    scene.proxy.heal();
    scene.assert_all_is_well(&mut daemon);
    assert_ne!(scene.walsender(), before);
    daemon.stop();
}

#[test]
fn a_server_that_falls_silent_is_left() {
    let scene = Scene::new(&[("wal_sender_timeout", "1s")], "");
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    wait_shipped(&scene.pgvault, scene.write());
    scene.proxy.stall(Direction::ToClient, true);
    scene.wait_not_streaming();
    scene.proxy.heal();
    scene.assert_all_is_well(&mut daemon);
    daemon.stop();
}

#[test]
#[ignore = "long: make chaos"]
fn a_half_open_connection_is_left_though_the_server_has_no_timeout() {
    let scene = Scene::new(&[("wal_sender_timeout", "0")], "");
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    scene.write();
    scene.proxy.stall_both(true);
    scene.wait_not_streaming();
    scene.proxy.cut();
    scene.proxy.heal();
    scene.assert_all_is_well(&mut daemon);
    daemon.stop();
}

#[test]
fn without_a_timeout_of_the_server_an_idle_connection_stays() {
    let scene = Scene::new(&[("wal_sender_timeout", "0")], "");
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    let before = scene.walsender();
    scene.assert_all_is_well(&mut daemon);
    assert_eq!(scene.walsender(), before);
    daemon.stop();
}

#[test]
fn a_disk_whose_syncs_take_two_seconds_costs_no_connection() {
    let settings =
        [("wal_sender_timeout", "1s"), ("synchronous_standby_names", "the_vault"), ("synchronous_commit", "local")];
    let dir = test_dir();
    let mut node = PgNode::init(dir.path(), "primary", 17, &["--wal-segsize=1"], &settings);
    node.start();
    node.sql("CREATE TABLE t (n int)");
    let (proxy, told) = tapped(node.port);
    let pgvault = Pgvault::new(dir.path());
    pgvault.config(&format!(
        "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=postgres\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n\
         application_name = \"the_vault\"\nsynchronous = true\n",
        proxy.port()
    ));
    let slow = ["strace", "-D", "-f", "--seccomp-bpf", "-o", "/dev/null", "-e", "trace=fdatasync"];
    let slow = [&slow[..], &["-e", "inject=fdatasync:delay_enter=2000000"]].concat();
    let daemon = pgvault.serve_below(&slow);
    pgvault.wait("synchronous", LIMIT, || node.sql("SELECT sync_state FROM pg_stat_replication") == "sync");
    // On a busy machine an answer may come too late once; whoever is silent during a sync is given up in every one.
    let kept = (0..20).any(|_| {
        let before = node.sql("SELECT pid FROM pg_stat_replication");
        for n in 0..3 {
            node.sql(&format!("SET synchronous_commit = on; INSERT INTO t VALUES ({n})"));
        }
        !before.is_empty() && node.sql("SELECT pid FROM pg_stat_replication") == before
    });
    assert!(kept, "the server gave up during every sync:\n{}", node.log());
    // Meanwhile it was told again and again what is true: less than was received.
    let told = told.lock().unwrap();
    let behind = told.updates.iter().filter(|update| update.flush < update.write).count();
    println!("{} status updates, {behind} of them while a sync was running", told.updates.len());
    assert!(behind >= 3, "{:?}", told.updates);
    drop(told);
    daemon.kill();
}

#[test]
fn a_password_that_is_changed_is_taken_up_by_itself() {
    let scene = Scene::new(&[], "");
    scene.node.sql("CREATE ROLE vault LOGIN REPLICATION PASSWORD 'first'");
    scene.node.sql("GRANT pg_monitor TO vault");
    let hba = "host all vault 127.0.0.1/32 scram-sha-256\nhost replication vault 127.0.0.1/32 scram-sha-256\n";
    let path = scene.node.data.join("pg_hba.conf");
    fs::write(&path, hba.to_owned() + &fs::read_to_string(&path).unwrap()).unwrap();
    scene.node.sql("SELECT pg_reload_conf()");
    let passfile = scene.pgvault.dir.join("passfile");
    let write_password = |password: &str| {
        fs::write(&passfile, format!("*:*:*:vault:{password}\n")).unwrap();
        fs::set_permissions(&passfile, fs::Permissions::from_mode(0o600)).unwrap();
        give_to_server_user(&passfile);
    };
    write_password("first");
    scene.pgvault.config(&format!(
        "[cluster.main]\nconninfo = \"host=127.0.0.1 port={} user=vault passfile={}\"\nschedule = \"\"\nmax_rpo = \"500ms\"\n",
        scene.proxy.port(),
        passfile.display()
    ));
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    let before = scene.walsender();
    // Changed on the server first: the stream goes on, and the next connection is refused until the file is changed too.
    scene.node.sql("ALTER ROLE vault PASSWORD 'second'");
    wait_shipped(&scene.pgvault, scene.write());
    assert_eq!(scene.walsender(), before);
    scene.proxy.cut();
    scene.wait_not_streaming();
    let status = || scene.pgvault.json(&["status", "main"]).1;
    scene.pgvault.wait("the refusal is told", LIMIT, || status().to_string().contains("password"));
    let status = status();
    assert!(!status.to_string().contains("first"), "{status:#}");
    scene.assert_no_storm(Duration::from_secs(4));
    write_password("second");
    scene.assert_all_is_well(&mut daemon);
    // Changed in the file first.
    write_password("third");
    scene.proxy.cut();
    scene.wait_not_streaming();
    scene.node.sql("ALTER ROLE vault PASSWORD 'third'");
    scene.assert_all_is_well(&mut daemon);
    daemon.stop();
}

#[test]
fn a_server_that_goes_away_and_comes_back_is_found_again() {
    let mut scene = Scene::new(&[], "");
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    for mode in ["fast", "immediate"] {
        wait_shipped(&scene.pgvault, scene.write());
        assert!(scene.node.stop(mode, LIMIT));
        scene.wait_not_streaming();
        scene.assert_no_storm(Duration::from_secs(6));
        scene.node.start();
        scene.assert_all_is_well(&mut daemon);
    }
    daemon.stop();
}

#[test]
fn a_server_that_ends_every_stream_at_once_is_not_stormed() {
    let scene = Scene::new(&[], "");
    let mut daemon = scene.pgvault.serve();
    scene.pgvault.wait_streaming();
    let end = scene.write();
    wait_shipped(&scene.pgvault, end);
    let (before, begun) = (scene.reconnects(), Instant::now());
    while begun.elapsed() < Duration::from_secs(6) || scene.reconnects() - before < 2.0 {
        scene.node.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_replication");
        std::thread::sleep(Duration::from_millis(50));
        assert!(begun.elapsed() < LIMIT, "it does not come back");
    }
    let attempts = scene.reconnects() - before;
    println!("{attempts} attempts in {:?}", begun.elapsed());
    assert!(attempts <= 8.0 + begun.elapsed().as_secs_f64(), "{attempts} attempts in {:?}", begun.elapsed());
    scene.assert_all_is_well(&mut daemon);
    daemon.stop();
}
