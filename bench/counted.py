"""What a program and everything that it starts costs: CPU and memory, by control groups. Standard library only."""

import os
import subprocess
import threading
import time
from pathlib import Path

from common import ROOT, environment, settle, user_args

CPU, MEMORY = Path("/sys/fs/cgroup/cpuacct"), Path("/sys/fs/cgroup/memory")
# Without them (no root, or version 2 of control groups) there are only times.
COUNTED = ROOT and (CPU / "cpuacct.usage").exists() and (MEMORY / "memory.stat").exists()


class Group:
    """Processes that are counted together. Memory is what they have for themselves (anonymous), looked at fifty times a second."""

    def __init__(self, name):
        self.folders = [top / f"pgvault-bench-{os.getpid()}-{name}" for top in (CPU, MEMORY)]
        if COUNTED:
            for folder in self.folders:
                folder.mkdir()

    def adopt(self, pids):
        if COUNTED:
            for folder in self.folders:
                for pid in pids:
                    (folder / "cgroup.procs").write_text(str(pid))

    def args(self, args):
        """A command line, as the servers' user, whose process joins the group first."""
        if not COUNTED:
            return user_args(args)
        joins = "".join(f"echo $$ > {folder}/cgroup.procs; " for folder in self.folders)
        return ["sh", "-c", f'{joins}exec "$@"', "sh", *user_args(args)]

    def start(self, args, log, env=None):
        return subprocess.Popen(self.args(args), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment(env))

    def run(self, args, env=None):
        """Runs to the end; its output. Ends the benchmark when it fails."""
        done = subprocess.run(self.args(args), stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment(env))
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, args))} failed with {done.returncode}:\n{done.stdout.decode()[-2000:]}\n{done.stderr.decode()[-3000:]}")
        return done.stdout.decode()

    def cpu(self):
        return int((self.folders[0] / "cpuacct.usage").read_text()) / 1e9 if COUNTED else None

    def memory(self):
        if not COUNTED:
            return None
        for line in (self.folders[1] / "memory.stat").read_text().splitlines():
            if line.startswith("total_rss "):
                return int(line.split()[1]) / 2**20
        return None

    def remove(self):
        if COUNTED:
            for folder in self.folders:
                folder.rmdir()


class Measured:
    """`with Measured(tool, server) as cost`: wall seconds with one sync at the end, CPU of both groups, the tool's peak memory."""

    def __init__(self, tool, server):
        self.tool, self.server, self.peak, self.over = tool, server, None, threading.Event()

    def __enter__(self):
        settle()
        subprocess.run(["sync"], check=True)
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()
        self.before, self.begun = (self.tool.cpu(), self.server.cpu()), time.monotonic()
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            subprocess.run(["sync"], check=True)
        self.wall = time.monotonic() - self.begun
        self.over.set()
        self.watcher.join()
        if COUNTED:
            self.cpu, self.server_cpu = self.tool.cpu() - self.before[0], self.server.cpu() - self.before[1]
        else:
            self.cpu = self.server_cpu = None

    def _watch(self):
        while COUNTED and not self.over.wait(0.02):
            self.peak = max(self.peak or 0, self.tool.memory())
