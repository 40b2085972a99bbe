"""How long a new standby takes from nothing to streaming, and what that costs the primary. Standard library only."""

import shutil
import sys

from common import Server, environment, wait_until
from counted import Measured
from tools import Pgvault, folder


def standby(bench, tools, found):
    """Every tool in turn; the clock stops when the standby streams and has replayed what the primary had when it began."""
    ways = [("pg_basebackup from the primary", None)] + [(f"pgvault standby create, {tool.place.name}", tool) for tool in tools if isinstance(tool, Pgvault)]
    for _ in range(bench.args.runs):
        for words, tool in ways:
            found.setdefault(words, []).append(one(bench, words, tool))


def one(bench, words, tool):
    target = folder(bench.target())
    node = Server(bench.server.bin, bench.base, target.name)
    conninfo = f"host=127.0.0.1 port={bench.server.port} user=postgres"
    due = bench.server.sql("SELECT pg_current_wal_flush_lsn()")
    try:
        with Measured(bench.tool_group, bench.server_group) as cost:
            if tool:
                tool.do("standby", "create", "main", "--primary-conninfo", conninfo, "--slot", "", "--to", target, "--yes")
            else:
                target.rmdir()
                bench.tool_group.run([bench.server.bin / "pg_basebackup", "-d", conninfo, "-X", "stream", "-c", "fast", "-R", "-D", target])
            with open(target / "postgresql.conf", "a") as conf:
                conf.write(f"\nhot_standby = on\nunix_socket_directories = '{bench.base}'\n")
            node.start(environment(tool.server_env if tool else None))
            streams = f"SELECT count(*) FROM pg_stat_wal_receiver WHERE status = 'streaming' AND pg_last_wal_replay_lsn() >= '{due}'"
            wait_until("a standby that streams", lambda: node.sql(streams) == "1", every=0.05)
    except SystemExit:
        log = bench.base / f"{target.name}.log"
        print(log.read_text()[-3000:] if log.exists() else "", file=sys.stderr)
        raise
    finally:
        node.stop("immediate")
    shutil.rmtree(target)
    print(f"  standby: {words}: {cost.wall:.2f} s, {cost.cpu or 0:.2f} CPU s, primary {cost.server_cpu or 0:.2f} CPU s", file=sys.stderr, flush=True)
    return [cost.wall, cost.cpu, cost.server_cpu, cost.peak]
