"""What the benchmarks share: throw-away servers, an S3 server, and how CPU, memory and requests are counted. Standard library only."""

import datetime
import hashlib
import hmac
import html
import http.client
import os
import pwd
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
from contextlib import contextmanager
from pathlib import Path

ROOT = os.getuid() == 0
S3_ENV = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "us-east-1"}
BUCKET = "bench"


def environment(extra=None):
    """The environment of a tool: what configures pgvault outside of this benchmark must not reach it."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("PGVAULT_")}, **(extra or {})}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def user_args(args):
    """A command line as the servers' user: PostgreSQL refuses root."""
    args = list(map(str, args))
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", *args] if ROOT else args


def as_user(args, **kwargs):
    """Runs a program as the servers' user."""
    done = subprocess.run(user_args(args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, args))} failed:\n{done.stdout.decode()[-3000:]}")
    return done


def give_to_user(path):
    if ROOT:
        shutil.chown(path, "postgres", pwd.getpwnam("postgres").pw_gid)


@contextmanager
def workplace(name):
    """A folder for one benchmark, removed at its end."""
    base = Path(tempfile.mkdtemp(prefix=f"pgvault-{name}-", dir=os.environ.get("BENCH_DIR")))
    base.chmod(0o755)
    give_to_user(base)
    try:
        yield base
    finally:
        shutil.rmtree(base, ignore_errors=True)


# On ext4 without a journal whoever makes a file walks past every inode that was deleted in the last 60 s (RECENTCY_MIN in ialloc.c).
FORGOTTEN_AFTER = 61
_discarded, _removed_at = [], None


def discard(folder):
    """Notes a directory for `clean_up`."""
    _discarded.append(folder)


def clean_up():
    """Removes what was discarded. What a prefetcher that outlives its server for a moment removes itself may be gone meanwhile."""
    global _removed_at
    if _discarded:
        subprocess.run(["rm", "-rf", *_discarded], check=False)
        subprocess.run(["sync"], check=True)
        _discarded.clear()
        _removed_at = time.monotonic()


def settle():
    """Waits until what was removed costs nobody anything any more."""
    if _removed_at is not None:
        time.sleep(max(0, _removed_at + FORGOTTEN_AFTER - time.monotonic()))


def in_turn(tools, run):
    """The tools in the order of this run, each first in some; nothing is left of the run before."""
    clean_up()
    first = run % len(tools) if tools else 0
    return [*tools[first:], *tools[:first]]


def peak_mib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return None


def cpu_seconds(pid):
    """Of a process and of those of its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def tree_bytes(folder):
    return sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())


def wait_until(what, found, limit=120.0, every=0.002, alive=None):
    """Waits for a truth and returns it; `every` seconds between two looks."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if answer := found():
            return answer
        if alive is not None and alive.poll() is not None:
            sys.exit(f"waiting for {what}: the process has ended with {alive.returncode}")
        time.sleep(every)
    sys.exit(f"in vain: waited {limit:.0f} s for {what}")


def end(process, how=signal.SIGTERM, limit=60):
    """Ends a process that was started here."""
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Server:
    """A PostgreSQL server of a benchmark."""

    def __init__(self, binaries, base, name, conf=""):
        self.bin, self.base, self.data, self.port, self.conf = Path(binaries), base, base / name, free_port(), conf

    def sql(self, text):
        return as_user([self.bin / "psql", "-XqAt", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", "-c", text, "postgres"]).stdout.decode().strip()

    def init(self):
        as_user([self.bin / "initdb", "-D", self.data, "-U", "postgres", "-A", "trust", "--no-sync"])
        with open(self.data / "postgresql.conf", "a") as conf:
            conf.write(f"wal_level=replica\nmax_wal_senders=20\nmax_replication_slots=40\nshared_buffers='256MB'\nlisten_addresses='127.0.0.1'\n{self.conf}\n")

    def start(self, env=None):
        as_user([self.bin / "pg_ctl", "-D", self.data, "-w", "-t", "120", "-l", self.base / f"{self.data.name}.log",
                 "-o", f"-p {self.port} -k {self.base}", "start"], env=env)

    def stop(self, mode="fast"):
        if (self.data / "postmaster.pid").exists():
            as_user([self.bin / "pg_ctl", "-D", self.data, "-m", mode, "-w", "stop"])

    def pgbench(self, *args):
        return as_user([self.bin / "pgbench", "-h", "127.0.0.1", "-p", self.port, "-U", "postgres", *args, "postgres"]).stdout.decode()


class S3:
    """SeaweedFS on this machine, with one bucket."""

    def __init__(self, servers, base, more=()):
        """`more` are further options of the server."""
        self.log, folder = base / "s3.log", base / "s3"
        folder.mkdir()
        (folder / "s3.json").write_text('{"identities":[{"name":"t","credentials":[{"accessKey":"k","secretKey":"s"}],'
                                        '"actions":["Admin","Read","List","Tagging","Write"]}]}')
        # Beside each port it opens a second one, 10000 higher; somebody else may be faster to any of them.
        for _ in range(5):
            self.port, *ports = [free_port() % 20000 + 20000 for _ in range(4)]
            self.process = subprocess.Popen(
                [servers / "bin/weed", "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.port={self.port}",
                 f"-s3.config={folder}/s3.json", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-master.port={ports[0]}", f"-volume.port={ports[1]}",
                 f"-filer.port={ports[2]}", "-master.volumeSizeLimitMB=1024", "-volume.max=200", "-master.telemetry=false", *more],
                stdout=subprocess.DEVNULL, stderr=open(self.log, "w"))
            wait_until("SeaweedFS", lambda: self._answers() or self.process.poll() is not None, limit=60, every=0.1)
            if self.process.poll() is None:
                break
        status, _ = self.request("PUT", f"/{BUCKET}")
        if status not in (200, 409):
            sys.exit(f"cannot make the bucket: {status}")

    def _answers(self):
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as conn:
                conn.sendall(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
                return b"403" in conn.recv(64)
        except OSError:
            return False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def request(self, method, path, query=None, body=b""):
        """One request with a hand-made SigV4 signature: no S3 client is needed for that. The body itself is not signed."""
        now = datetime.datetime.now(datetime.timezone.utc)
        stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
        digest, host = "UNSIGNED-PAYLOAD" if body else hashlib.sha256(b"").hexdigest(), f"127.0.0.1:{self.port}"
        text = urllib.parse.urlencode(sorted((query or {}).items()), quote_via=urllib.parse.quote)
        canonical = f"{method}\n{path}\n{text}\nhost:{host}\nx-amz-content-sha256:{digest}\nx-amz-date:{stamp}\n\nhost;x-amz-content-sha256;x-amz-date\n{digest}"
        scope = f"{day}/us-east-1/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
        key = b"AWS4" + S3_ENV["AWS_SECRET_ACCESS_KEY"].encode()
        for part in (day, "us-east-1", "s3", "aws4_request"):
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, f"{path}?{text}" if text else path, body=body or None, headers={
            "Host": host, "x-amz-date": stamp, "x-amz-content-sha256": digest,
            "Authorization": f"AWS4-HMAC-SHA256 Credential={S3_ENV['AWS_ACCESS_KEY_ID']}/{scope}, SignedHeaders=host;x-amz-content-sha256;x-amz-date, Signature={signature}"})
        answer = connection.getresponse()
        told = answer.read()
        connection.close()
        return answer.status, told

    def keys(self, prefix):
        """The keys under a prefix, up to a thousand."""
        return [key for key, _ in self._page(prefix, {})[0]]

    def sizes(self, prefix):
        """Every key under a prefix with its bytes."""
        found, more = self._page(prefix, {})
        while more:
            page, more = self._page(prefix, {"continuation-token": more})
            found += page
        return dict(found)

    def _page(self, prefix, query):
        status, body = self.request("GET", f"/{BUCKET}", {"list-type": "2", "prefix": prefix, "max-keys": "1000", **query})
        if status != 200:
            sys.exit(f"cannot list the bucket: {status} {body[:300]}")
        text = html.unescape(body.decode())
        between = lambda part, name: part.split(f"<{name}>", 1)[1].split(f"</{name}>", 1)[0]
        more = between(text, "NextContinuationToken") if "<IsTruncated>true" in text else None
        return [(between(part, "Key"), int(between(part, "Size"))) for part in text.split("<Contents>")[1:]], more

    def stop(self):
        self.process.kill()
        self.process.wait()


class HttpsS3(S3):
    """SeaweedFS that speaks https as well."""

    def __init__(self, servers, base):
        self.https, self.folder = free_port() % 20000 + 20000, base / "certificates"
        self.folder.mkdir()
        certificates(self.folder)
        super().__init__(servers, base, [f"-s3.port.https={self.https}", f"-s3.cert.file={self.folder}/leaf.pem", f"-s3.key.file={self.folder}/leaf.key"])


def certificates(folder):
    """An authority and a certificate for this machine: pgBackRest speaks https only, so everybody here does."""
    run = lambda *args: subprocess.run(["openssl", *args], check=True, cwd=folder, capture_output=True)
    (folder / "leaf.ext").write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n")
    run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=bench authority")
    run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", "leaf.key", "-out", "leaf.csr", "-subj", "/CN=127.0.0.1")
    run("x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-out", "leaf.pem", "-days", "30", "-extfile", "leaf.ext")
    for file in folder.iterdir():
        file.chmod(0o644)


def config(base, name, server, repository, cluster="", extra=""):
    """A configuration of pgvault for one cluster, with a state directory of its own; returns file and state directory."""
    state, path = base / f"{name}.state", base / f"{name}.toml"
    path.write_text(f"""
[daemon]
state_dir = "{state}"
[repository]
{repository}
[http]
listen = "127.0.0.1:{free_port()}"
{extra}
[cluster.main]
conninfo = "host=127.0.0.1 port={server.port} user=postgres"
schedule = ""
{cluster}
""")
    return path, state


def s3_repository(s3, prefix):
    return f'url = "s3://{BUCKET}/{prefix}"\nendpoint = "{s3.url}"\npath_style = true\nallow_http = true'


def table(head, rows):
    """Prints rows under a head, as Markdown: numbers are right-aligned."""
    texts = [[("" if cell is None else f"{cell:,.2f}" if isinstance(cell, float) and cell < 10 else f"{cell:,.0f}" if isinstance(cell, (int, float)) else cell)
              for cell in row] for row in rows]
    widths = [max(len(head[i]), *(len(row[i]) for row in texts), 3) for i in range(len(head))]
    line = lambda cells: "| " + " | ".join(cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(cells, widths))) + " |"
    print(line(head))
    print("|" + "|".join("-" * (w + 1) + (":" if i else "-") for i, w in enumerate(widths)) + "|")
    for row in texts:
        print(line(row), flush=True)


def medians(runs):
    """The median of each column over several runs of the same row; a column with a run that has no figure has none."""
    return [None if any(x is None for x in column) else statistics.median(column) for column in zip(*runs)]
