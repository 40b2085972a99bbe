//! Two members under repmgr, on Debian's PostgreSQL, for which its extension is packaged.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::LIMIT;
use super::pg::{PgNode, as_server_user, children, give_to_server_user, wait_gone};

/// The server for which repmgr is installed.
pub fn bin() -> PathBuf {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path().join("bin"))
        .filter(|bin| bin.join("repmgr").exists())
        .collect();
    found.sort();
    found.pop().expect("repmgr: run `make integration`")
}

/// Its major version.
pub fn major() -> u32 {
    bin().parent().unwrap().file_name().unwrap().to_str().unwrap().parse().unwrap()
}

/// A primary and a standby that repmgr knows.
pub struct RepmgrCluster {
    /// The members. Their servers are started by pg_ctl, as repmgr does it, not by the nodes.
    pub nodes: [PgNode; 2],
    configs: [PathBuf; 2],
    daemons: Vec<Child>,
}

impl RepmgrCluster {
    /// A cluster in which node 1 is the primary.
    pub fn start(dir: &Path) -> Self {
        let work = dir.join("repmgr");
        fs::create_dir_all(&work).unwrap();
        let nodes = ["node1", "node2"].map(|name| PgNode::at(&work, name, major()));
        let configs = [0, 1].map(|index| {
            let path = work.join(format!("repmgr{}.conf", index + 1));
            fs::write(&path, configuration(index + 1, &nodes, &work)).unwrap();
            path
        });
        give_to_server_user(&work);
        let cluster = Self { nodes, configs, daemons: Vec::new() };
        cluster.first_node();
        cluster.second_node();
        cluster
    }

    fn first_node(&self) {
        let node = &self.nodes[0];
        run(as_server_user(bin().join("initdb")).arg("-D").arg(&node.data).args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "--no-sync",
            "-E",
            "UTF8",
            "--locale=C",
            "--wal-segsize=1",
        ]));
        // The port is given at the start: repmgr copies the files of one member to the other.
        let settings = "listen_addresses = '127.0.0.1'\nwal_level = replica\nmax_wal_senders = 20\nmax_replication_slots = 20\n\
            wal_log_hints = on\nwal_keep_size = 64MB\nshared_preload_libraries = 'repmgr'\nfsync = off\nshared_buffers = 32MB\n\
            track_commit_timestamp = on\n";
        let path = node.data.join("postgresql.conf");
        fs::write(&path, fs::read_to_string(&path).unwrap() + settings).unwrap();
        self.pg_ctl(0, &["start"]);
        node.sql("CREATE DATABASE repmgr");
        self.repmgr(0, &["primary", "register"]);
    }

    fn second_node(&self) {
        let from = ["-h", "127.0.0.1", "-p", self.nodes[0].port.to_string().as_str(), "-U", "postgres", "-d", "repmgr"]
            .map(str::to_owned);
        let clone = from.iter().map(String::as_str).chain(["standby", "clone", "--fast-checkpoint"]);
        self.repmgr(1, &clone.collect::<Vec<_>>());
        self.pg_ctl(1, &["start"]);
        self.repmgr(1, &["standby", "register"]);
    }

    /// libpq words that name both members.
    pub fn conninfo(&self) -> String {
        let [one, two] = &self.nodes;
        format!("host=127.0.0.1,127.0.0.1 port={},{} user=postgres", one.port, two.port)
    }

    /// repmgr on a member; panics when it fails.
    pub fn repmgr(&self, index: usize, args: &[&str]) {
        run(as_server_user(bin().join("repmgr")).arg("-f").arg(&self.configs[index]).args(args));
    }

    /// Makes a member that was stopped or killed a standby of the other.
    ///
    /// pg_rewind starts the server once to recover it. The lock file of a server that was killed stands in its way when its
    /// pid is still taken (by what nobody has waited for, say): it is removed, as an operator does once all of it is gone.
    pub fn rejoin(&self, index: usize) {
        drop(fs::remove_file(self.nodes[index].data.join("postmaster.pid")));
        let other = format!("host=127.0.0.1 port={} user=postgres dbname=repmgr", self.nodes[1 - index].port);
        self.repmgr(index, &["node", "rejoin", "-d", &other, "--force-rewind"]);
    }

    /// Starts repmgrd on both members: from now on the standby is promoted by itself.
    pub fn watch(&mut self) {
        for config in &self.configs {
            let mut command = as_server_user(bin().join("repmgrd"));
            command.arg("-f").arg(config).args(["--daemonize=false", "--no-pid-file"]);
            let log = fs::File::create(config.with_extension("log")).unwrap();
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            self.daemons.push(command.spawn().unwrap());
        }
    }

    /// Waits until a member is the primary.
    pub fn wait_primary(&self, index: usize) {
        let deadline = Instant::now() + LIMIT;
        while self.nodes[index].try_sql("SELECT pg_is_in_recovery()").as_deref() != Ok("f") {
            assert!(Instant::now() < deadline, "node {} does not become the primary", index + 1);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// kill -9 of a member's postmaster; waits until its children are gone too, which notice by themselves.
    pub fn kill(&self, index: usize) {
        let pid = self.nodes[index].postmaster_pid().expect("it runs");
        let mut all = children(pid);
        all.push(pid);
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(status.success());
        wait_gone(&all);
    }

    fn pg_ctl(&self, index: usize, args: &[&str]) {
        // Its server keeps what it inherits open: nobody is to wait for that.
        let script = format!("{} {} >/dev/null 2>&1", pg_ctl(&self.nodes[index]), args.join(" "));
        run(as_server_user("/bin/sh").arg("-c").arg(script));
    }
}

impl Drop for RepmgrCluster {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // They may have ended by themselves.
            drop(daemon.kill());
            drop(daemon.wait());
        }
        for node in &self.nodes {
            if let Some(pid) = node.postmaster_pid() {
                drop(Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status());
            }
        }
    }
}

fn configuration(id: usize, nodes: &[PgNode; 2], work: &Path) -> String {
    let node = &nodes[id - 1];
    let control = pg_ctl(node);
    let config = work.join(format!("repmgr{id}.conf"));
    let repmgr = bin().join("repmgr");
    format!(
        "node_id={id}\nnode_name='node{id}'\nconninfo='host=127.0.0.1 port={port} user=postgres dbname=repmgr connect_timeout=2'\n\
         data_directory='{data}'\npg_bindir='{bin}'\nservice_start_command='{control} start'\n\
         service_stop_command='{control} -m fast stop'\nservice_restart_command='{control} restart'\n\
         failover=automatic\npromote_command='{repmgr} -f {config} standby promote'\n\
         follow_command='{repmgr} -f {config} standby follow --upstream-node-id=%n'\n\
         monitor_interval_secs=1\nreconnect_attempts=2\nreconnect_interval=1\n",
        port = node.port,
        data = node.data.display(),
        bin = bin().display(),
        repmgr = repmgr.display(),
        config = config.display(),
    )
}

/// pg_ctl of one member, as repmgr calls it: as the servers' user already.
fn pg_ctl(node: &PgNode) -> String {
    format!(
        "{} -D {} -o \"-p {} -k {}\" -l {} -w",
        bin().join("pg_ctl").display(),
        node.data.display(),
        node.port,
        node.run.display(),
        node.run.join("server.log").display()
    )
}

#[track_caller]
fn run(command: &mut Command) {
    // Into a file: servers that repmgr starts keep its output open, and nobody is to wait for their end.
    let said = tempfile::NamedTempFile::new().unwrap();
    let out = said.reopen().unwrap();
    let status = command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(out).status().unwrap();
    assert!(status.success(), "{command:?}\n{}", fs::read_to_string(said.path()).unwrap_or_default());
}
