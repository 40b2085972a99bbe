#!/usr/bin/env python3
"""make bench-backup: full backup, second backup, restore and delta restore, to a directory and to S3, beside other tools in the same run.

usage: backup.py PGVAULT SERVERS PEERS [--scale 175] [--runs 3] [--major 15] [--only full,restore,second,again,delta,kept,standby,throttle,limits] [--to directory,S3] [--tools WORDS]

What is measured, always of one pgbench cluster (scale 175 is 2.6 GiB) on which nothing else happens:
  full      a full backup into a fresh repository
  restore   that backup into an empty directory
  second    a backup into the same repository after `UPDATE` of one in a hundred accounts at random (they lie on half of the pages) and a checkpoint
  again     that second backup into an empty directory
  delta     that second backup onto the data directory of a server that stood still since before the update
  kept      not measured: the first backup is deleted, the second restored again (pgvault only: other tools' second backups need their first)
  standby   a new standby from that second backup, from nothing to streaming, and what it costs the primary
  throttle  how far WAL lags behind while a backup runs at 25 MB/s, at full speed, and while none runs
  limits    what the machine can do at all
Every part makes what it needs of the others without measuring it. Tools that are not there are left out and named.

How it is fair:
- In each run every tool has its turn, one after the other, so that a slow minute of the machine hits all; the one that comes first is another one in each
  run. The median of the runs is printed.
- What was restored is removed between two runs only, and a minute passes before the next is measured: ext4 without a journal walks past every inode that was
  deleted in the last minute when it makes a file, and a tool would pay for what the one before had left.
- `sync` runs before the clock starts and, for every tool, once before it stops: nobody wins by leaving dirty pages behind.
- The cluster, the repositories and the directories fit into memory, and what is read comes from the page cache. pgvault restores whole chunks of large files
  past it (`O_DIRECT`), the others through it: a server that starts then finds those pages on the disk.
- Everything asks for a fast checkpoint, and one was made just before. All tools run as the servers' user with two workers, zstd level 1 (Barman: lz4, the
  quickest that it offers).
- archive_mode is off, so that no tool waits for its archive_command: pgBackRest runs with archive-check=n, Barman's and WAL-RUS's waiting ends at once. pgvault has
  no such mode: that the WAL of the backup is in the repository is part of its time. WAL written before (by the update) is archived before the clock starts. WAL is not
  counted in stored bytes. WAL-RUS needs archived WAL for its second backup; it is pushed before the clock starts.
- pgBackRest speaks https only, the others use http of the same store.
- Each restore is proven after the clock has stopped: a server starts on it, and count and sum of the accounts are those of the primary.
- CPU is that of the tool and everything that it starts (for pgvault daemon and command), "server" that of PostgreSQL, both by control groups; the store's CPU is in
  neither, but takes its part of the machine. Memory is the highest sum of anonymous memory.
Ratios within one run are what to look at: the machine, server and store included, is whatever it is.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import HttpsS3, Server, as_user, discard, environment, give_to_user, in_turn, medians, table, tree_bytes, wait_until, workplace
from counted import COUNTED, Group, Measured
from limits import limits
from standby import standby
from throttle import throttle
from tools import Barman, PgBackRest, PgBasebackup, Pgvault, Place, WalRus, folder, pgbackrest_knows, pgbackrest_version

PARTS = ["full", "restore", "second", "again", "delta", "kept", "standby", "throttle", "limits"]
TITLES = {"full": "Full backup", "restore": "Restore of the full backup", "second": "Second backup, 1 % of the accounts updated at random",
          "again": "Restore of the second backup", "delta": "Delta restore of the second backup onto a directory from before the update",
          "standby": "A new standby, until it streams"}
QUIET = "max_wal_size='64GB'\ncheckpoint_timeout='1d'\nautovacuum=off\nwal_keep_size='64GB'\nfsync=off\n"


class Bench:
    """The cluster that is backed up, and what was found about each tool."""

    def __init__(self, args, base):
        self.args, self.base, self.major, self.peers = args, base, args.major, args.peers
        # The servers' user must be able to run it, wherever it was built.
        self.pgvault = Path(shutil.copy(args.pgvault, base / "pgvault"))
        self.server = Server(args.servers / f"pg/{args.major}/bin", base, "primary", QUIET + ("summarize_wal=on\n" if args.major >= 17 else ""))
        self.server_group, self.tool_group = Group("server"), Group("tool")
        self.updates, self.restores, self.expected, self.first_segment = 0, 0, None, None
        self.found, self.kinds = {}, {}

    def start(self):
        self.server.init()
        self.server.start()
        postmaster = int((self.server.data / "postmaster.pid").read_text().split()[0])
        family = subprocess.run(["pgrep", "-P", str(postmaster)], capture_output=True, text=True).stdout.split()
        self.server_group.adopt([postmaster, *family])
        self.server.pgbench("-i", "-q", "-s", self.args.scale)
        self.server.sql("CHECKPOINT")
        self.expect()
        self.size = sum(tree_bytes(self.server.data / part) for part in ("base", "global"))
        print(f"PostgreSQL {self.server.sql('SHOW server_version')}, scale {self.args.scale}: {self.size / 2**30:.2f} GiB", file=sys.stderr, flush=True)

    def expect(self):
        self.expected = self.server.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts")

    def update(self):
        """One in a hundred accounts, somewhere."""
        self.updates += 1
        rows = self.args.scale * 100_000
        self.server.sql(f"SELECT setseed({self.updates / 100}); UPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid IN "
                        f"(SELECT (random() * {rows - 1})::int + 1 FROM generate_series(1, {rows // 100}))")
        self.server.sql("CHECKPOINT; SELECT pg_switch_wal(); CHECKPOINT")
        self.expect()

    def segments(self, after):
        """Whole segments in pg_wal from `after` on."""
        now = self.segment()
        names = sorted(path.name for path in (self.server.data / "pg_wal").iterdir() if re.fullmatch("[0-9A-F]{24}", path.name))
        return [self.server.data / "pg_wal" / name for name in names if after <= name < now]

    def segment(self):
        return self.server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")

    def measure(self, part, tool, work):
        tool.ready()
        try:
            with Measured(self.tool_group, self.server_group) as cost:
                work()
        finally:
            tool.done()
        row = [cost.wall, cost.cpu, cost.server_cpu, cost.peak]
        print(f"  {part}: {tool.label}: {cost.wall:.2f} s, {cost.cpu or 0:.2f} CPU s, server {cost.server_cpu or 0:.2f}, {cost.peak or 0:.0f} MiB {tool.kind if part == 'second' else ''}",
              file=sys.stderr, flush=True)
        return row

    def note(self, part, tool, row):
        self.found.setdefault(part, {}).setdefault(tool.label, []).append(row)

    def target(self):
        self.restores += 1
        return self.base / f"restored-{self.restores}"

    def prove(self, tool, target):
        """A server starts on it and has every account; nothing else needs it then."""
        with open(target / "postgresql.conf", "a") as conf:
            conf.write(f"\nunix_socket_directories = '{self.base}'\nsummarize_wal = off\n" if self.major >= 17 else f"\nunix_socket_directories = '{self.base}'\n")
        tool.recovers(target)
        node = Server(self.server.bin, self.base, target.name)
        node.start(environment(tool.server_env))
        try:
            wait_until("the end of recovery", lambda: node.sql("SELECT NOT pg_is_in_recovery()") == "t", every=0.1)
            found = node.sql("SELECT count(*), sum(abalance) FROM pgbench_accounts")
            if found != self.expected:
                sys.exit(f"{tool.label}: the restored server has {found}, {self.expected} is due")
        except SystemExit:
            print((self.base / f"{target.name}.log").read_text()[-3000:], file=sys.stderr)
            raise
        finally:
            node.stop("immediate")
        discard(target)

    def old_directory(self):
        """The data directory of a server that stood still since now."""
        path = self.base / "old"
        as_user([self.server.bin / "pg_basebackup", "-h", "127.0.0.1", "-p", self.server.port, "-U", "postgres", "-X", "stream", "-c", "fast", "-D", path])
        node = Server(self.server.bin, self.base, "old")
        node.start()
        node.sql("CHECKPOINT")
        node.stop()
        return path


def full(bench, tools, measured):
    for run in range(bench.args.runs if measured else 1):
        for tool in in_turn(tools, run):
            tool.begin()
            if measured:
                row = bench.measure("full", tool, tool.full)
                bench.note("full", tool, [*row, tool.stored() / 2**20])
            else:
                tool.ready()
                tool.full()
                tool.done()


def second(bench, tools, measured):
    for run in range(bench.args.runs if measured else 1):
        bench.update()
        for tool in tools:
            tool.after_update()
        for tool in in_turn(tools, run):
            before = tool.stored()
            if measured:
                row = bench.measure("second", tool, tool.second)
                bench.kinds[tool.label] = tool.kind
                bench.note("second", tool, [*row, (tool.stored() - before) / 2**20])
            else:
                tool.ready()
                tool.second()
                tool.done()


def restore(bench, tools, part):
    for run in range(bench.args.runs):
        for tool in in_turn(tools, run):
            target = folder(bench.target())
            # Nothing streams from the server meanwhile: `ready` is for backups.
            with Measured(bench.tool_group, bench.server_group) as cost:
                tool.restore(target)
            bench.note(part, tool, told(part, tool, cost))
            bench.prove(tool, target)


def delta(bench, tools, old):
    for run in range(bench.args.runs):
        for tool in in_turn(tools, run):
            target = bench.target()
            subprocess.run(["cp", "-a", old, target], check=True)
            with Measured(bench.tool_group, bench.server_group) as cost:
                tool.restore_delta(target)
            bench.note("delta", tool, told("delta", tool, cost))
            bench.prove(tool, target)


def kept(bench, tools):
    """The first backup is deleted; the newest one is restored again and proven."""
    for tool in tools:
        if not isinstance(tool, Pgvault):
            continue
        if not tool.deletes(bench.pgvault):
            print("left out: this pgvault does not delete backups", file=sys.stderr)
            return
        tool.delete_first()
        target = folder(bench.target())
        tool.restore(target)
        bench.prove(tool, target)
        print(f"  kept: {tool.label}: the first backup is deleted, the newest restored exactly", file=sys.stderr, flush=True)


def told(part, tool, cost):
    print(f"  {part}: {tool.label}: {cost.wall:.2f} s, {cost.cpu or 0:.2f} CPU s, {cost.peak or 0:.0f} MiB", file=sys.stderr, flush=True)
    return [cost.wall, cost.cpu, cost.peak]


def there(bench, place):
    """The tools that can be had, at this place."""
    args, group, left_out = bench.args, bench.tool_group, []
    tools = [Pgvault(bench, place, group, "stream")]
    if Pgvault.knows_files(bench.pgvault):
        tools.append(Pgvault(bench, place, group, "files"))
    else:
        left_out.append("pgvault files")
    if not place.s3:
        tools.append(PgBasebackup(bench, place, group))
    if pgbackrest_knows(bench.major):
        tools.append(PgBackRest(bench, place, group))
    else:
        left_out.append(f"pgBackRest {pgbackrest_version() or ''}")
    if (args.peers / "bin/walrus").exists():
        tools += [WalRus(bench, place, group, False), WalRus(bench, place, group, True)]
    else:
        left_out.append("WAL-RUS")
    if place.s3:
        if (args.peers / "barman/bin/barman-cloud-backup").exists():
            tools.append(Barman(bench, place, group))
        else:
            left_out.append("barman-cloud")
    if left_out:
        print(f"left out: {', '.join(left_out)}", file=sys.stderr)
    return [tool for tool in tools if not args.tools or any(word in tool.label for word in args.tools.split(","))]


def restoring(tools):
    """Repositories of both sources of pgvault are alike: one of them is restored."""
    seen = {(type(tool), tool.place.name): tool for tool in reversed(tools)}
    return [tool for tool in tools if seen[type(tool), tool.place.name] is tool or not isinstance(tool, Pgvault)]


def report(bench, rows_of_limits, lags):
    args = bench.args
    print(f"PostgreSQL {bench.server.bin.parent.name}, scale {args.scale} ({bench.size / 2**30:.2f} GiB), median of {args.runs}.")
    for part in TITLES:
        found = bench.found.get(part)
        if not found:
            continue
        print(f"\n### {TITLES[part]}\n")
        takes, serves = part in ("full", "second"), part in ("full", "second", "standby")
        head = ["tool", "wall s", "CPU s", *(["server CPU s"] if serves else []), "peak MiB", *(["stored MiB"] if takes else [])]
        head += ["sent MiB"] if part == "standby" else []
        reads = (lambda label: [bench.kinds[label]]) if part == "second" else (lambda label: [])
        table([*head, *(["stores"] if part == "second" else [])], [[label, *medians(runs), *reads(label)] for label, runs in found.items()])
    if rows_of_limits:
        print("\n### Limits of the machine in this run\n")
        table(["what", "MiB/s"], rows_of_limits)
    if lags:
        print("\n### WAL while a backup runs, 300 transactions per second\n")
        table(["what runs", "MB/s of it", "not in the spool, KiB: median", "most", "not in the repository, s: median", "most"], lags)
    if aims := list(ratios(bench.found)):
        print("\n### Ratios of wall time\n")
        table(["what", "ratio", "aim"], aims)


def ratios(found):
    def of(part, name, place):
        runs = found.get(part, {}).get(f"{name}, {place}")
        return runs and medians(runs)
    def ratio(words, part, ours, theirs, place, aim, column=0):
        a, b = of(part, ours, place), [x for x in (of(part, name, place) for name in theirs) if x]
        if a and b:
            yield [f"{words}, {place}", a[column] / min(x[column] for x in b), aim]
    peers = ["pgBackRest", "WAL-RUS files", "WAL-RUS stream", "barman-cloud"]
    for place in ("directory", "S3"):
        yield from ratio("full, stream to WAL-RUS streaming", "full", "pgvault stream", ["WAL-RUS stream"], place, "0.7")
        yield from ratio("full, files to WAL-RUS reading files", "full", "pgvault files", ["WAL-RUS files"], place, "0.7")
        yield from ratio("second, stream to pgBackRest", "second", "pgvault stream", ["pgBackRest"], place, "1.0")
        yield from ratio("second, files to pgBackRest", "second", "pgvault files", ["pgBackRest"], place, "0.5")
        yield from ratio("bytes of the second, stream to pgBackRest", "second", "pgvault stream", ["pgBackRest"], place, "0.3", 4)
        for part in ("restore", "again"):
            yield from ratio(f"{part}, to the best", part, "pgvault stream", peers, place, "0.8")
            yield from ratio(f"{part}, CPU to the least", part, "pgvault stream", peers, place, "1.0", 1)
        yield from ratio("delta restore to pgBackRest", "delta", "pgvault stream", ["pgBackRest"], place, "0.4")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("pgvault", "servers", "peers"):
        parser.add_argument(name, type=lambda p: Path(p).resolve())
    parser.add_argument("--scale", type=int, default=175)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--major", type=int, default=15)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--to", default="directory,S3")
    parser.add_argument("--tools", default="", help="words of the rows' labels, with commas")
    parser.add_argument("--json", type=Path, help="every run's figures, into this file")
    args = parser.parse_args()
    parts = args.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    if not COUNTED:
        print("no control groups of version 1, or not root: CPU and memory are left out", file=sys.stderr)
    with workplace("backup") as base:
        bench, s3, tools, rows, lags = Bench(args, base), None, [], [], []
        try:
            bench.start()
            if "S3" in args.to:
                s3 = HttpsS3(args.servers, base)
            for place in args.to.split(","):
                tools += there(bench, Place(base, s3 if place == "S3" else None))
            if "limits" in parts:
                rows = [list(row) for row in limits(base, bench.server.data / "base", tree_bytes(bench.server.data / "base"), s3)]
            if set(parts) - {"limits", "throttle"}:
                run(bench, tools, parts)
            if "throttle" in parts:
                lags = [row for tool in tools[:1] for row in throttle(bench, tool, 15)]
        finally:
            for tool in tools:
                tool.done()
            if s3:
                s3.stop()
            bench.server.stop("immediate")
            bench.server_group.remove()
            bench.tool_group.remove()
    if args.json:
        args.json.write_text(json.dumps(bench.found, indent=1))
    report(bench, rows, lags)


def run(bench, tools, parts):
    """The parts in their order, each with what it needs."""
    full(bench, tools, "full" in parts)
    if "restore" in parts:
        restore(bench, restoring(tools), "restore")
    if not set(parts) & {"second", "again", "delta", "kept", "standby"}:
        return
    deltas = [tool for tool in restoring(tools) if tool.delta and "delta" in parts]
    old = bench.old_directory() if deltas else None
    second(bench, tools, "second" in parts)
    if "again" in parts:
        restore(bench, restoring(tools), "again")
    if deltas:
        delta(bench, deltas, old)
    if "standby" in parts:
        standby(bench, restoring(tools), bench.found.setdefault("standby", {}))
    if "kept" in parts:
        kept(bench, tools)


if __name__ == "__main__":
    main()
