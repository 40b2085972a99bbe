#!/usr/bin/env python3
"""make bench: back up and restore a pgbench cluster, once to a directory and once to S3, beside PostgreSQL's own tools in the same run.

usage: main_job.py PGVAULT SERVERS [SCALE]     SCALE 140 is about 2 GiB
Prints one table. Times are wall seconds including one sync; ratios are what to look at, the machine is whatever it is.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, S3, S3_ENV, Server, as_user, config, cpu_seconds, end, environment, give_to_user, peak_mib, s3_repository, tree_bytes, workplace

PGVAULT, SERVERS = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
SCALE = int(sys.argv[3]) if len(sys.argv) > 3 else 140
BIN = SERVERS / "pg/15/bin"


def timed(label, rows, work):
    subprocess.run(["sync"], check=True)
    before, start = os.times(), time.monotonic()
    result = work()
    subprocess.run(["sync"], check=True)
    wall, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    rows.append([label, wall, cpu, None])
    return result


def run_pgvault(base, name, server, repository, extra_env, rows):
    """serve, backup now --wait, recover; the daemon's CPU and peak memory beside the wall clock."""
    configuration, _ = config(base, name, server, repository, f'slot = "pgvault_{name}"')
    restored = base / f"{name}.restored"
    env = environment(extra_env)
    log = open(base / f"{name}.log", "w")
    daemon = subprocess.Popen([PGVAULT, "-c", configuration, "serve"], env=env, stderr=log, stdout=log)
    try:
        # WAL in the repository means that both ends work: before that a backup is refused.
        for _ in range(600):
            seen = subprocess.run([PGVAULT, "-c", configuration, "status", "main", "--json"], env=env, capture_output=True)
            if seen.stdout and json.loads(seen.stdout)["clusters"][0]["wal"]["shipped_lsn"]:
                break
            time.sleep(0.1)
        else:
            sys.exit(f"no WAL arrives:\n{(base / f'{name}.log').read_text()[-3000:]}")
        for label in ("full backup", "second backup, nothing changed"):
            rows_here = []
            before = cpu_seconds(daemon.pid)
            ended = timed(f"pgvault {name}: {label}", rows_here, lambda: subprocess.run(
                [PGVAULT, "-c", configuration, "backup", "now", "main", "--wait", "--fast-checkpoint"], env=env, capture_output=True))
            if ended.returncode:
                sys.exit(f"backup failed: {ended.stderr.decode()}\n{(base / f'{name}.log').read_text()[-3000:]}")
            rows_here[0][2] += cpu_seconds(daemon.pid) - before
            rows_here[0][3] = peak_mib(daemon.pid)
            rows += rows_here
        restored.mkdir(mode=0o700)
        give_to_user(restored)
        owner = ["--owner", "postgres"] if ROOT else []
        command = ["/usr/bin/env", PGVAULT, "-c", configuration, "recover", "main", "--immediate", "--to", restored, *owner]
        subprocess.run(["sync"], check=True)
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        _, errors = process.communicate()
        if process.returncode:
            sys.exit(f"recover failed: {errors.decode()}")
        subprocess.run(["sync"], check=True)
        rows.append([f"pgvault {name}: restore", time.monotonic() - start, None, None])
        print(f"daemon {name}: peak memory {peak_mib(daemon.pid):.0f} MiB after all", flush=True)
    finally:
        end(daemon)
    shutil.rmtree(restored)


def main():
    with workplace("bench") as base:
        rows, server, s3 = [], Server(BIN, base, "primary", "max_wal_size='4GB'\nfsync=off"), None
        try:
            server.init()
            server.start()
            server.pgbench("-i", "-q", "-s", SCALE)
            server.sql("CHECKPOINT")
            print(f"cluster: {tree_bytes(server.data / 'base') / 2**30:.2f} GiB, scale {SCALE}", flush=True)
            timed("pg_basebackup, plain, no WAL", rows, lambda: as_user(
                [BIN / "pg_basebackup", "-h", "127.0.0.1", "-p", server.port, "-U", "postgres", "-X", "none", "-c", "fast", "-D", base / "pgbb"]))
            timed("cp -r of that", rows, lambda: subprocess.run(["cp", "-r", base / "pgbb", base / "copy"], check=True))
            shutil.rmtree(base / "pgbb")
            shutil.rmtree(base / "copy")
            run_pgvault(base, "directory", server, f'url = "file://{base}/repository"', {}, rows)
            print(f"repository: {tree_bytes(base / 'repository') / 2**20:.0f} MiB", flush=True)
            s3 = S3(SERVERS, base)
            run_pgvault(base, "s3", server, s3_repository(s3, "p"), S3_ENV, rows)
        finally:
            if s3:
                s3.stop()
            server.stop()
    print(f"{'':44} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}")
    for label, wall, cpu, peak in rows:
        print(f"{label:44} {wall:8.1f} {cpu if cpu is None else format(cpu, '8.1f')!s:>8} {'' if peak is None else format(peak, '9.0f'):>9}")


main()
