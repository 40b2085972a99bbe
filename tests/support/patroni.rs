//! A cluster under Patroni with etcd, on loopback; every process is one of this test and ends with it.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::LIMIT;
use super::pg::{PgNode, as_server_user, bin_dir, free_port, give_to_server_user};

/// Where `scripts/setup-integration.sh` puts Patroni and etcd.
pub fn tools_dir() -> PathBuf {
    std::env::var_os("PGVAULT_TOOLS").map_or_else(|| PathBuf::from("/var/tmp/pgvault-tools"), PathBuf::from)
}

/// A process that is killed when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Three members (or as many as asked for) of one cluster.
pub struct PatroniCluster {
    members: Vec<Member>,
    major: u32,
    /// The folder of all, the port of etcd, and the lines of the dynamic configuration.
    work: PathBuf,
    etcd_port: u16,
    dynamic: String,
    _etcd: Running,
}

/// One member: its Patroni and its PostgreSQL.
pub struct Member {
    /// Its name in Patroni.
    pub name: String,
    /// How its PostgreSQL is reached. Patroni starts and stops it, not the node.
    pub node: PgNode,
    /// The port of its REST API.
    pub api: u16,
    config: PathBuf,
    log: PathBuf,
    patroni: Option<Running>,
}

impl PatroniCluster {
    /// A cluster whose dynamic configuration has these lines besides what every test needs; it waits until all stream.
    pub fn start(dir: &Path, members: usize, major: u32, dynamic: &str) -> Self {
        let work = dir.join("patroni");
        fs::create_dir_all(&work).unwrap();
        let (etcd, etcd_port) = start_etcd(&work);
        let mut cluster =
            Self { members: Vec::new(), major, work, etcd_port, dynamic: dynamic.to_owned(), _etcd: etcd };
        for _ in 0..members {
            cluster.configure_member("");
        }
        give_to_server_user(&cluster.work);
        for index in 0..cluster.members.len() {
            cluster.start_patroni(index);
        }
        cluster.wait_all();
        cluster
    }

    /// One more member, whose own configuration has these lines in its section `postgresql`; where its data lies decides
    /// `lines_for`. Waits until it runs.
    pub fn add(&mut self, lines_for: impl FnOnce(&Path) -> String) -> &Member {
        let data = self.work.join(format!("pg{}", self.members.len() + 1));
        let index = self.configure_member(&lines_for(&data));
        give_to_server_user(&self.work);
        self.start_patroni(index);
        self.wait_all();
        &self.members[index]
    }

    fn configure_member(&mut self, more: &str) -> usize {
        let name = format!("pg{}", self.members.len() + 1);
        let node = PgNode::at(&self.work, &name, self.major);
        let api = free_port();
        let config = self.work.join(format!("{name}.yml"));
        fs::write(&config, configuration(&node, &name, api, self.etcd_port, &self.dynamic, more)).unwrap();
        self.members.push(Member {
            log: self.work.join(format!("{name}.log")),
            name,
            node,
            api,
            config,
            patroni: None,
        });
        self.members.len() - 1
    }

    fn wait_all(&self) {
        let all_stream = |cluster: &Self| {
            let known = cluster.cluster();
            let running = |member: &&Value| matches!(member["state"].as_str(), Some("running" | "streaming"));
            let count = known["members"].as_array().map_or(0, |members| members.iter().filter(running).count());
            count == cluster.members.len() && cluster.leader().is_some()
        };
        self.wait("all members run", all_stream);
    }

    /// The members, in the order of their numbers.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// A member by its name.
    pub fn member(&self, name: &str) -> &Member {
        self.members.iter().find(|member| member.name == name).unwrap()
    }

    /// libpq words that name these members.
    pub fn conninfo(&self, members: &[usize]) -> String {
        let hosts: Vec<&str> = members.iter().map(|_| "127.0.0.1").collect();
        let ports: Vec<String> = members.iter().map(|&index| self.members[index].node.port.to_string()).collect();
        format!("host={} port={} user=postgres", hosts.join(","), ports.join(","))
    }

    /// The URLs of all REST APIs, as TOML.
    pub fn urls(&self) -> String {
        let urls: Vec<String> =
            self.members.iter().map(|member| format!("\"http://127.0.0.1:{}\"", member.api)).collect();
        format!("[{}]", urls.join(", "))
    }

    /// The name of the leader, when every API that answers names the same one and it accepts writes.
    pub fn leader(&self) -> Option<String> {
        let known = self.cluster();
        let leader = known["members"].as_array()?.iter().find(|member| member["role"] == "leader")?;
        let name = leader["name"].as_str()?.to_owned();
        (self.member(&name).node.try_sql("SELECT pg_is_in_recovery()").as_deref() == Ok("f")).then_some(name)
    }

    /// What the first API that answers says of the cluster.
    pub fn cluster(&self) -> Value {
        let answers = |member: &Member| request(member.api, "GET", "/cluster", "");
        self.members.iter().find_map(answers).and_then(|body| serde_json::from_str(&body).ok()).unwrap_or_default()
    }

    /// Asks for a switchover to another member, and waits for it.
    pub fn switchover(&self, to: &str) {
        let from = self.leader().expect("there is a leader");
        let body = format!("{{\"leader\": \"{from}\", \"candidate\": \"{to}\"}}");
        let answer = request(self.member(&from).api, "POST", "/switchover", &body);
        assert!(answer.is_some(), "switchover to {to} was refused");
        self.wait("the switchover", |cluster| cluster.leader().as_deref() == Some(to));
    }

    /// kill -9 of a member's Patroni and of its PostgreSQL: the whole machine is gone.
    pub fn kill(&mut self, name: &str) {
        let member = self.members.iter_mut().find(|member| member.name == name).unwrap();
        member.patroni = None;
        let pid = member.node.postmaster_pid().expect("PostgreSQL runs");
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// kill -9 of a member's PostgreSQL alone: its Patroni notices.
    pub fn kill_postgres(&self, name: &str) {
        let pid = self.member(name).node.postmaster_pid().expect("PostgreSQL runs");
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Starts a member's Patroni again.
    pub fn revive(&mut self, name: &str) {
        let index = self.members.iter().position(|member| member.name == name).unwrap();
        self.start_patroni(index);
    }

    /// Waits for something that holds of the cluster; panics with the logs when it never does.
    pub fn wait(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds(self) {
            if Instant::now() > deadline {
                let logs = self.members.iter().map(|member| {
                    let log = fs::read_to_string(&member.log).unwrap_or_default();
                    let tail: Vec<&str> = log.lines().rev().take(15).collect();
                    format!("--- {}\n{}", member.name, tail.into_iter().rev().collect::<Vec<_>>().join("\n"))
                });
                panic!("never: {what}\n{}\n{}", self.cluster(), logs.collect::<Vec<_>>().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn start_patroni(&mut self, index: usize) {
        let libraries = bin_dir(self.major).parent().unwrap().join("lib");
        let member = &mut self.members[index];
        let log = fs::OpenOptions::new().create(true).append(true).open(&member.log).unwrap();
        let mut command = as_server_user(tools_dir().join("bin/patroni"));
        // Its PostgreSQL inherits this: the walreceiver wants the libpq of its own version.
        if libraries.join("libpq.so.5").exists() {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        // What it runs must not see what the tests' own environment sets for pgvault.
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PGVAULT_")) {
            command.env_remove(name);
        }
        command.arg(&member.config).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        member.patroni = Some(Running(command.spawn().expect("Patroni: run `make integration`")));
    }
}

impl Member {
    /// What its Patroni and its PostgreSQL wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for PatroniCluster {
    fn drop(&mut self) {
        for member in &mut self.members {
            member.patroni = None;
            if let Some(pid) = member.node.postmaster_pid() {
                // Patroni's child does not end with it. It may have ended all the same.
                drop(Command::new("kill").args(["-9", &pid.to_string()]).stderr(Stdio::null()).status());
            }
        }
    }
}

/// `ttl` is the lowest that Patroni takes; the rest makes it act at once.
fn configuration(node: &PgNode, name: &str, api: u16, etcd: u16, dynamic: &str, more: &str) -> String {
    let dynamic: String = dynamic.lines().map(|line| format!("    {line}\n")).collect();
    let more: String = more.lines().map(|line| format!("  {line}\n")).collect();
    let pgpass = node.run.join("pgpass");
    format!(
        "scope: main
name: {name}
restapi: {{listen: '127.0.0.1:{api}', connect_address: '127.0.0.1:{api}'}}
etcd3: {{hosts: '127.0.0.1:{etcd}'}}
bootstrap:
  dcs:
    ttl: 20
    loop_wait: 2
    retry_timeout: 3
    primary_start_timeout: 0
    maximum_lag_on_failover: 104857600
    postgresql:
      use_pg_rewind: true
      use_slots: true
      parameters:
        wal_level: replica
        max_wal_senders: 20
        max_replication_slots: 20
        wal_log_hints: 'on'
        wal_keep_size: 64MB
{dynamic}
  initdb: [{{encoding: UTF8}}, {{locale: 'C'}}, no-sync, {{wal-segsize: '1'}}]
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {data}
  bin_dir: {bin}
  pgpass: {pgpass}
  authentication:
    superuser: {{username: postgres}}
    replication: {{username: postgres}}
    rewind: {{username: postgres}}
  pg_hba: ['local all all trust', 'host all all 127.0.0.1/32 trust', 'host replication all 127.0.0.1/32 trust']
  parameters:
    unix_socket_directories: {run}
    shared_buffers: 32MB
    fsync: 'off'
    track_commit_timestamp: 'on'
{more}tags: {{}}
",
        port = node.port,
        data = node.data.display(),
        bin = bin_dir(node.major).display(),
        pgpass = pgpass.display(),
        run = node.run.display(),
    )
}

fn start_etcd(work: &Path) -> (Running, u16) {
    let (client, peer) = (free_port(), free_port());
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let log = fs::File::create(work.join("etcd.log")).unwrap();
    let child = Command::new(tools_dir().join("bin/etcd"))
        .args(["--name", "etcd", "--data-dir"])
        .arg(work.join("etcd"))
        .args(["--listen-client-urls", &url(client), "--advertise-client-urls", &url(client)])
        .args(["--listen-peer-urls", &url(peer), "--initial-advertise-peer-urls", &url(peer)])
        .args(["--initial-cluster", &format!("etcd={}", url(peer)), "--unsafe-no-fsync"])
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .expect("etcd: run `make integration`");
    let running = Running(child);
    let deadline = Instant::now() + LIMIT;
    while request(client, "GET", "/health", "").is_none() {
        assert!(Instant::now() < deadline, "etcd does not come up");
        std::thread::sleep(Duration::from_millis(50));
    }
    (running, client)
}

/// One HTTP exchange with a server on this machine: the body of a good answer.
fn request(port: u16, method: &str, path: &str, body: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(60))).ok()?;
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.split_whitespace().nth(1)?.starts_with('2').then(|| body.to_owned())
}
