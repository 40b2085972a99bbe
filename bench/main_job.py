#!/usr/bin/env python3
"""make bench: back up and restore a pgbench cluster, once to a directory and once to S3, beside PostgreSQL's own tools in the same run.

usage: main_job.py PGVAULT SERVERS [SCALE]     SCALE 140 is about 2 GiB
Prints one table. Times are wall seconds including one sync; ratios are what to look at, the machine is whatever it is.
"""

import json
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PGVAULT, SERVERS = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
SCALE = int(sys.argv[3]) if len(sys.argv) > 3 else 140
BIN = SERVERS / "pg/15/bin"
ROOT = os.getuid() == 0
USER = pwd.getpwnam("postgres") if ROOT else None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def as_user(args, **kwargs):
    """Runs a program as the servers' user; PostgreSQL refuses root."""
    if ROOT:
        args = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *map(str, args)]
    return subprocess.run(list(map(str, args)), check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)


def timed(label, rows, work):
    subprocess.run(["sync"], check=True)
    before, start = os.times(), time.monotonic()
    result = work()
    subprocess.run(["sync"], check=True)
    wall, after = time.monotonic() - start, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    rows.append([label, wall, cpu, None])
    return result


def peak_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


def cpu_seconds(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tree_bytes(folder):
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


class Server:
    def __init__(self, base, name):
        self.data, self.port = base / name, free_port()
        self.base = base

    def sql(self, text):
        return as_user([BIN / "psql", "-XqAt", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-c", text, "postgres"]).stdout.decode().strip()

    def init(self):
        as_user([BIN / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync"])
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write("wal_level=replica\nmax_wal_senders=10\nshared_buffers='256MB'\nmax_wal_size='4GB'\nfsync=off\nlisten_addresses='127.0.0.1'\n")

    def start(self):
        as_user([BIN / "pg_ctl", "-D", self.data, "-w", "-t", "120", "-l", self.base / f"{self.data.name}.log",
                 "-o", f"-p {self.port} -k {self.base}", "start"])

    def stop(self):
        as_user([BIN / "pg_ctl", "-D", self.data, "-m", "fast", "-w", "stop"])


def start_s3(base):
    port, folder = free_port(), base / "s3"
    folder.mkdir()
    (folder / "s3.json").write_text('{"identities":[{"name":"t","credentials":[{"accessKey":"k","secretKey":"s"}],'
                                    '"actions":["Admin","Read","List","Tagging","Write"]}]}')
    ports = [free_port() % 20000 + 20000 for _ in range(3)]
    process = subprocess.Popen(
        [SERVERS / "bin/weed", "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={port}",
         f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-master.port={ports[0]}", f"-volume.port={ports[1]}",
         f"-filer.port={ports[2]}", "-master.volumeSizeLimitMB=1024", "-volume.max=200", "-master.telemetry=false"],
        stdout=subprocess.DEVNULL, stderr=open(base / "s3.log", "w"))
    for _ in range(300):
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as conn:
                conn.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
                if b"403" in conn.recv(64):
                    return process, port
        except OSError:
            pass
        time.sleep(0.1)
    sys.exit("SeaweedFS did not start: " + (base / "s3.log").read_text()[-2000:])


def run_pgvault(base, name, server, repository, extra_env, rows):
    """serve, backup now --wait, recover; the daemon's CPU and peak memory beside the wall clock."""
    state, config, restored = base / f"{name}.state", base / f"{name}.toml", base / f"{name}.restored"
    config.write_text(f"""
[daemon]
state_dir = "{state}"
[repository]
{repository}
[http]
listen = "127.0.0.1:{free_port()}"
[cluster.main]
conninfo = "host=127.0.0.1 port={server.port} user=postgres"
slot = "pgvault_{name}"
schedule = ""
""")
    env = {**os.environ, **extra_env}
    log = open(base / f"{name}.log", "w")
    daemon = subprocess.Popen([PGVAULT, "-c", config, "serve"], env=env, stderr=log, stdout=log)
    try:
        # WAL in the repository means that both ends work: before that a backup is refused.
        for _ in range(600):
            seen = subprocess.run([PGVAULT, "-c", config, "status", "main", "--json"], env=env, capture_output=True)
            if seen.stdout and json.loads(seen.stdout)["clusters"][0]["wal"]["shipped_lsn"]:
                break
            time.sleep(0.1)
        else:
            sys.exit(f"no WAL arrives:\n{(base / f'{name}.log').read_text()[-3000:]}")
        for label in ("full backup", "second backup, nothing changed"):
            rows_here = []
            before = cpu_seconds(daemon.pid)
            ended = timed(f"pgvault {name}: {label}", rows_here, lambda: subprocess.run(
                [PGVAULT, "-c", config, "backup", "now", "main", "--wait", "--fast-checkpoint"], env=env, capture_output=True))
            if ended.returncode:
                sys.exit(f"backup failed: {ended.stderr.decode()}\n{(base / f'{name}.log').read_text()[-3000:]}")
            rows_here[0][2] += cpu_seconds(daemon.pid) - before
            rows_here[0][3] = peak_mib(daemon.pid)
            rows += rows_here
        restored.mkdir(mode=0o700)
        if ROOT:
            shutil.chown(restored, "postgres", "postgres")
        owner = ["--owner", "postgres"] if ROOT else []
        command = ["/usr/bin/env", PGVAULT, "-c", config, "recover", "main", "--immediate", "--to", restored, *owner]
        subprocess.run(["sync"], check=True)
        start = time.monotonic()
        process = subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate()
        if process.returncode:
            sys.exit(f"recover failed: {errors.decode()}")
        subprocess.run(["sync"], check=True)
        rows.append([f"pgvault {name}: restore", time.monotonic() - start, None, None])
        print(f"daemon {name}: peak memory {peak_mib(daemon.pid):.0f} MiB after all", flush=True)
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait(60)
    shutil.rmtree(restored)


def main():
    base = Path(tempfile.mkdtemp(prefix="pgvault-bench-"))
    base.chmod(0o755)
    if ROOT:
        shutil.chown(base, "postgres", "postgres")
    rows, server, s3 = [], Server(base, "primary"), None
    try:
        server.init()
        server.start()
        as_user([BIN / "pgbench", "-h", "127.0.0.1", "-p", server.port, "-U", "postgres", "-i", "-q", "-s", SCALE, "postgres"])
        server.sql("CHECKPOINT")
        print(f"cluster: {tree_bytes(server.data / 'base') / 2**30:.2f} GiB, scale {SCALE}", flush=True)
        timed("pg_basebackup, plain, no WAL", rows, lambda: as_user(
            [BIN / "pg_basebackup", "-h", "127.0.0.1", "-p", server.port, "-U", "postgres", "-X", "none", "-c", "fast", "-D", base / "pgbb"]))
        timed("cp -r of that", rows, lambda: subprocess.run(["cp", "-r", base / "pgbb", base / "copy"], check=True))
        shutil.rmtree(base / "pgbb")
        shutil.rmtree(base / "copy")
        run_pgvault(base, "directory", server, f'url = "file://{base}/repository"', {}, rows)
        print(f"repository: {tree_bytes(base / 'repository') / 2**20:.0f} MiB", flush=True)
        s3, port = start_s3(base)
        env = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
        make_bucket(port, env)
        run_pgvault(base, "s3", server, f'url = "s3://bench/p"\nendpoint = "http://127.0.0.1:{port}"\npath_style = true\nallow_http = true', env, rows)
        server.stop()
    finally:
        if s3:
            s3.kill()
            s3.wait()
        if (server.data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(base, ignore_errors=True)
    print(f"{'':44} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}")
    for label, wall, cpu, peak in rows:
        print(f"{label:44} {wall:8.1f} {cpu if cpu is None else format(cpu, '8.1f')!s:>8} {'' if peak is None else format(peak, '9.0f'):>9}")


def make_bucket(port, env):
    """PUT /bench with a hand-made SigV4 signature: no S3 client is needed for one request."""
    import datetime
    import hashlib
    import hmac
    import http.client
    now = datetime.datetime.now(datetime.timezone.utc)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    empty = hashlib.sha256(b"").hexdigest()
    host = f"127.0.0.1:{port}"
    canonical = f"PUT\n/bench\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{stamp}\n\nhost;x-amz-content-sha256;x-amz-date\n{empty}"
    scope = f"{day}/us-east-1/s3/aws4_request"
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = ("AWS4" + env["AWS_SECRET_ACCESS_KEY"]).encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("PUT", "/bench", headers={
        "Host": host, "x-amz-date": stamp, "x-amz-content-sha256": empty,
        "Authorization": f"AWS4-HMAC-SHA256 Credential={env['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}"})
    status = connection.getresponse().status
    if status not in (200, 409):
        sys.exit(f"cannot make the bucket: {status}")


main()
