#!/usr/bin/env python3
"""What a second backup adds to the repository after 1 % of the rows changed at random, and how long it takes.

    second_backup.py [--scale N] [--major 15|17|18] [--runs N] [--json FILE]

One pgbench cluster, a first backup with every tool, then `UPDATE` of one in a hundred accounts at random, a checkpoint, and a
second backup with every tool, interleaved; each is restored and its accounts are counted. Tools that are not installed are left
out and named. Times are wall seconds of the backup command with one `sync` charged to everybody; bytes are those of the
repository's directory before and after, WAL left out. Needs a release build (or
BENCH_BINARY), the test servers and, for pgBackRest, root.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

TOP = pathlib.Path(__file__).resolve().parent.parent
SERVERS = pathlib.Path(os.environ.get("PGVAULT_TEST_SERVERS", "/var/tmp/pgvault-test-servers"))
PORT = 48917
# What runs and must be ended.
TOOLS = []


def run(*command, user=None, env=None, check=True, quiet=True):
    prefix = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user and os.getuid() == 0 else []
    done = subprocess.run([*prefix, *map(str, command)], capture_output=quiet, text=True, env={**os.environ, **(env or {})}, check=False)
    if check and done.returncode:
        sys.exit(f"{command}: {done.stdout}{done.stderr}")
    return done


def size_of(path, skip=()):
    total = 0
    for folder, _, names in os.walk(path):
        if any(part in folder.split("/") for part in skip):
            continue
        total += sum(os.path.getsize(os.path.join(folder, name)) for name in names)
    return total


class Server:
    def __init__(self, root, major, settings):
        self.bin = SERVERS / f"pg/{major}/bin"
        self.data, self.root, self.major = root / "data", root, major
        run(self.bin / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync", user="postgres")
        lines = {
            "port": PORT, "unix_socket_directories": f"'{root}'", "shared_buffers": "'512MB'", "max_wal_size": "'8GB'",
            "max_wal_senders": 10, "autovacuum": "off", **settings,
        }
        with open(self.data / "postgresql.conf", "a", encoding="utf-8") as file:
            file.writelines(f"{name} = {value}\n" for name, value in lines.items())
        self.control("start")

    def control(self, what):
        run(self.bin / "pg_ctl", "-D", self.data, "-l", self.root / "log", "-w", what, "-m" if what == "stop" else "-s", *(["fast"] if what == "stop" else []), user="postgres")

    def sql(self, sql):
        return run(self.bin / "psql", "-XAtq", "-h", "127.0.0.1", "-p", PORT, "-U", "postgres", "-c", sql, "postgres").stdout.strip()


class Pgvault:
    """Reads over the replication protocol; `kind` as in `backup now --kind`."""

    def __init__(self, root, name, kind):
        self.name, self.kind, self.repository = name, kind, root / f"{name} repository"
        self.config = root / f"{name}.toml"
        self.config.write_text(
            f'[daemon]\nstate_dir = "{root}/{name} state"\n[repository]\nurl = "file://{self.repository}"\n'
            f'[cluster.main]\nconninfo = "host=127.0.0.1 port={PORT} user=postgres"\nslot = "{name}"\n[http]\nlisten = "127.0.0.1:{48930 + len(name)}"\n',
            encoding="utf-8",
        )
        self.binary = os.environ.get("BENCH_BINARY", TOP / "target/release/pgvault")
        run(self.binary, "-c", self.config, "repo", "init")
        with open(root / f"{name}.log", "w", encoding="utf-8") as log:
            self.daemon = subprocess.Popen([self.binary, "-c", self.config, "serve"], stdout=log, stderr=log)
        deadline = time.monotonic() + 60
        while True:
            told = run(self.binary, "-c", self.config, "status", "--json", check=False).stdout
            if '"streaming":true' in told:
                break
            if time.monotonic() > deadline:
                sys.exit(f"{name} does not stream: {(root / f'{name}.log').read_text(encoding='utf-8')}")
            time.sleep(0.2)

    def stop(self):
        self.daemon.terminate()
        self.daemon.wait(60)

    def backup(self, kind=None):
        done = run(self.binary, "-c", self.config, "backup", "now", "main", "--wait", "--fast-checkpoint", "--kind", kind or self.kind, "--json")
        return json.loads(done.stdout.splitlines()[-1])

    def first(self):
        self.backup()

    def second(self):
        return self.backup()

    def bytes(self):
        return size_of(self.repository, skip=("wal",))

    def restore(self, target):
        run(self.binary, "-c", self.config, "recover", "main", "--to", target, "--immediate", "--action", "promote", "--owner", "postgres", "--yes")


class PgBackRest:
    def __init__(self, root, server, options):
        self.name, self.root = "pgBackRest", root
        self.repository = root / "pgbackrest"
        self.repository.mkdir()
        shutil.chown(self.repository, "postgres", "postgres")
        self.config = root / "pgbackrest.conf"
        common = "\n".join(f"{name}={value}" for name, value in options.items())
        self.config.write_text(
            f"[global]\nrepo1-path={self.repository}\nprocess-max=2\ncompress-type=zst\ncompress-level=1\nstart-fast=y\nlog-level-file=off\n"
            f"lock-path={root}/lock\nspool-path={root}/spool\narchive-async=n\n{common}\n"
            f"[main]\npg1-path={server.data}\npg1-port={PORT}\npg1-socket-path={root}\n",
            encoding="utf-8",
        )
        self.do("stanza-create")

    def do(self, *command):
        return run("pgbackrest", f"--config={self.config}", "--stanza=main", *command, user="postgres")

    def first(self):
        self.do("backup", "--type=full", "--archive-check=n")

    def second(self):
        self.do("backup", "--type=incr", "--archive-check=n")
        return {}

    def bytes(self):
        return size_of(self.repository, skip=("archive",))

    def restore(self, target):
        pathlib.Path(target).mkdir()
        shutil.chown(target, "postgres", "postgres")
        self.do("restore", f"--pg1-path={target}", "--type=none")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=int, default=100)
    parser.add_argument("--major", type=int, default=15)
    parser.add_argument("--runs", type=int, default=1, help="second backups, each after another 1 %% of the rows")
    parser.add_argument("--json")
    arguments = parser.parse_args()
    root = pathlib.Path(tempfile.mkdtemp(prefix="pgvault-second-", dir="/var/tmp"))
    root.chmod(0o755)
    if os.getuid() == 0:
        shutil.chown(root, "postgres", "postgres")
    has_pgbackrest = knows(arguments.major)
    settings = {"summarize_wal": "on"} if arguments.major >= 17 else {}
    if has_pgbackrest:
        conf = root / "pgbackrest.conf"
        settings |= {"archive_mode": "on", "archive_command": f"'pgbackrest --config={conf} --stanza=main archive-push %p'"}
    server = Server(root, arguments.major, settings)
    try:
        rows = measure(root, server, arguments, has_pgbackrest)
    finally:
        for tool in TOOLS:
            tool.stop()
        server.control("stop")
        shutil.rmtree(root, ignore_errors=True)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")


def knows(major):
    """Whether there is a pgBackRest that knows this PostgreSQL: 16 since 2.48, 17 since 2.54, 18 since 2.57."""
    if shutil.which("pgbackrest") is None:
        return False
    version = tuple(map(int, run("pgbackrest", "version").stdout.split()[1].split(".")[:2]))
    return version >= {16: (2, 48), 17: (2, 54), 18: (2, 57)}.get(major, (2, 45))


def measure(root, server, arguments, has_pgbackrest):
    TOOLS.append(Pgvault(root, "pgvault", "auto"))
    if arguments.major >= 17:
        TOOLS.append(Pgvault(root, "pgvault_patches", "auto"))
    tools = list(TOOLS)
    if has_pgbackrest:
        version = run("pgbackrest", "version").stdout.split()[1]
        newer = tuple(map(int, version.split(".")[:2])) >= (2, 46)
        # Block incremental and bundling: since 2.46 and 2.39.
        tools.append(PgBackRest(root, server, {"repo1-bundle": "y", **({"repo1-block": "y"} if newer else {})}))
        print(f"pgBackRest {version}, repo-block {'on' if newer else 'not there yet'}")
    else:
        print("no pgBackRest for this PostgreSQL: left out")
    run(server.bin / "pgbench", "-h", "127.0.0.1", "-p", PORT, "-U", "postgres", "-i", "-q", "-s", arguments.scale, "postgres")
    server.sql("CHECKPOINT")
    for tool in tools:
        tool.first()
    found = {tool.name: {"first": tool.bytes(), "added": [], "seconds": [], "kinds": []} for tool in tools}
    rows = arguments.scale * 100_000
    for number in range(arguments.runs):
        server.sql(f"SELECT setseed({(number + 1) / 100}); UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN "
                   f"(SELECT (random() * {rows - 1})::int + 1 FROM generate_series(1, {rows // 100}))")
        server.sql("CHECKPOINT")
        os.sync()
        for tool in tools:
            # The second pgvault shows what page patches alone do where the server could tell what changed.
            if tool.name == "pgvault_patches":
                server.sql("ALTER SYSTEM SET summarize_wal = off")
                server.sql("SELECT pg_reload_conf()")
                time.sleep(1)
            before = tool.bytes()
            begun = time.monotonic()
            told = tool.second()
            os.sync()
            found[tool.name]["seconds"].append(time.monotonic() - begun)
            found[tool.name]["added"].append(tool.bytes() - before)
            found[tool.name]["kinds"].append(told.get("kind", ""))
            if tool.name == "pgvault_patches":
                server.sql("ALTER SYSTEM SET summarize_wal = on")
                server.sql("SELECT pg_reload_conf()")
    expected = server.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts")
    print(f"{'tool':<18}{'first MiB':>10}{'added MiB':>11}{'seconds':>9}  kind")
    for name, row in found.items():
        added, seconds = statistics.median(row["added"]), statistics.median(row["seconds"])
        print(f"{name:<18}{row['first'] / 2**20:>10.1f}{added / 2**20:>11.1f}{seconds:>9.1f}  {' '.join(row['kinds'])}")
    for tool in tools:
        if isinstance(tool, Pgvault):
            target = root / f"{tool.name} restored"
            begun = time.monotonic()
            tool.restore(target)
            print(f"{tool.name}: restored in {time.monotonic() - begun:.1f} s; accounts on the server: {expected}")
            found[tool.name]["restored"] = check(server, target, expected)
    return found


def check(server, target, expected):
    """Starts a server on what was restored, and compares its accounts."""
    with open(target / "postgresql.conf", "a", encoding="utf-8") as file:
        file.write(f"\nport = {PORT + 1}\narchive_mode = off\nunix_socket_directories = '{server.root}'\n")
    os.chmod(server.root, 0o755)
    for path in server.root.glob("*repository"):
        run("chown", "-R", "postgres:postgres", path)
    for path in server.root.glob("*state"):
        run("chown", "-R", "postgres:postgres", path)
    run(server.bin / "pg_ctl", "-D", target, "-l", server.root / "restored.log", "-w", "start", user="postgres")
    try:
        deadline = time.monotonic() + 60
        question = "SELECT count(*), sum(abalance) FROM pgbench_accounts"
        while True:
            asked = run(server.bin / "psql", "-XAtq", "-h", "127.0.0.1", "-p", PORT + 1, "-U", "postgres", "-c", question, "postgres", check=False)
            if asked.stdout.strip() == expected:
                return True
            if time.monotonic() > deadline:
                sys.exit(f"{target}: {asked.stdout}{asked.stderr} where {expected} is due")
            time.sleep(0.2)
    finally:
        run(server.bin / "pg_ctl", "-D", target, "-w", "stop", "-m", "immediate", user="postgres")


if __name__ == "__main__":
    main()
