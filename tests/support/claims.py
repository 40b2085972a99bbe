#!/usr/bin/env python3
"""Compares what `pgvault window --json` claims with what is really there.

A scanner of its own: it reads the repository with docs/read_repository.py and the records with pg_waldump, follows every
backup along every branch byte for byte as PostgreSQL would, and shares no code with pgvault.

    claims.py REPOSITORY CLUSTER WINDOW.json PG_WALDUMP SCRATCH
"""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
PAGE = 8192
LINE = re.compile(r"rmgr: (\S+)\s+len \(rec/tot\):\s+\d+/\s*(\d+), tx:\s+\d+, lsn: ([0-9A-F]+/[0-9A-F]+), prev .*?desc: (.*)")
TIME = re.compile(r"(?:COMMIT|ABORT)(?:_PREPARED)?(?: \d+:)? (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)(\.\d+)? UTC")


def load_reader():
    spec = importlib.util.spec_from_file_location("read_repository", ROOT / "docs/read_repository.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reader = load_reader()


def lsn(text):
    high, low = text.split("/")
    return (int(high, 16) << 32) + int(low, 16)


def show(position):
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


class Branch:
    """The way to one timeline: (timeline, first byte of its first segment), oldest first; and where each was left."""

    def __init__(self, lineage, timeline):
        self.lineage, self.timeline, self.size = lineage, timeline, lineage.size
        path = lineage.wal / f"{timeline:08X}" / f"{timeline:08X}.history"
        self.usable = timeline == 1 or path.exists()
        self.left = {}
        self.order = []
        if path.exists():
            for line in path.read_text().splitlines():
                words = line.split()
                if len(words) >= 2 and words[0].isdigit():
                    self.order.append(int(words[0]))
                    self.left[int(words[0])] = lsn(words[1])
        self.order.append(timeline)

    def begins(self, timeline):
        index = self.order.index(timeline)
        return 0 if index == 0 else self.left[self.order[index - 1]] // self.size

    def holds(self, backup):
        own = backup["timeline"]
        return own == self.timeline or (own in self.left and lsn(backup["stop_lsn"]) <= self.left[own])

    def parting(self, other):
        shared = 0
        for one, two in zip(self.order, other.order):
            if one != two:
                return shared
            ends = [branch.left.get(one, 1 << 64) for branch in (self, other)]
            shared = min(ends)
            if ends[0] != ends[1]:
                break
        return shared

    def bytes_of(self, number):
        """What recovery reads as segment `number`: bytes, and where they end; None when there is nothing."""
        start = number * self.size
        candidates = [timeline for timeline in self.order if self.begins(timeline) <= number]
        for position, timeline in enumerate(reversed(candidates)):
            # Only the file of the newest, or one that was left in this very segment, is of this branch.
            limit = None
            if position > 0:
                left = self.left[timeline]
                if not start < left <= start + self.size:
                    continue
                limit = left
            name = f"{timeline:08X}{start >> 32:08X}{(start & 0xFFFFFFFF) // self.size:08X}"
            if self.lineage.segment_path(name).exists():
                found, end = self.lineage.segment(name), start + self.size
            else:
                tail = self.lineage.tail(name)
                if tail is None:
                    continue
                found, end = tail
            if limit is not None and limit < end:
                found, end = found[: limit - start].ljust(self.size, b"\0"), limit
            return found, end
        return None


def record_end(start, length, size):
    position = start
    while length:
        if position % PAGE == 0:
            position += 40 if position % size == 0 else 24
            continue
        taken = min(PAGE - position % PAGE, length)
        position, length = position + taken, length - taken
    return (position + 7) // 8 * 8


def scan(branch, start, waldump, scratch):
    """Follows the log from `start`: (end of the last whole record, [(lsn, end, time)] of transaction ends)."""
    size = branch.size
    for old in scratch.iterdir():
        old.unlink()
    number, end = start // size, start // size * size
    while (found := branch.bytes_of(number)) is not None:
        data, end = found
        name = f"00000001{number * size >> 32:08X}{(number * size & 0xFFFFFFFF) // size:08X}"
        (scratch / name).write_bytes(data)
        number += 1
        if end < number * size:
            break
    if number == start // size:
        return start, []
    done = subprocess.run(
        [waldump, "-p", str(scratch), "-t", "1", "-s", show(start)],
        capture_output=True, text=True, check=False, env={**os.environ, "TZ": "UTC"},
    )
    ends, valid = [], start
    for line in done.stdout.splitlines():
        match = LINE.match(line)
        if not match:
            raise SystemExit(f"pg_waldump: {line!r}")
        manager, length, at, what = match[1], int(match[2]), lsn(match[3]), match[4]
        after = record_end(at, length, size)
        if manager == "XLOG" and what.startswith("SWITCH"):
            after = (after + size - 1) // size * size
        if after > end:
            break
        valid = after
        time = TIME.search(what) if manager == "Transaction" else None
        if time:
            ends.append((at, after, time[1].replace(" ", "T") + (time[2] or ".").ljust(7, "0") + "Z"))
    return valid, ends


def reality(lineage, waldump, scratch):
    backups = [lineage.backup(name).manifest for name in lineage.backups()]
    timelines = {int(name[:8], 16) for name in lineage.segments() + lineage.tailed()}
    timelines |= {int(path.stem, 16) for path in lineage.histories()} | {backup["timeline"] for backup in backups}
    stretches, branches = [], {}
    for timeline in sorted(timelines):
        branch = branches[timeline] = Branch(lineage, timeline)
        by_end = {}
        for backup in backups if branch.usable else []:
            if branch.holds(backup):
                end, ends = scan(branch, lsn(backup["start_lsn"]), waldump, scratch)
                if end >= lsn(backup["stop_lsn"]):
                    by_end.setdefault(end, []).append((lsn(backup["stop_lsn"]), backup, ends))
        for end, found in by_end.items():
            stop, backup, ends = min(found, key=lambda one: one[0])
            stretches.append({"branch": timeline, "from": stop, "to": end, "backup": backup["id"], "ends": ends})
    return branches, stretches


def main():
    folder, cluster, claimed, waldump, scratch = sys.argv[1:]
    scratch = pathlib.Path(scratch)
    scratch.mkdir(exist_ok=True)
    window = json.loads(pathlib.Path(claimed).read_text())
    lineage = reader.Repository(pathlib.Path(folder), None).lineages(cluster)[-1]
    branches, stretches = reality(lineage, waldump, scratch)
    wrong = []
    for claim in window["ranges"]:
        key = (claim["branch"], lsn(claim["from"]["lsn"]), lsn(claim["to"]["lsn"]), claim["first_backup"])
        real = [s for s in stretches if (s["branch"], s["from"], s["to"], s["backup"]) == key]
        if not real:
            wrong.append(f"claimed, and not so: {claim}")
            continue
        # Every time in it must have its stop, or be the end: no earlier transaction end may be later than its beginning.
        before = [time for _, end, time in real[0]["ends"] if end <= key[1]]
        after = [time for at, _, time in real[0]["ends"] if at >= key[1]]
        if before and claim["from"]["time"] < max(before):
            wrong.append(f"begins before {max(before)}: {claim}")
        if claim["to"]["time"] != max([claim["from"]["time"], *after]):
            wrong.append(f"does not end with its last transaction, {max(after, default=None)}: {claim}")
    for real in stretches:
        def covers(claim, real=real):
            one, other = branches[claim["branch"]], branches[real["branch"]]
            same = claim["branch"] == real["branch"] or real["to"] <= one.parting(other)
            return same and lsn(claim["from"]["lsn"]) <= real["from"] and real["to"] <= lsn(claim["to"]["lsn"])
        if not any(covers(claim) for claim in window["ranges"]):
            wrong.append(f"not claimed: timeline {real['branch']} {show(real['from'])}..{show(real['to'])} from {real['backup']}")
    for gap in window["gaps"]:
        branch = Branch(lineage, gap["timeline"])
        start, end = lsn(gap["from_lsn"]), lsn(gap["to_lsn"])
        for number in range(start // branch.size, (end - 1) // branch.size + 1):
            found = branch.bytes_of(number)
            if found and max(start, number * branch.size) < min(found[1], end):
                wrong.append(f"no gap, its WAL is there: {gap}")
        if not gap["reason"]:
            wrong.append(f"without a reason: {gap}")
    for line in wrong:
        print(line)
    print(f"{len(window['ranges'])} ranges and {len(window['gaps'])} gaps claimed, {len(stretches)} stretches found, {len(wrong)} wrong")
    sys.exit(1 if wrong else 0)


main()
