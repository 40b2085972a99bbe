"""How far WAL lags behind while a backup of the same cluster runs. Standard library only."""

import json
import statistics
import subprocess
import threading
import time

from common import environment, user_args

RATE = "25MB/s"


class Load:
    """Writers at a steady rate, well below what the machine can do."""

    def __init__(self, server, seconds):
        self.process = subprocess.Popen(
            user_args([server.bin / "pgbench", "-N", "-n", "-M", "prepared", "-c", "2", "-R", "300", "-T", seconds, "-h", "127.0.0.1", "-p", server.port,
                       "-U", "postgres", "postgres"]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop(self):
        self.process.terminate()
        self.process.wait()


def lags(tool, server, until):
    """Bytes written and not yet safe in the spool, by the server's view, and seconds of commits that are not in the repository, by pgvault's."""
    behind, unstored = [], []
    lag = "SELECT coalesce(max(pg_current_wal_flush_lsn() - flush_lsn), 0) FROM pg_stat_replication WHERE application_name = 'pgvault' AND state = 'streaming'"
    while not until.wait(0.2):
        behind.append(float(server.sql(lag)) / 1024)
        seen = subprocess.run(user_args([tool.bench.pgvault, "-c", tool.config, "status", "main", "--json"]), env=environment(tool.env), capture_output=True)
        unstored.append(json.loads(seen.stdout)["clusters"][0]["wal"]["rpo_seconds"])
    return behind, unstored


def throttle(bench, tool, seconds):
    """Rows of a table: what ran, its rate, and both lags."""
    for words, limit in (("no backup", None), (f"backup at {RATE}", RATE), ("backup at full speed", "")):
        tool.begin()
        tool.ready()
        load, over, found = Load(bench.server, 600), threading.Event(), []
        watcher = threading.Thread(target=lambda: found.append(lags(tool, bench.server, over)))
        try:
            # Past the first full pages.
            time.sleep(3)
            watcher.start()
            begun, read = time.monotonic(), 0
            if limit is None:
                time.sleep(seconds)
            else:
                read = tool.backup("full", *(["--max-rate", limit] if limit else []))["size_bytes"]
            wall = time.monotonic() - begun
        finally:
            over.set()
            if watcher.ident:
                watcher.join()
            load.stop()
            tool.done()
        behind, unstored = found[0]
        yield [words, read / 1e6 / wall if read else None, statistics.median(behind), max(behind), statistics.median(unstored), max(unstored)]
