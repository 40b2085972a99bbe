#!/usr/bin/env python3
"""make bench-replay: how fast a server replays WAL that its restore_command fetches, and what the fetching costs, beside other tools in the same run.

usage: replay.py PGVAULT SERVERS PEERS [--megabytes 2048] [--runs 3] [--only cp,pgvault] [--keep DIR]

One cold copy of a cluster and the WAL that was written after it go through each tool in turn, `--runs` times, and the median is printed. The clock runs from
"redo starts at" to "recovery stopping", in the server's own log. CPU of fetching is that of the server's cgroup without the server's own processes: the
restore_commands and whatever they leave running. Ratios within one run are what to look at: the machine, server and store included, is whatever it is.
"""

import argparse
import datetime
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, S3_ENV, HttpsS3, Server, as_user, config, end, free_port, give_to_user, medians, table, user_args, wait_until

SEGMENT = 16 << 20
CPU = Path("/sys/fs/cgroup/cpuacct")
QUIET = "max_wal_size='64GB'\ncheckpoint_timeout='1d'\nautovacuum=off\nlog_line_prefix='%m [%p] '\n"


def write_wal(primary, slots, megabytes):
    """A cold copy's server writes WAL; it stays in pg_wal and in the slots. Returns the last position and the WAL's bytes."""
    for slot in slots:
        primary.sql(f"SELECT pg_create_physical_replication_slot('{slot}', true)")
    number = lambda: int(primary.sql("SELECT pg_current_wal_insert_lsn() - '0/0'"))
    begin = number()
    while number() - begin < megabytes << 20:
        primary.pgbench("-N", "-n", "-M", "prepared", "-c", "4", "-j", "2", "-t", "4000")
        # Full pages again: the mixture of a server that checkpoints.
        primary.sql("CHECKPOINT")
    target = primary.sql("SELECT pg_current_wal_insert_lsn()")
    primary.sql("SELECT pg_switch_wal()")
    primary.sql("SELECT txid_current(); SELECT pg_switch_wal()")
    return target, number() - begin


def archive_with_pgvault(pgvault, base, name, primary, repository, env, target):
    path, _ = config(base, name, primary, repository, f'slot = "replay_{name}"\nmax_rpo = "0"')
    path.chmod(0o644)
    daemon = subprocess.Popen([pgvault, "-c", path, "serve"], env={**os.environ, **env}, stdout=open(base / f"{name}.log", "w"), stderr=subprocess.STDOUT)

    def stored():
        seen = subprocess.run([pgvault, "-c", path, "status", "main", "--json"], env={**os.environ, **env}, capture_output=True)
        found = re.search(rb'"archived_lsn": ?"([0-9A-F]+)/([0-9A-F]+)"', seen.stdout)
        at = lambda high, low: int(high, 16) << 32 | int(low, 16)
        return found and at(*found.groups()) >= at(*target.split("/"))
    wait_until(f"{name}: the WAL in the repository", stored, limit=600, every=0.5, alive=daemon)
    end(daemon)
    return path


def archive_with_pgbackrest(base, primary, s3, wal):
    home = base / "pgbackrest"
    for folder in (home, home / "spool", home / "log", home / "lock"):
        folder.mkdir()
        give_to_user(folder)
    path = home / "pgbackrest.conf"
    path.write_text(f"""[global]
repo1-type=s3
repo1-path=/pgbackrest
repo1-s3-bucket=bench
repo1-s3-endpoint=localhost
repo1-storage-port={s3.https}
repo1-storage-ca-file={s3.folder}/ca.pem
repo1-s3-uri-style=path
repo1-s3-region=us-east-1
repo1-s3-key={S3_ENV["AWS_ACCESS_KEY_ID"]}
repo1-s3-key-secret={S3_ENV["AWS_SECRET_ACCESS_KEY"]}
compress-type=zst
compress-level=1
spool-path={home}/spool
log-path={home}/log
lock-path={home}/lock
log-level-console=warn
[bench]
pg1-path={primary.data}
""")
    path.chmod(0o644)
    command = ["pgbackrest", f"--config={path}", "--stanza=bench"]
    as_user([*command, "--no-online", "stanza-create"])
    for segment in wal:
        as_user([*command, "archive-push", segment], cwd=home)

    def restore_command(node):
        spool = home / f"spool-{node.data.name}"
        spool.mkdir()
        give_to_user(spool)
        return (f"pgbackrest --config={path} --stanza=bench --pg1-path={node.data} --spool-path={spool} --archive-async --process-max=2 "
                "archive-get %f \"%p\"")
    return restore_command


def archive_with_walrus(program, base, s3, wal, folder):
    if folder:
        (base / "walrus").mkdir()
        give_to_user(base / "walrus")
        env = {"WALG_FILE_PREFIX": str(base / "walrus")}
    else:
        env = {"WALG_S3_PREFIX": "s3://bench/walrus", "AWS_ENDPOINT": s3.url, "AWS_S3_FORCE_PATH_STYLE": "true", **S3_ENV}
    env["WALG_COMPRESSION_METHOD"] = "zstd"
    for segment in wal:
        as_user([program, "wal-push", segment], env={**os.environ, **env})
    words = " ".join(f"{name}={value}" for name, value in env.items())
    return lambda node: f'env {words} {program} wal-fetch %f "%p"'


class Bench:
    def __init__(self, args, base):
        self.args, self.base, self.runs = args, base, 0
        self.bin = args.servers / "pg/15/bin"

    def replay(self, command, env, target, wal_bytes):
        """One recovery; MB/s and CPU-seconds of fetching per GiB."""
        self.runs += 1
        node = Server(self.bin, self.base, f"replayed{self.runs}")
        log, group = self.base / f"replayed{self.runs}.log", CPU / f"pgvault-bench-{os.getpid()}-{self.runs}"
        as_user(["cp", "-a", "--reflink=auto", self.base / "cold", node.data])
        with open(node.data / "postgresql.conf", "a") as conf:
            text = command(node).replace("'", "''")
            conf.write(f"restore_command='{text}'\nrecovery_target_lsn='{target}'\nrecovery_target_action='pause'\n"
                       f"port={node.port}\nunix_socket_directories='{self.base}'\nrecovery_target_timeline='1'\n")
        (node.data / "recovery.signal").touch()
        give_to_user(node.data / "recovery.signal")
        subprocess.run(["sync"], check=True)
        counted = ROOT and CPU.exists()
        into = [] if not counted else ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        if counted:
            group.mkdir()
        server = subprocess.Popen([*into, *user_args([self.bin / "postgres", "-D", node.data])], env={**os.environ, **env},
                                  stdout=open(log, "w"), stderr=subprocess.STDOUT)
        try:
            wait_until("the end of the replay", lambda: "recovery stopping" in log.read_text() or server.poll() is not None, limit=600, every=0.2)
            if server.poll() is not None:
                sys.exit(f"the server ended:\n{log.read_text()[-3000:]}")
            fetching = self.cpu_of_fetching(group, server.pid) if counted else None
            seconds = self.moment(log, "recovery stopping") - self.moment(log, "redo starts at")
        finally:
            end(server, signal.SIGINT, limit=120)
            wait_until("the end of what the server left", lambda: not counted or not (group / "cgroup.procs").read_text().strip(), limit=60, every=0.1)
        if counted:
            group.rmdir()
        shutil.rmtree(node.data)
        return wal_bytes / 1e6 / seconds, fetching and fetching / (wal_bytes / 2**30)

    @staticmethod
    def moment(log, words):
        line = next(line for line in log.read_text().splitlines() if words in line)
        return datetime.datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S.%f").timestamp()

    @staticmethod
    def cpu_of_fetching(group, postmaster):
        """All of the group, without what the server's own processes did themselves: children that ended count as fetching."""
        total = int((group / "cpuacct.usage").read_text()) / 1e9
        own = 0
        for pid in (group / "cgroup.procs").read_text().split():
            try:
                stat = Path(f"/proc/{pid}/stat").read_text()
                program = os.readlink(f"/proc/{pid}/exe")
            except OSError:
                continue
            if program.endswith("/postgres"):
                fields = stat.rsplit(")", 1)[1].split()
                own += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        return total - own


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pgvault", type=Path)
    parser.add_argument("servers", type=Path)
    parser.add_argument("peers", type=Path)
    parser.add_argument("--megabytes", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--only", default="", help="words of the rows' labels, with commas")
    parser.add_argument("--then", default="", help="a command before which the measuring waits: what it prints is shown")
    args = parser.parse_args()
    args.pgvault, args.servers = args.pgvault.resolve(), args.servers.resolve()
    base = Path(tempfile.mkdtemp(prefix="pgvault-bench-replay-", dir=os.environ.get("BENCH_DIR")))
    base.chmod(0o755)
    give_to_user(base)
    # The servers' user must be able to run it, wherever it was built.
    pgvault = Path(shutil.copy(args.pgvault, base / "pgvault"))
    primary, s3 = Server(args.servers / "pg/15/bin", base, "primary", QUIET + "fsync=off\nsynchronous_commit=off\nwal_keep_size='64GB'"), None
    wanted = lambda label: not args.only or any(word in label for word in args.only.split(","))
    try:
        primary.init()
        primary.start()
        primary.pgbench("-i", "-q", "-s", "20")
        primary.stop()
        as_user(["cp", "-a", primary.data, base / "cold"])
        with open(base / "cold/postgresql.conf", "a") as conf:
            conf.write("fsync=on\nsynchronous_commit=on\nhot_standby=on\nwal_keep_size=0\n")
        primary.start()
        s3 = HttpsS3(args.servers, base)
        slots = ["directory", "s3"]
        target, wal_bytes = write_wal(primary, [f"replay_{slot}" for slot in slots], args.megabytes)
        print(f"{wal_bytes / 2**20:.0f} MiB of WAL up to {target}", file=sys.stderr, flush=True)
        last = primary.sql(f"SELECT pg_walfile_name('{target}')")
        names = sorted(path.name for path in (primary.data / "pg_wal").iterdir() if re.fullmatch("[0-9A-F]{24}", path.name))
        wal = [primary.data / "pg_wal" / name for name in names if name <= last]
        env = {**S3_ENV, "AWS_CA_BUNDLE": f"{s3.folder}/ca.pem"}
        rows = []

        def add(label, make, env=None):
            if wanted(label):
                rows.append((label, make(), env or {}))

        def folder():
            (base / "wal").mkdir()
            for path in wal:
                Path(shutil.copy(path, base / "wal")).chmod(0o644)
            return lambda node: f'cp {base}/wal/%f "%p"'

        def ours(name, repository, env):
            path = archive_with_pgvault(pgvault, base, name, primary, repository, env, target)
            if ROOT and (base / f"repository.{name}").exists():
                subprocess.run(["chown", "-R", "postgres:postgres", base / f"repository.{name}"], check=True)
            return lambda node: f'{pgvault} -c {path} wal fetch main %f "%p"'
        add("cp, plain files", folder)
        if shutil.which("pgbackrest"):
            add("pgBackRest async, S3 (https), zstd 1", lambda: archive_with_pgbackrest(base, primary, s3, wal))
        else:
            print("pgBackRest is not there: scripts/setup-peers.sh installs it", file=sys.stderr)
        walrus = args.peers / "bin/walrus"
        if walrus.exists():
            add("WAL-RUS, S3, zstd", lambda: archive_with_walrus(walrus, base, s3, wal, False))
        add("pgvault, directory, zstd 1", lambda: ours("directory", f'url = "file://{base}/repository.directory"', {}))
        address = f'url = "s3://bench/pgvault"\nendpoint = "https://127.0.0.1:{s3.https}"\npath_style = true'
        add("pgvault, S3 (https), zstd 1", lambda: ours("s3", address, env), env)
        if wanted("pgvault, S3") and wanted("without prefetch"):
            ahead = rows[-1][1]
            rows.append(("pgvault, S3 (https), without prefetch", lambda node: ahead(node).replace("wal fetch", "wal fetch --prefetch 0"), env))
        primary.stop("immediate")
        if args.then:
            print(f"prepared in {base}: waiting for {args.then}", file=sys.stderr, flush=True)
            wait_until(args.then, Path(args.then).exists, limit=7200, every=1)

        bench, found = Bench(args, base), {label: [] for label, _, _ in rows}
        for run in range(args.runs):
            for label, command, env in rows:
                found[label].append(bench.replay(command, env, target, wal_bytes))
                print(f"run {run + 1}: {label}: {found[label][-1][0]:.0f} MB/s, {found[label][-1][1] or 0:.2f} CPU-s/GiB", file=sys.stderr, flush=True)
    finally:
        primary.stop("immediate")
        if s3:
            s3.stop()
        shutil.rmtree(base, ignore_errors=True)
    middle = {label: medians(runs) for label, runs in found.items()}
    peer = next((speed for label, (speed, _) in middle.items() if label.startswith("pgBackRest")), None)
    table(["replay through restore_command", "MB/s", "CPU-s/GiB of fetching", "to pgBackRest async"],
          [[label, speed, cpu, peer and speed / peer] for label, (speed, cpu) in middle.items()])


main()
