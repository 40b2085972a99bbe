#!/usr/bin/env python3
"""make bench-wal: how fast WAL is taken in and stored, what a synchronous commit costs, and what idling costs, beside other tools in the same run.

usage: wal.py PGVAULT SERVERS PEERS [--segments 138] [--runs 3] [--seconds 10] [--only intake,commit,idle,restart]

Intake: the same WAL, kept by slots that were made before it was written, goes to each tool in turn, `--runs` times, and the median is printed.
The clock starts with the first file of a segment that the tool makes, and stops for "received" when the last segment has its final name in the tool's
folder, for "archived" when every segment is in the repository. CPU is that of the tool's process between start and the later of the two.
Ratios within one run are what to look at: the machine, server and store included, is whatever it is.
"""

import argparse
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from common import (BUCKET, S3, S3_ENV, Server, config, cpu_seconds, end, environment, medians, peak_mib, s3_repository, table, tree_bytes, wait_until,
                    workplace)

SEGMENT = 16 << 20
MB = 1e6


class Tool:
    """One way of receiving WAL: how it is started and what its end looks like."""

    def __init__(self, label, sync, start, received, archived=None):
        self.label, self.sync, self.start, self.received, self.archived = label, sync, start, received, archived


class Wal:
    """WAL to receive: so many whole segments, and the last one's name."""

    def __init__(self, server, segments, slots):
        server.sql("SELECT pg_switch_wal()")
        # A running-transactions record lets the slots begin in a new segment.
        server.sql("CHECKPOINT")
        for slot in slots:
            server.sql(f"SELECT pg_create_physical_replication_slot('{slot}', true)")
        begin = self._number(server)
        server.pgbench("-i", "-q", "-s", max(1, segments // 4))
        while self._number(server) - begin < segments - 1:
            server.pgbench("-N", "-n", "-M", "prepared", "-c", "4", "-j", "2", "-t", "4000")
            server.sql("CHECKPOINT")
        self.last = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        server.sql("SELECT pg_switch_wal()")
        self.count = int(self.last[8:16], 16) * 256 + int(self.last[16:], 16) - begin + 1
        self.bytes = self.count * SEGMENT

    @staticmethod
    def _number(server):
        name = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())")
        return int(name[8:16], 16) * 256 + int(name[16:], 16)


def popen(args, log, env=None):
    out = open(log, "w")
    return subprocess.Popen(list(map(str, args)), stdout=out, stderr=out, env=environment(env))


def s3_holds(s3, prefix, wal, name):
    """Whether every segment of the WAL lies under the prefix; `name` finds a segment's name in a key."""
    def look():
        found = {match[1] for key in s3.keys(prefix) if (match := name.search(key))}
        return wal.last in found and len([n for n in found if n <= wal.last]) >= wal.count
    return look


def folder_holds(folder, pattern, wal, name):
    def look():
        if not list(folder.glob(pattern.replace("*LAST*", f"{wal.last}*"))):
            return False
        found = {match[1] for path in folder.glob(pattern.replace("*LAST*", "*")) if (match := name.search(str(path)))}
        return len([n for n in found if n <= wal.last]) >= wal.count
    return look


def receivewal(binaries, label, sync, *options):
    def start(base, server, slot):
        folder = base / "wal"
        folder.mkdir()
        return popen([binaries / "pg_receivewal", "-D", folder, "-h", "127.0.0.1", "-p", server.port, "-U", "postgres", "-w", "-S", slot, *options],
                     base / "log"), folder
    return Tool(label, sync, start, lambda folder, wal: (folder / wal.last).exists())


def pgvault(program, label, sync, repository, archived, cluster="", env=None, keep=None):
    def start(base, server, slot):
        spool = base / "spool"
        path, _ = config(base, "pgvault", server, repository(base), f'slot = "{slot}"\n{cluster}', f'[spool]\ndir = "{spool}"')
        if keep is not None:
            keep["config"] = path
        return popen([program, "-c", path, "serve"], base / "log", env), spool
    return Tool(label, sync, start, lambda folder, wal: bool(list(folder.glob(f"*/*/{wal.last}"))), archived)


def walrus(program, label, env, archived, compression):
    def start(base, server, slot):
        folder = base / "wal"
        return popen([program, "wal-receive", folder], base / "log", {
            "PGHOST": "127.0.0.1", "PGPORT": str(server.port), "PGUSER": "postgres", "PGDATABASE": "postgres", "WALG_SLOTNAME": slot,
            "WALG_COMPRESSION_METHOD": compression, **env(base)}), folder
    # It removes a segment's file after the upload: the last one is received when it has, or had, its final name.
    def received(folder, wal):
        if (folder / f"{wal.last}.partial").exists():
            received.seen.add(folder)
        return (folder / wal.last).exists() or (folder in received.seen and not (folder / f"{wal.last}.partial").exists())
    received.seen = set()
    return Tool(label, "fsync of each segment", start, received, archived)


def drop_slot(server, slot):
    wait_until("the slot to be free", lambda: server.sql(f"SELECT NOT active FROM pg_replication_slots WHERE slot_name = '{slot}'") == "t", every=0.1)
    server.sql(f"SELECT pg_drop_replication_slot('{slot}')")


def intake(args, base, server, s3, wal, tools):
    """Every tool in turn, `runs` times."""
    runs = {tool.label: [] for tool in tools}
    for run in range(args.runs):
        for number, tool in enumerate(tools):
            place = base / f"run-{run}-{number}"
            place.mkdir()
            slot = f"bench_{run}_{number}"
            subprocess.run(["sync"], check=True)
            process, folder = tool.start(place, server, slot)
            try:
                started = lambda: any(folder.rglob("*.partial")) if folder.exists() else False
                wait_until(f"{tool.label} to receive", started, alive=process)
                cpu, begin = cpu_seconds(process.pid), time.monotonic()
                wait_until(f"{tool.label} to have received", lambda: tool.received(folder, wal), limit=300, alive=process)
                received = time.monotonic() - begin
                archived = None
                if tool.archived:
                    wait_until(f"{tool.label} to have archived", tool.archived(place, wal), limit=300, every=0.05, alive=process)
                    archived = time.monotonic() - begin
                cpu, peak = cpu_seconds(process.pid) - cpu, peak_mib(process.pid)
            except SystemExit:
                print((place / "log").read_text()[-3000:], file=sys.stderr)
                raise
            finally:
                end(process, signal.SIGKILL)
            gib = wal.bytes / 2**30
            runs[tool.label].append([wal.bytes / MB / received, wal.bytes / MB / archived if archived else None, cpu / gib, peak])
            print(f"  run {run + 1} {tool.label}: received {received:.2f} s, archived {archived or 0:.2f} s, {cpu:.2f} CPU s", file=sys.stderr, flush=True)
            drop_slot(server, slot)
            shutil.rmtree(place)
    print(f"\nIntake: {wal.count} segments, {wal.bytes / 2**30:.2f} GiB; median of {args.runs}\n")
    table(["tool", "received MB/s", "archived MB/s", "CPU-s/GiB", "peak MiB", "what it syncs"],
          [[tool.label, *medians(runs[tool.label]), tool.sync] for tool in tools])


def commits(args, base, server, variants):
    """pgbench -N with each tool as the only synchronous standby, interleaved."""
    results = {(label, clients): [] for label, _, _ in variants for clients in args.clients}
    for run in range(args.runs):
        for number, (label, name, tool) in enumerate(variants):
            place = base / f"commit-{run}-{number}"
            place.mkdir()
            process = None
            if tool:
                process, _ = tool.start(place, server, server_slot := f"commit_{run}_{number}")
            server.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
            server.sql("SELECT pg_reload_conf()")
            try:
                if tool:
                    wait_until(f"{label} to be the synchronous standby", lambda: server.sql(
                        f"SELECT count(*) FROM pg_stat_replication WHERE application_name = '{name}' AND state = 'streaming' AND sync_state = 'sync'"
                    ) == "1", every=0.2, alive=process)
                for clients in args.clients:
                    cpu = cpu_seconds(process.pid) if process else 0
                    said = server.pgbench("-N", "-n", "-M", "prepared", "-c", clients, "-j", min(clients, 2), "-T", args.seconds)
                    tps = float(re.search(r"tps = ([0-9.]+)", said)[1])
                    cpu = (cpu_seconds(process.pid) - cpu) / (tps * args.seconds) * 1e6 if process else None
                    results[label, clients].append([tps, cpu])
                    print(f"  run {run + 1} {label}, {clients} clients: {tps:.0f} tps, {cpu or 0:.0f} us CPU a commit", file=sys.stderr, flush=True)
            finally:
                server.sql("ALTER SYSTEM SET synchronous_standby_names = ''")
                server.sql("SELECT pg_reload_conf()")
                if process:
                    end(process)
                    drop_slot(server, server_slot)
            shutil.rmtree(place)
    print(f"\nCommits as the only synchronous standby: pgbench -N -M prepared, {args.seconds} s; median of {args.runs}\n")
    heads = [f"{n} client{'s' if n > 1 else ''}{what}" for n in args.clients for what in (", tps", ", CPU us a commit")]
    table(["standby", *heads], [[label, *(x for n in args.clients for x in medians(results[label, n]))] for label, _, _ in variants])


def requests(configuration):
    """How many requests reached the store, by the daemon's own counters."""
    listen = re.search(r'listen = "([^"]+)"', configuration.read_text())[1]
    with urllib.request.urlopen(f"http://{listen}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("pgvault_storage_requests_total"))


def idle(base, server, tool, keep, seconds=30):
    place = base / "idle"
    place.mkdir()
    server.sql("SELECT pg_create_physical_replication_slot('bench_idle', true)")
    process, _ = tool.start(place, server, "bench_idle")
    try:
        wait_until("streaming", lambda: server.sql("SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'") == "1", every=0.2, alive=process)
        time.sleep(15)
        cpu, asked = cpu_seconds(process.pid), requests(keep["config"])
        time.sleep(seconds)
        cpu, asked = cpu_seconds(process.pid) - cpu, requests(keep["config"]) - asked
        print(f"\nIdle for {seconds} s, S3: {100 * cpu / seconds:.2f} % of a core, {asked:.0f} requests to the store, peak memory {peak_mib(process.pid):.0f} MiB")
    finally:
        end(process)
        drop_slot(server, "bench_idle")


def restart(base, server, s3, wal, tool, slot):
    """kill -9 with a spool of a gigabyte while the store does not answer: how long until WAL streams again."""
    place = base / "restart"
    place.mkdir()
    process, spool = tool.start(place, server, slot)
    frozen = False
    try:
        wait_until("streaming", lambda: spool.exists() and any(spool.rglob("*.partial")), alive=process)
        s3.process.send_signal(signal.SIGSTOP)
        frozen = True
        wait_until("a spool of 1 GiB", lambda: tree_bytes(spool) >= min(2**30, wal.bytes - 8 * SEGMENT), every=0.05, alive=process)
        process.kill()
        process.wait()
        held = tree_bytes(spool)
        begin = time.monotonic()
        streams = lambda: server.sql("SELECT count(*) FROM pg_stat_replication WHERE application_name = 'pgvault'") == "1"
        wait_until("the old connection's end", lambda: not streams(), every=0.02)
        begin = time.monotonic()
        again = popen(process.args, place / "log2", S3_ENV)
        process = again
        wait_until("streaming again", streams, every=0.02, alive=again)
        print(f"\nAfter kill -9 with {held / 2**30:.2f} GiB in the spool and the store out of reach: streaming again after {time.monotonic() - begin:.2f} s")
    finally:
        if frozen:
            s3.process.send_signal(signal.SIGCONT)
        end(process, signal.SIGKILL)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("pgvault", type=lambda p: Path(p).resolve())
    parser.add_argument("servers", type=lambda p: Path(p).resolve())
    parser.add_argument("peers", type=lambda p: Path(p).resolve())
    parser.add_argument("--segments", type=int, default=138)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clients", type=lambda t: [int(n) for n in t.split(",")], default=[1, 8])
    parser.add_argument("--only", default="intake,commit,idle,restart")
    parser.add_argument("--tools", default="", help="run only tools whose label contains one of these words")
    args = parser.parse_args()
    only = set(args.only.split(","))
    binaries, rus = args.servers / "pg/15/bin", args.peers / "bin/walrus"
    wanted = lambda label: not args.tools or any(word in label for word in args.tools.split(","))

    with workplace("bench-wal") as base:
        server = Server(binaries, base, "primary", "max_wal_size='64GB'\ncheckpoint_timeout='1d'\nautovacuum=off\nfsync=off\nsynchronous_commit=off")
        server.init()
        server.start()
        s3, keep = None, {}
        try:
            if only & {"intake", "idle", "restart"}:
                s3 = S3(args.servers, base)
            prefixes = iter(range(1000))
            ours = re.compile(r"/([0-9A-F]{24})\.zst$")
            theirs = re.compile(r"/([0-9A-F]{24})\.(?:zst|lz4)$")
            current = {}

            def in_bucket(name):
                def repository(_):
                    current[name] = f"{name}{next(prefixes)}"
                    return s3_repository(s3, current[name])
                return repository, lambda place, wal: s3_holds(s3, f"{current[name]}/main/", wal, ours)

            def rus_bucket(name):
                def env(_):
                    current[name] = f"{name}{next(prefixes)}"
                    return {**S3_ENV, "WALG_S3_PREFIX": f"s3://{BUCKET}/{current[name]}", "AWS_ENDPOINT": s3.url, "AWS_S3_FORCE_PATH_STYLE": "true"}
                return env, lambda place, wal: s3_holds(s3, f"{current[name]}/wal_005/", wal, theirs)

            def rus_folder(base):
                (base / "repository").mkdir(exist_ok=True)
                return {"WALG_FILE_PREFIX": str(base / "repository")}

            policy = "fdatasync of each segment, and every second"
            to_folder = pgvault(args.pgvault, "pgvault, directory", policy, lambda b: f'url = "file://{b}/repository"',
                                lambda place, wal: folder_holds(place / "repository", "main/*/wal/*/*/*LAST*.zst", wal, ours))
            bucket, in_s3 = in_bucket("pgvault")
            to_s3 = pgvault(args.pgvault, "pgvault, S3", policy, bucket, in_s3, env=S3_ENV, keep=keep)
            in_rus_folder = lambda place, wal: folder_holds(place / "repository", "wal_005/*LAST*", wal, theirs)
            tools = [
                receivewal(binaries, "pg_receivewal", "fsync of each segment"),
                receivewal(binaries, "pg_receivewal --synchronous", "fsync whenever it has caught up", "--synchronous"),
                walrus(rus, "WAL-RUS, directory, lz4", rus_folder, in_rus_folder, "lz4"),
                walrus(rus, "WAL-RUS, directory, zstd 1", rus_folder, in_rus_folder, "zstd"),
                to_folder,
            ]
            if s3:
                for compression, word in (("lz4", "lz4"), ("zstd", "zstd 1")):
                    env, seen = rus_bucket(f"walrus-{compression}")
                    tools.append(walrus(rus, f"WAL-RUS, S3, {word}", env, seen, compression))
                tools.append(to_s3)
            if not rus.exists():
                print(f"WAL-RUS is not there ({rus}): scripts/setup-peers.sh builds it", file=sys.stderr)
            tools = [tool for tool in tools if wanted(tool.label) and (rus.exists() or "WAL-RUS" not in tool.label)]

            if only & {"intake", "restart"}:
                slots = [f"bench_{run}_{number}" for run in range(args.runs) for number in range(len(tools))] if "intake" in only else []
                wal = Wal(server, args.segments, slots + ["bench_restart"])
                print(f"{wal.count} segments of WAL", file=sys.stderr, flush=True)
            if "intake" in only:
                intake(args, base, server, s3, wal, tools)
            if "restart" in only:
                restart(base, server, s3, wal, to_s3, "bench_restart")
                drop_slot(server, "bench_restart")
            if "idle" in only:
                idle(base, server, to_s3, keep)
            if s3:
                s3.stop()
                s3 = None
            if "commit" in only:
                for name in ("fsync", "synchronous_commit"):
                    server.sql(f"ALTER SYSTEM SET {name} = on")
                server.stop()
                server.start()
                server.pgbench("-i", "-q", "-s", "20")
                server.sql("CHECKPOINT")
                slots = [f"commit_{run}_{number}" for run in range(args.runs) for number in (1, 2)]
                for slot in slots:
                    server.sql(f"SELECT pg_create_physical_replication_slot('{slot}')")
                synchronous = pgvault(args.pgvault, "pgvault", "", lambda b: f'url = "file://{b}/repository"', None, cluster="synchronous = true")
                commits(args, base, server, [
                    ("none", "", None),
                    ("pg_receivewal --synchronous", "pg_receivewal", receivewal(binaries, "", "", "--synchronous")),
                    ("pgvault, synchronous = true", "pgvault", synchronous),
                ])
        finally:
            if s3:
                s3.stop()
            server.stop("immediate")


main()
