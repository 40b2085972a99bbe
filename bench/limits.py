"""What this machine can do at all, measured in the same run. Standard library only."""

import os
import subprocess
import threading
import time

from common import BUCKET

PART = 8 << 20
# In four requests at once, as a backup would.
AT_ONCE, PARTS = 4, 32


def rate(size, work):
    """MiB per second of something that handles `size` bytes."""
    subprocess.run(["sync"], check=True)
    begun = time.monotonic()
    work()
    return size / 2**20 / (time.monotonic() - begun)


def requests(s3, method, body=b""):
    def work(number):
        for part in range(number, PARTS, AT_ONCE):
            status, _ = s3.request(method, f"/{BUCKET}/limits/{part}", body=body)
            if status != 200:
                raise SystemExit(f"{method} of a part: {status}")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def write(base):
    block, path = os.urandom(4 << 20), base / "limits"
    with open(path, "wb", buffering=0) as file:
        for _ in range(256):
            file.write(block)
        os.fdatasync(file.fileno())
    path.unlink()


def copy(base, data):
    subprocess.run(["cp", "-r", data, base / "limits"], check=True)
    subprocess.run(["sync"], check=True)
    subprocess.run(["rm", "-r", base / "limits"], check=True)


def limits(base, data, size, s3):
    """Rows of a table: what, MiB/s. `data` is a directory of `size` bytes."""
    yield "`tar \\| zstd -1 -T2` of the cluster, to nowhere", rate(size, lambda: subprocess.run(
        f"tar -C {data} -cf - . | zstd -1 -T2 -q > /dev/null", shell=True, check=True))
    yield "write and fdatasync of 1 GiB", rate(1 << 30, lambda: write(base))
    yield "`cp -r` of the cluster, and sync (and its removal)", rate(size, lambda: copy(base, data))
    if s3:
        yield f"S3 PUT, {AT_ONCE} at once, 8 MiB each", rate(PARTS * PART, lambda: requests(s3, "PUT", os.urandom(PART)))
        yield f"S3 GET, {AT_ONCE} at once, 8 MiB each", rate(PARTS * PART, lambda: requests(s3, "GET"))
