"""The tools that `bench/backup.py` compares, each behind the same few calls. All run as the servers' user.

A tool lives at one place (a directory or S3). `begin` gives it a fresh repository; `ready` and `done` stand around what is measured; `full`, `second` and
`restore` are measured; `stored` are the bytes of its backups, WAL left out.
"""

import json
import re
import shutil
import subprocess

from common import BUCKET, S3_ENV, config, discard, end, environment, give_to_user, s3_repository, user_args, wait_until


class Place:
    """Where the repositories are: folders below `base`, or S3 when there is a server."""

    def __init__(self, base, s3=None):
        self.base, self.s3, self.name = base, s3, "S3" if s3 else "directory"

    def stored(self, prefix, without):
        """Bytes below a prefix, without parts of names that match."""
        if self.s3:
            return sum(size for key, size in self.s3.sizes(prefix + "/").items() if not re.search(without, key[len(prefix):]))
        top = self.base / prefix
        return sum(f.stat().st_size for f in top.rglob("*") if f.is_file() and not re.search(without, str(f)[len(str(top)):]))

    def forget(self, prefix):
        """Gives a repository up; in S3 nothing is removed: a store that cleans up while another tool writes would be measured too."""
        if not self.s3:
            discard(self.base / prefix)


def folder(path):
    path.mkdir(mode=0o700)
    give_to_user(path)
    return path


class Tool:
    # Whether `restore` can go onto an old data directory, and what a second backup of it is called.
    delta, name, kind = False, "", ""
    # What a server on a restored directory needs in its environment.
    server_env = {}

    def __init__(self, bench, place, group):
        self.bench, self.place, self.group, self.number, self.log = bench, place, group, 0, ""

    @property
    def label(self):
        return f"{self.name}, {self.place.name}"

    @property
    def prefix(self):
        slug = re.sub("[^a-z0-9]+", "-", f"{self.name} {self.place.name}".lower())
        return f"{slug}-{self.number}"

    def begin(self):
        """A fresh repository; the former one is given up."""
        if self.number:
            self.place.forget(self.prefix)
        self.number += 1
        self.make()

    def make(self):
        if not self.place.s3:
            folder(self.place.base / self.prefix)

    def ready(self):
        pass

    def done(self):
        pass

    def stored(self):
        return self.place.stored(self.prefix, "^$")

    def after_update(self):
        """What the tool needs besides its command for a second backup: not measured."""

    def recovers(self, target):
        """Makes a restored directory one that a server starts on: not measured. WAL is that of the primary's pg_wal."""
        with open(target / "postgresql.conf", "a") as conf:
            conf.write(f"\nrestore_command = 'cp {self.bench.server.data}/pg_wal/%f %p'\nrecovery_target = 'immediate'\nrecovery_target_action = 'promote'\n")
        (target / "recovery.signal").touch()
        give_to_user(target / "recovery.signal")


class PgBasebackup(Tool):
    name = "pg_basebackup plain"

    def __init__(self, *args):
        super().__init__(*args)
        self.bin = self.bench.server.bin
        self.chain = []

    def make(self):
        super().make()
        self.chain = []

    def _take(self, *more):
        target = self.place.base / self.prefix / str(len(self.chain))
        self.group.run([self.bin / "pg_basebackup", "-h", "127.0.0.1", "-p", self.bench.server.port, "-U", "postgres", "-X", "none", "-c", "fast", "-D", target, *more])
        self.chain.append(target)

    def full(self):
        self._take()

    def second(self):
        if self.bench.major >= 17:
            self.kind = "incremental"
            self._take(f"--incremental={self.chain[-1]}/backup_manifest")
        else:
            self.kind = "everything"
            self._take()

    def restore(self, target):
        if len(self.chain) > 1 and self.bench.major >= 17:
            target.rmdir()
            self.group.run([self.bin / "pg_combinebackup", *self.chain, "-o", target])
        else:
            self.group.run(["cp", "-r", f"{self.chain[-1]}/.", target])


class PgBackRest(Tool):
    delta, name, kind = True, "pgBackRest", "changed files"

    def make(self):
        super().make()
        home = self.home = folder(self.place.base / f"{self.prefix}.home")
        for part in ("spool", "log", "lock"):
            folder(home / part)
        if self.place.s3:
            where = (f"repo1-type=s3\nrepo1-path=/{self.prefix}\nrepo1-s3-bucket={BUCKET}\nrepo1-s3-endpoint=localhost\nrepo1-storage-port={self.place.s3.https}\n"
                     f"repo1-storage-ca-file={self.place.s3.folder}/ca.pem\nrepo1-s3-uri-style=path\nrepo1-s3-region=us-east-1\n"
                     f"repo1-s3-key={S3_ENV['AWS_ACCESS_KEY_ID']}\nrepo1-s3-key-secret={S3_ENV['AWS_SECRET_ACCESS_KEY']}\n")
        else:
            where = f"repo1-path={self.place.base / self.prefix}\n"
        # Blocks of files since 2.46, bundles since 2.39.
        block = "repo1-block=y\n" if pgbackrest_version() >= (2, 46) else ""
        self.kind = "changed blocks" if block else "changed files"
        (home / "conf").write_text(
            f"[global]\n{where}repo1-bundle=y\n{block}process-max=2\ncompress-type=zst\ncompress-level=1\nstart-fast=y\nspool-path={home}/spool\nlog-path={home}/log\n"
            f"lock-path={home}/lock\nlog-level-file=off\nlog-level-console=warn\n"
            f"[main]\npg1-path={self.bench.server.data}\npg1-port={self.bench.server.port}\npg1-socket-path={self.bench.base}\n")
        (home / "conf").chmod(0o644)
        self.do("stanza-create")

    def do(self, *command):
        self.group.run(["pgbackrest", f"--config={self.home}/conf", "--stanza=main", *command])

    def full(self):
        self.do("backup", "--type=full", "--no-archive-check")

    def second(self):
        self.do("backup", "--type=incr", "--no-archive-check")

    def restore(self, target):
        self.do("restore", f"--pg1-path={target}", "--type=none")

    def restore_delta(self, target):
        self.do("restore", "--delta", f"--pg1-path={target}", "--type=none")

    def stored(self):
        return self.place.stored(self.prefix, "^/archive/")


def pgbackrest_version():
    if shutil.which("pgbackrest") is None:
        return None
    return tuple(map(int, subprocess.run(["pgbackrest", "version"], capture_output=True, text=True, check=True).stdout.split()[1].split(".")[:2]))


def pgbackrest_knows(major):
    """Whether there is a pgBackRest that knows this PostgreSQL: 16 since 2.48, 17 since 2.54, 18 since 2.57."""
    version = pgbackrest_version()
    return version is not None and version >= {16: (2, 48), 17: (2, 54), 18: (2, 57)}.get(major, (2, 45))


class Barman(Tool):
    """barman-cloud-backup and -restore, which know S3 only and always store everything."""

    name, kind = "barman-cloud", "everything"
    # The quickest that it offers.
    compression = "--lz4"

    def _run(self, program, *args):
        options = ["--endpoint-url", self.place.s3.url, "--addressing-style", "path"]
        env = {**S3_ENV, "AWS_DEFAULT_REGION": "us-east-1"}
        return self.group.run([self.bench.peers / "barman/bin" / program, *options, *args], env)

    def _take(self):
        self._run("barman-cloud-backup", self.compression, "-J", "2", "--immediate-checkpoint", "-h", "127.0.0.1", "-p", self.bench.server.port, "-U", "postgres",
                  f"s3://{BUCKET}/{self.prefix}", "main")

    full = second = _take

    def restore(self, target):
        listed = self._run("barman-cloud-backup-list", "--format", "json", f"s3://{BUCKET}/{self.prefix}", "main")
        newest = max(backup["backup_id"] for backup in json.loads(listed)["backups_list"])
        self._run("barman-cloud-restore", f"s3://{BUCKET}/{self.prefix}", "main", newest, target)


class WalRus(Tool):
    """WAL-RUS, reading the files of the data directory or streaming BASE_BACKUP."""

    def __init__(self, bench, place, group, streams):
        super().__init__(bench, place, group)
        self.streams = streams
        self.name = "WAL-RUS stream" if streams else "WAL-RUS files"
        # A delta by streaming asks for the segment in which the backup begins, which an idle server does not finish: it would retry for six seconds, then store all.
        self.kind = "everything" if streams else "changed pages"

    def env(self):
        env = {"PGHOST": "127.0.0.1", "PGPORT": str(self.bench.server.port), "PGUSER": "postgres", "PGDATABASE": "postgres", "WALG_COMPRESSION_METHOD": "zstd",
               "WALG_DELTA_MAX_STEPS": "6", "WALG_UPLOAD_DISK_CONCURRENCY": "2"}
        if self.place.s3:
            return {**env, "WALG_S3_PREFIX": f"s3://{BUCKET}/{self.prefix}", "AWS_ENDPOINT": self.place.s3.url, "AWS_S3_FORCE_PATH_STYLE": "true", **S3_ENV}
        return {**env, "WALG_FILE_PREFIX": str(self.place.base / self.prefix)}

    def _do(self, *args):
        return self.group.run([self.bench.peers / "bin/walrus", *args], self.env())

    def _take(self, *more):
        self._do("backup-push", *([] if self.streams else [self.bench.server.data]), "--fast", *more)

    def make(self):
        super().make()
        self.after = self.bench.segment()

    def full(self):
        self._take("--full")

    def second(self):
        if self.streams:
            self._take("--full")
        else:
            self._take(*(["--delta-from-wal-summaries"] if self.bench.major >= 17 else []))

    def after_update(self):
        """Before 17 it finds changed pages in archived WAL, which is therefore pushed: outside of the clock."""
        if self.bench.major >= 17 or self.streams:
            return
        for segment in self.bench.segments(self.after):
            self._do("wal-push", segment)
            self.after = segment.name + " "

    def restore(self, target):
        self._do("backup-fetch", target, "LATEST")

    def stored(self):
        return self.place.stored(self.prefix, "^/wal_005/")


class Pgvault(Tool):
    """The daemon takes the backup: its CPU and memory count from when it has taken in all WAL."""

    def __init__(self, bench, place, group, source):
        super().__init__(bench, place, group)
        self.delta = self.knows_delta(bench.pgvault)
        self.source, self.name, self.daemon = source, f"pgvault {source}", None
        self.env = self.server_env = S3_ENV if place.s3 else {}

    def make(self):
        super().make()
        name = self.prefix.replace("-", "_")
        repository = s3_repository(self.place.s3, self.prefix) if self.place.s3 else f'url = "file://{self.place.base / self.prefix}"'
        files = f'data_directory = "{self.bench.server.data}"' if self.source == "files" else ""
        self.config, self.state = config(self.place.base, name, self.bench.server, repository, f'slot = "{name}"\n{files}')
        self.config.chmod(0o644)
        folder(self.state)
        # The slot keeps WAL from here on, whether the daemon runs or not.
        self.ready()
        self.done()

    def do(self, *args):
        return self.group.run([self.bench.pgvault, "-c", self.config, *args], self.env)

    def ready(self):
        """The daemon runs and all WAL is in the repository."""
        target = int(self.bench.server.sql("SELECT pg_switch_wal(); SELECT pg_current_wal_flush_lsn() - '0/0'").split()[-1])
        log = self.place.base / f"{self.prefix}.log"
        self.daemon = self.group.start([self.bench.pgvault, "-c", self.config, "serve"], open(log, "a"), self.env)

        def stored():
            asked = [self.bench.pgvault, "-c", self.config, "status", "main", "--json"]
            seen = subprocess.run(user_args(asked), env=environment(self.env), capture_output=True)
            at = seen.stdout and json.loads(seen.stdout)["clusters"][0]["wal"]["shipped_lsn"]
            high, low = (at or "0/0").split("/")
            return (int(high, 16) << 32) + int(low, 16) >= target
        try:
            wait_until(f"{self.label}: all WAL in the repository", stored, limit=300, every=0.1, alive=self.daemon)
        except SystemExit as failure:
            raise SystemExit(f"{failure}\n{log.read_text()[-3000:]}") from None

    def done(self):
        if self.daemon:
            end(self.daemon)
        self.daemon = None

    @staticmethod
    def knows_files(program):
        """Whether this pgvault reads the files of a data directory: it did not always."""
        keys = subprocess.run([program, "config", "init"], capture_output=True, text=True, check=True).stdout
        return not any("data_directory" in line and "no effect" in line for line in keys.splitlines())

    @staticmethod
    def deletes(program):
        shown = subprocess.run([program, "backup", "--help"], capture_output=True, text=True, check=True).stdout
        return not any(line.strip().startswith("delete ") and "not available" in line for line in shown.splitlines())

    def delete_first(self):
        self.do("backup", "delete", json.loads(self.do("backup", "list", "--json"))[0]["id"], "--yes")

    @staticmethod
    def knows_delta(program):
        shown = subprocess.run([program, "recover", "--help"], capture_output=True, text=True, check=True).stdout
        return "not available" not in shown.split("--delta", 1)[1].split("--standby", 1)[0]

    def backup(self, kind, *more):
        told = json.loads(self.do("backup", "now", "main", "--wait", "--fast-checkpoint", "--kind", kind, "--json", *more).splitlines()[-1])
        # Whatever was read, what is stored are differences to pages.
        self.kind = f"page differences; reads {'everything' if told.get('kind') == 'full' else 'what changed'}"
        return told

    def full(self):
        self.backup("full")

    def second(self):
        self.backup("auto")

    def restore(self, target, *more):
        self.do("recover", "main", "--immediate", "--action", "promote", "--to", target, "--yes", *more)

    def restore_delta(self, target):
        self.restore(target, "--delta")

    def recovers(self, target):
        """`recover` has written all that a server needs."""

    def stored(self):
        return self.place.stored(self.prefix, "/wal/")
