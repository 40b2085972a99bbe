"""How long a new standby takes from nothing to streaming, and what that costs the primary. Standard library only."""

import sys
from pathlib import Path

from common import Server, discard, environment, in_turn, wait_until
from counted import Measured
from tools import Pgvault, folder


SLOT = "bench_standby"
LOOPBACK = Path("/sys/class/net/lo/statistics/tx_bytes")


def sent():
    """All that went over the loopback interface: with a repository in a directory that is what the primary sends, and next to nothing else."""
    return int(LOOPBACK.read_text())


def standby(bench, tools, found):
    """Every tool in turn; the clock stops when the standby streams and has replayed what the primary had when it began."""
    ways = [("pg_basebackup from the primary", None)] + [(f"pgvault standby create, {tool.place.name}", tool) for tool in tools if isinstance(tool, Pgvault)]
    for run in range(bench.args.runs):
        for words, tool in in_turn(ways, run):
            found.setdefault(words, []).append(one(bench, words, tool))


def one(bench, words, tool):
    target = folder(bench.target())
    node = Server(bench.server.bin, bench.base, target.name)
    conninfo = f"host=127.0.0.1 port={bench.server.port} user=postgres"
    due, before = bench.server.sql("SELECT pg_current_wal_flush_lsn()"), sent()
    try:
        with Measured(bench.tool_group, bench.server_group) as cost:
            if tool:
                tool.do("standby", "create", "main", "--primary-conninfo", conninfo, "--slot", SLOT, "--to", target)
            else:
                target.rmdir()
                bench.tool_group.run([bench.server.bin / "pg_basebackup", "-d", conninfo, "-X", "stream", "-c", "fast", "-R", "-C", "-S", SLOT, "-D", target])
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
        # Of what goes to an S3 server nobody can tell how much the primary sent.
        megabytes = (sent() - before) / 2**20 if not tool or tool.place.name == "directory" else None
        node.stop("immediate")
    active = f"SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{SLOT}' AND active"
    wait_until("the end of the standby's stream", lambda: bench.server.sql(active) == "0", every=0.05)
    bench.server.sql(f"SELECT pg_drop_replication_slot('{SLOT}')")
    discard(target)
    print(f"  standby: {words}: {cost.wall:.2f} s, {cost.cpu or 0:.2f} CPU s, primary {cost.server_cpu or 0:.2f} CPU s", file=sys.stderr, flush=True)
    return [cost.wall, cost.cpu, cost.server_cpu, cost.peak, megabytes]
