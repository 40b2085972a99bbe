#!/usr/bin/env python3
"""Reads a pgvault repository without pgvault.

Written from docs/FORMAT.md alone, so that whoever has that page can restore even when nothing else is left. Needs Python
3.11 and zstd: the module `compression.zstd` (Python 3.14), the module `zstandard`, or the command `zstd`. Reads a repository in a
local directory; copy a bucket down first (`aws s3 sync s3://bucket/prefix DIR`). An encrypted one also needs the module
`cryptography` and the identity: `--identity FILE` before the command, or PGVAULT_IDENTITY_FILE.

    read_repository.py DIR list                                  clusters, lineages, backups, WAL
    read_repository.py DIR wal CLUSTER SEGMENT OUT               one WAL segment, or 0000000N.history
    read_repository.py DIR restore CLUSTER BACKUP TARGET         the files of a base backup, into an empty directory
    read_repository.py DIR verify                                reads everything and checks every checksum

Every checksum that is on the way is checked, BLAKE3 only where the module `blake3` or the command `b3sum` is there. Exit codes: 0 done; 1 what was
asked for is not in the repository, or `verify` found damage; 255 anything else, damage above all. So `wal` can be a
restore_command: PostgreSQL takes 1 for the end of the WAL, and stops with an error at 255. A restored backup is a data
directory that needs recovery: give it that restore_command and a recovery.signal before its first start.
"""

import argparse
import base64
import functools
import hashlib
import hmac
import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
from array import array

FORMAT = 1
KNOWN_FEATURES = {"page-patch", "encryption"}
SKIPPABLE = bytes.fromhex("502A4D18")
LINEAGE = re.compile(r"[0-9]+-[1-9][0-9]*\Z")
SEGMENT = re.compile(r"[0-9A-F]{24}\Z")
PIECE = re.compile(r"([0-9A-F]{16})-([0-9A-F]{16})\.zst\Z")
SEAL_LENGTH = len('{"sha256":""}\n') + 64
# How much plaintext is decompressed at a time.
BATCH = 64 << 20


class Damaged(Exception):
    """Stored bytes are not what they must be."""


class Absent(Exception):
    """What was asked for is not there."""


class Refused(Exception):
    """Nothing was done."""


# --- zstd ---------------------------------------------------------------------------------------------------------------


def zstd_by_command(frames):
    if shutil.which("zstd") is None:
        raise Refused("zstd is needed: install the command zstd, or the Python module zstandard")
    done = subprocess.run(["zstd", "-dcq", "--no-progress"], input=frames, capture_output=True, check=False)
    if done.returncode != 0:
        raise Damaged("zstd: " + done.stderr.decode(errors="replace").strip())
    return done.stdout


def choose_zstd():
    try:
        from compression import zstd  # Python 3.14

        return zstd.decompress
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        return zstd_by_command

    def decompress(frames):
        try:
            return b"".join(zstandard.ZstdDecompressor().read_to_iter(frames, read_across_frames=True))
        except zstandard.ZstdError as error:
            raise Damaged(f"zstd: {error}") from error

    return decompress


decompress = choose_zstd()

# --- checksums ------------------------------------------------------------------------------------------------------------


def sha256(data):
    return hashlib.sha256(data).hexdigest()


@functools.cache
def crc32c_tables():
    """Castagnoli, for one byte and for two bytes at a time."""
    one = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        one.append(value)
    two = []
    for word in range(65536):
        value = one[word & 255] ^ word >> 8
        two.append(one[value & 255] ^ value >> 8)
    return one, two


def crc32c(data, crc=0):
    """CRC-32C of `data`, going on from `crc`."""
    crc ^= 0xFFFFFFFF
    of_byte, of_word = crc32c_tables()
    even = len(data) & ~1
    words = array("H", bytes(data[:even]))
    if sys.byteorder == "big":
        words.byteswap()
    for word in words:
        crc = of_word[(crc ^ word) & 0xFFFF] ^ crc >> 16
    for byte in data[even:]:
        crc = of_byte[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def choose_blake3():
    """The BLAKE3 hash; None of everything where nothing can tell it: then SHA-256, CRC-32C and zstd's own checksums must do."""
    try:
        from blake3 import blake3

        return lambda data: blake3(data).hexdigest()
    except ImportError:
        pass
    if shutil.which("b3sum") is None:
        return lambda data: None

    def by_command(data):
        done = subprocess.run(["b3sum", "--no-names"], input=data, capture_output=True, check=True)
        return done.stdout.decode().strip()

    return by_command


blake3_of = choose_blake3()


# --- encryption (section 7) -----------------------------------------------------------------------------------------------

MAGIC = b"PGVENC1\n"
PLAIN_BLOCK, BLOCK_HEADER, TAG = 65536, 48, 16
STORED_BLOCK = PLAIN_BLOCK + BLOCK_HEADER + TAG
# The keys that are made of the stored bytes, and the part of them that is.
NAMED_BY_CONTENT = [
    re.compile(r"([^/]+/packs/)[0-9a-f]{64}()\Z"),
    re.compile(r"([^/]+/[^/]+/backups/[^/]+/files/[0-9]{5}-)[0-9a-f]{16}(\.zst)\Z"),
    re.compile(r"([^/]+/[^/]+/backups/[^/]+/backup_manifest-)[0-9a-f]{16}(\.zst)\Z"),
    re.compile(r"([^/]+/[^/]+/conflict/)[0-9a-f]{64}(-.*)\Z"),
]


def hkdf(secret, salt, purpose):
    """HKDF-SHA-256 to 32 bytes."""
    extracted = hmac.digest(salt or bytes(32), secret, "sha256")
    return hmac.digest(extracted, purpose + b"\x01", "sha256")


def unpadded(text):
    return base64.b64decode(text + "=" * (-len(text) % 4))


def bech32(text):
    """The bytes of an age key; its checksum is that of BIP 173."""
    alphabet = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
    prefix, _, data = text.lower().rpartition("1")
    if not prefix or any(letter not in alphabet for letter in data):
        raise Refused("the identity file holds a line that is no age identity")
    values, check = [alphabet.index(letter) for letter in data], 1
    for value in [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix] + values:
        top, check = check >> 25, (check & 0x1FFFFFF) << 5 ^ value
        for bit, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> bit & 1 else 0
    if check != 1:
        raise Refused("the identity file holds a line that is no age identity")
    number = 0
    for value in values[:-6]:
        number = number << 5 | value
    spare = len(values[:-6]) * 5 % 8
    return (number >> spare).to_bytes(len(values[:-6]) * 5 // 8, "big")


def unwrap(age, identities):
    """What an age file holds (age-encryption.org/v1, X25519)."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    head, _, rest = age.partition(b"\n--- ")
    mac, _, payload = rest.partition(b"\n")
    lines = head.decode("ascii").split("\n")
    need(lines[0] == "age-encryption.org/v1", "the key ring wraps something else than an age file")
    stanzas = [(lines[at].split()[1:], lines[at + 1]) for at in range(1, len(lines) - 1) if lines[at].startswith("-> ")]
    for identity in identities:
        key = X25519PrivateKey.from_private_bytes(identity)
        own = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        for words, body in stanzas:
            if words[0] != "X25519":
                continue
            share = unpadded(words[1])
            shared = key.exchange(X25519PublicKey.from_public_bytes(share))
            wrapping = hkdf(shared, share + own, b"age-encryption.org/v1/X25519")
            try:
                file_key = ChaCha20Poly1305(wrapping).decrypt(bytes(12), unpadded(body), None)
            except InvalidTag:
                continue
            expected = hmac.digest(hkdf(file_key, b"", b"header"), head + b"\n---", "sha256")
            need(hmac.compare_digest(expected, unpadded(mac.decode("ascii"))), "the key ring's age file is damaged")
            stream = ChaCha20Poly1305(hkdf(file_key, payload[:16], b"payload"))
            chunks = [payload[at : at + 65552] for at in range(16, len(payload), 65552)]
            plain = b""
            try:
                for number, chunk in enumerate(chunks):
                    last = number == len(chunks) - 1
                    plain += stream.decrypt(number.to_bytes(11, "big") + bytes([last]), chunk, None)
            except InvalidTag as error:
                raise Damaged("the key ring's age file is damaged") from error
            return plain
    raise Refused("the identity is none of those that the key ring is for")


class KeyRing:
    """The data keys of an encrypted repository."""

    def __init__(self, root, identity_file):
        self.root, self.keys, self.clear = root, {}, True
        rings = sorted((root / "keys").glob("*.json"), key=lambda path: int(path.stem)) if (root / "keys").is_dir() else []
        if not rings:
            return
        document = sealed(rings[-1], "key-ring")
        if not identity_file:
            raise Refused(f"the repository is encrypted for {', '.join(document['recipients'])}: give --identity FILE")
        lines = [line.strip() for line in pathlib.Path(identity_file).read_text().splitlines()]
        identities = [bech32(line) for line in lines if line.startswith("AGE-SECRET-KEY-1")]
        content = json.loads(unwrap(base64.b64decode(document["wrapped"]), identities))
        self.clear = content["began_unencrypted"]
        self.keys = {key["generation"]: bytes.fromhex(key["key"]) for key in content["keys"]}

    def bound(self, path):
        """The name that the object's blocks are bound to."""
        name = path.relative_to(self.root).as_posix()
        for pattern in NAMED_BY_CONTENT:
            name = pattern.sub(r"\1*\2", name)
        return name

    def is_clear(self, path, beginning):
        """Whether the object is not encrypted; where everything is from the beginning, that is damage."""
        if beginning[:8] == MAGIC:
            return False
        need(self.clear or not self.keys, f"{path}: it is not encrypted, and everything in this repository is")
        return True

    def open(self, path, blocks, first=0):
        """The plaintext of blocks from number `first` on, and whether the object ends with them."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        need(len(blocks) >= BLOCK_HEADER + TAG, f"{path}: it was cut short")
        name, salt, plain, ended = self.bound(path).encode(), blocks[16:BLOCK_HEADER], bytearray(), False
        generation = struct.unpack_from("<I", blocks, 8)[0]
        if generation not in self.keys:
            raise Refused(f"{path}: it is encrypted with the key of generation {generation}, which is not there")
        cipher = AESGCM(hkdf(self.keys[generation], salt, b"pgvault object 1"))
        for at in range(0, len(blocks), STORED_BLOCK):
            block, number = blocks[at : at + STORED_BLOCK], first + at // STORED_BLOCK
            header = block[:BLOCK_HEADER]
            need(not ended, f"{path}: something follows its last block")
            need(header[:12] == blocks[:12] and header[16:] == salt, f"{path}: block {number} is of another object")
            ended = struct.unpack_from("<I", header, 12)[0] & 1 == 1
            need(ended or len(block) == STORED_BLOCK, f"{path}: it was cut short")
            try:
                plain += cipher.decrypt(number.to_bytes(12, "big"), block[BLOCK_HEADER:], header + name)
            except InvalidTag as error:
                raise Damaged(f"{path}: block {number} cannot be opened") from error
        return bytes(plain), ended


RING = None


def content(path, data=None):
    """A whole object, decrypted where it is encrypted; `data` is its stored form, if that was read already."""
    data = path.read_bytes() if data is None else data
    if RING is None or RING.is_clear(path, data):
        return data
    plain, ended = RING.open(path, data)
    need(ended, f"{path}: it was cut short")
    return plain


# --- documents and headers (sections 2 and 4) -----------------------------------------------------------------------------


def need(condition, what):
    if not condition:
        raise Damaged(what)


def readable(document):
    """Refuses what a newer version wrote."""
    need(document["format"] <= FORMAT, f"needs format version {document['format']}, this reader knows {FORMAT}")
    unknown = set(document["features"]) - KNOWN_FEATURES
    need(not unknown, f"uses features that this reader does not know: {sorted(unknown)}")
    return document


def sealed(path, kind):
    """A sealed document: JSON, then a line with the SHA-256 of everything before that line."""
    data = path.read_bytes() if path.parent.name == "keys" or path.name == "pgvault-repository.json" else content(path)
    cut = max(len(data) - SEAL_LENGTH, 0)
    need(data[:cut].endswith(b"\n"), f"{path}: no checksum line")
    need(data[cut:] == f'{{"sha256":"{sha256(data[:cut])}"}}\n'.encode(), f"{path}: wrong checksum")
    document = readable(json.loads(data[:cut]))
    need(document["kind"] == kind, f"{path}: a document of kind {document['kind']}, not {kind}")
    return document


def wal_header(path, data):
    """The header in front of stored WAL, and where the zstd frames start."""
    need(data[:4] == SKIPPABLE and data[8:16] == b"PGVWAL1\n", f"{path}: not stored WAL")
    frame, length = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 16)[0]
    need(frame == 12 + length + 32 and len(data) >= 8 + frame, f"{path}: its header is cut short")
    content = data[8 : 8 + frame]
    need(hashlib.sha256(content[:-32]).digest() == content[-32:], f"{path}: wrong checksum of its header")
    return readable(json.loads(content[12:-32])), 8 + frame


def lsn(text):
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)


def read_wal(path, kind, segment, start, length, lineage):
    """The plaintext of a stored segment or tail, once everything about it was found right."""
    data = content(path)
    header, frames = wal_header(path, data)
    expected = {
        "kind": kind,
        "system_identifier": lineage["system_identifier"],
        "timeline": int(segment[:8], 16),
        "segment": segment,
        "segment_size": lineage["segment_size"],
        "length": length,
    }
    for member, value in expected.items():
        need(header[member] == value, f"{path}: {member} is {header[member]}, not {value}")
    need(lsn(header["start_lsn"]) == start, f"{path}: it starts at {header['start_lsn']}")
    plain = decompress(data[frames:])
    need(len(plain) == length, f"{path}: {len(plain)} bytes in place of {length}")
    need(blake3_of(plain) in (None, header["blake3"]), f"{path}: its content is not what its header tells")
    return plain


# --- the repository (sections 1 and 3) ------------------------------------------------------------------------------------


class Repository:
    def __init__(self, root, identity_file):
        global RING
        self.root = pathlib.Path(root)
        marker = self.root / "pgvault-repository.json"
        if not marker.exists():
            raise Refused(f"{self.root} is no pgvault repository: it has no {marker.name}")
        self.marker = sealed(marker, "repository")
        RING = KeyRing(self.root, identity_file)
        if self.marker.get("encrypted") and not RING.keys:
            raise Refused("the repository says that it is encrypted, and its key ring is gone")

    def clusters(self):
        for folder in sorted(self.root.iterdir()):
            if folder.is_dir() and re.fullmatch(r"[a-z0-9_-]{1,63}", folder.name) and folder.name != "keys":
                if any(LINEAGE.match(child.name) for child in folder.iterdir()):
                    yield folder

    def lineages(self, cluster):
        """Oldest first."""
        folder = self.root / cluster
        if not folder.is_dir():
            raise Refused(f"no cluster {cluster} in {self.root}")
        found = [Lineage(child) for child in folder.iterdir() if LINEAGE.match(child.name)]
        return sorted(found, key=lambda lineage: (lineage.document["created_at"], lineage.number))


class Lineage:
    def __init__(self, folder):
        self.folder = folder
        self.document = sealed(folder / "lineage.json", "lineage")
        need(self.document["lineage"] == folder.name, f"{folder}: it describes {self.document['lineage']}")
        need(self.document["cluster"] == folder.parent.name, f"{folder}: it is of {self.document['cluster']}")
        self.number = int(folder.name.rsplit("-")[1])
        self.size = self.document["segment_size"]
        self.wal = folder / "wal"

    # WAL

    def segment_path(self, segment):
        return self.wal / segment[:8] / segment[8:16] / f"{segment}.zst"

    def segment_start(self, segment):
        return (int(segment[8:16], 16) << 32) + int(segment[16:], 16) * self.size

    def segments(self):
        """Names of all complete segments."""
        return sorted(path.stem for path in self.wal.glob("*/*/*.zst") if SEGMENT.match(path.stem))

    def tailed(self):
        """Names of all segments that have tails."""
        return sorted(path.stem for path in self.wal.glob("*/*/*.tail") if SEGMENT.match(path.stem))

    def histories(self):
        return sorted(self.wal.glob("*/*.history"))

    def gaps(self):
        """The records of WAL that was lost."""
        return [self.gap(path) for path in sorted(self.folder.glob("gaps/*.json"))]

    def gap(self, path):
        gap = sealed(path, "gap")
        name = f"{gap['timeline']:08X}-{lsn(gap['from_lsn']):016X}-{lsn(gap['to_lsn']):016X}.json"
        need(path.name == name, f"{path}: it is of {name}")
        return gap

    def segment(self, segment):
        path = self.segment_path(segment)
        self.refuse_encrypted(path)
        return read_wal(path, "segment", segment, self.segment_start(segment), self.size, self.document)

    def refuse_encrypted(self, path):
        need(not path.with_name(path.name + ".enc").exists(), f"{path}: it is encrypted")

    def chain(self, segment):
        """The pieces of an incomplete segment that follow each other from its start: (from, to, path), and the end."""
        folder = self.segment_path(segment).with_suffix(".tail")
        names = ((PIECE.match(path.name), path) for path in (folder.iterdir() if folder.is_dir() else []))
        pieces = sorted((int(name[1], 16), int(name[2], 16), path) for name, path in names if name)
        end, chain = self.segment_start(segment), []
        for piece in pieces:
            if piece[0] > end:
                break
            end = max(end, piece[1])
            chain.append(piece)
        return chain, end

    def tail(self, segment):
        """What is there of an incomplete segment, padded with zeros, and its real end; None when nothing is."""
        start = self.segment_start(segment)
        chain, end = self.chain(segment)
        if not chain:
            return None
        plain = bytearray()
        for first, last, path in chain:
            piece = read_wal(path, "tail", segment, first, last - first, self.document)
            offset = first - start
            shared = min(len(plain) - offset, len(piece))
            need(plain[offset : offset + shared] == piece[:shared], f"{path}: another tail has other bytes there")
            plain += piece[shared:]
        need(len(plain) == end - start, f"{segment}: its tails do not join")
        return bytes(plain).ljust(self.size, b"\0"), end

    # Backups

    def backups(self):
        return sorted(path.parent.name for path in self.folder.glob("backups/*/manifest"))

    def backup(self, name):
        return Backup(self, name)

    def marks(self, name):
        """What the marks of a backup come to: of each group the last one."""
        last = {}
        # "keep" sorts before "release" and "damaged" before "verified"; of equal numbers the first of each pair wins.
        for path in sorted(self.folder.glob(f"backups/{name}/marks/*-*"), key=lambda p: (p.name[:5], p.name), reverse=True):
            mark = sealed(path, "mark")
            group = "keep" if mark["what"] in ("keep", "release") else "health"
            number = path.name[:5]
            if group not in last or (last[group][0] == number and mark["what"] in ("keep", "damaged")):
                last[group] = (number, mark["what"])
        return {group: what for group, (_, what) in last.items()}


def name_of(entry, member="path"):
    """A path as bytes: names that are not UTF-8 are written in hexadecimal digits."""
    return os.fsencode(entry[member]) if member in entry else bytes.fromhex(entry[member + "_hex"])


class Backup:
    def __init__(self, lineage, name):
        self.lineage = lineage
        self.folder = lineage.folder / "backups" / name
        path = self.folder / "manifest"
        if not path.exists():
            raise Absent(f"no backup {name} in {lineage.folder}")
        self.manifest = sealed(path, "backup")
        for member in ("cluster", "lineage", "system_identifier"):
            need(self.manifest[member] == lineage.document[member], f"{path}: its {member} is {self.manifest[member]}")
        need(self.manifest["id"] == name, f"{path}: it is the manifest of {self.manifest['id']}")
        self.packs = [pack["sha256"] for pack in self.manifest["packs"]]

    def stored(self, described):
        """An object of the backup's folder, once its length and SHA-256 were found right."""
        path = self.folder / described["name"]
        data = path.read_bytes()
        need(len(data) == described["size"], f"{path}: {len(data)} bytes in place of {described['size']}")
        need(sha256(data) == described["sha256"], f"{path}: wrong checksum")
        return content(path, data)

    def entries(self):
        """The file table."""
        for part in self.manifest["parts"]:
            lines = decompress(self.stored(part)).splitlines()
            need(len(lines) == part["entries"], f"{part['name']}: {len(lines)} entries in place of {part['entries']}")
            for line in lines:
                yield json.loads(line)

    def postgres_manifest(self):
        described = self.manifest["postgres_manifest"]
        return decompress(self.stored(described)) if described else None

    def pack_path(self, index):
        return self.lineage.folder.parent / "packs" / self.packs[index]

    def contents(self):
        """Everything in the file table with its content: (entry, piece, whether it is the entry's last piece)."""
        for batch in batches(self.entries()):
            frames, length = bytearray(), 0
            for _, chunk, _ in batch:
                for pack, offset, stored, plain, *_ in stored_frames(chunk):
                    frames += read_at(self.pack_path(pack), offset, stored)
                    length += plain
            content = decompress(bytes(frames)) if frames else b""
            need(len(content) == length, f"{len(content)} bytes of chunks in place of {length}")
            position = 0
            for entry, chunk, last in batch:
                pieces = []
                for _, _, _, plain, *_ in stored_frames(chunk):
                    pieces.append(content[position : position + plain])
                    position += plain
                if not pieces:
                    yield entry, bytes(chunk[3]), last
                    continue
                piece = pieces[0] if len(pieces) == 1 else xor(*pieces)
                need(blake3_of(piece) in (None, chunk[4]), f"chunk {chunk[4]} holds other bytes")
                yield entry, piece, last


def stored_frames(chunk):
    """The frames that a chunk is made of: none for zeros, two for a page patch (6.3)."""
    if chunk[0] < 0:
        return []
    if len(chunk) == 5:
        return [chunk]
    need(len(chunk) == 6 and list(chunk[5]) == ["xor"], "a chunk is made in a way that this reader does not know")
    return [chunk, chunk[5]["xor"]]


def xor(difference, base):
    """The bytes that have this difference to `base`, which is cut or filled up with zeros to their length."""
    base = base[: len(difference)].ljust(len(difference), b"\0")
    return (int.from_bytes(difference, "little") ^ int.from_bytes(base, "little")).to_bytes(len(difference), "little")


def batches(entries):
    """All chunks of all entries, in runs of a bounded amount of plaintext: [(entry, chunk, whether it is the last)]."""
    batch, size = [], 0
    for entry in entries:
        chunks = entry.get("chunks") or [[-1, 0, 0, 0, ""]]
        for number, chunk in enumerate(chunks, 1):
            length = sum(frame[3] for frame in stored_frames(chunk)) or chunk[3]
            if size + length > BATCH:
                yield batch
                batch, size = [], 0
            batch.append((entry, chunk, number == len(chunks)))
            size += length
    yield batch


class Check:
    """Adds up the content of one file as its pieces come."""

    def __init__(self, entry, chunk_size):
        self.entry, self.chunk_size, self.size, self.crc = entry, chunk_size, 0, 0

    def add(self, piece, last):
        name = os.fsdecode(name_of(self.entry))
        need(self.size % self.chunk_size == 0 and len(piece) <= self.chunk_size, f"{name}: chunks not at their offsets")
        self.size += len(piece)
        self.crc = crc32c(piece, self.crc)
        if last:
            need(self.size == self.entry["size"], f"{name}: {self.size} bytes in place of {self.entry['size']}")
            need(f"{self.crc:08x}" == self.entry["crc32c"], f"{name}: wrong CRC-32C")


def read_at(path, offset, length):
    with open(path, "rb") as file:
        if RING.is_clear(path, file.read(len(MAGIC))):
            file.seek(offset)
            data = file.read(length)
        else:
            first, behind = offset // PLAIN_BLOCK, -(-(offset + length) // PLAIN_BLOCK)
            file.seek(first * STORED_BLOCK)
            plain, _ = RING.open(path, file.read((behind - first) * STORED_BLOCK), first)
            data = plain[offset - first * PLAIN_BLOCK :][:length]
    need(len(data) == length, f"{path}: it ends before byte {offset + length}")
    return data


# --- commands -------------------------------------------------------------------------------------------------------------


def spans(lineage):
    """Complete segments that follow each other on one timeline: (timeline, first, last, how many)."""
    runs = []
    for segment in lineage.segments():
        start = lineage.segment_start(segment)
        if runs and runs[-1][0] == segment[:8] and runs[-1][4] == start:
            runs[-1][2:] = [segment, runs[-1][3] + 1, start + lineage.size]
        else:
            runs.append([segment[:8], segment, segment, 1, start + lineage.size])
    return [tuple(run[:4]) for run in runs]


def show_lsn(position):
    return f"{position >> 32:X}/{position & 0xFFFFFFFF:X}"


def command_list(repository, _arguments):
    for folder in repository.clusters():
        for lineage in repository.lineages(folder.name):
            document = lineage.document
            print(f"cluster {folder.name} lineage {document['lineage']} PostgreSQL {document['postgres_version']}")
            for name in lineage.backups():
                manifest = lineage.backup(name).manifest
                marks = "".join(f" {what}" for what in lineage.marks(name).values())
                place = f"{manifest['start_lsn']} to {manifest['stop_lsn']} on timeline {manifest['timeline']}"
                print(f"  backup {name} {place}, {manifest['files']} files, {manifest['size_bytes']} bytes{marks}")
            for _, first, last, count in spans(lineage):
                print(f"  wal {first} to {last}, {count} segments")
            for segment in lineage.tailed():
                if not lineage.segment_path(segment).exists():
                    print(f"  wal {segment} up to {show_lsn(lineage.chain(segment)[1])}, not complete")
            for path in lineage.histories():
                print(f"  history {path.name}")
            for gap in lineage.gaps():
                where = f"{gap['from_lsn']} to {gap['to_lsn']} of timeline {gap['timeline']}"
                print(f"  lost wal {where}: {gap['reason']}")


def command_wal(repository, arguments):
    name = arguments.segment
    # The newest lineage first: it is the one that goes on.
    for lineage in reversed(repository.lineages(arguments.cluster)):
        if name.endswith(".history"):
            path = lineage.wal / name[:8] / name
            if path.exists():
                write_out(arguments.out, content(path))
                return
            continue
        if not SEGMENT.match(name):
            raise Refused(f"{name} is neither a WAL segment nor a history file")
        lineage.refuse_encrypted(lineage.segment_path(name))
        if lineage.segment_path(name).exists():
            write_out(arguments.out, lineage.segment(name))
            return
        tail = lineage.tail(name)
        if tail:
            write_out(arguments.out, tail[0])
            return
    raise Absent(f"{name} is not in the repository")


def write_out(path, data):
    """Whole or not at all."""
    temporary = f"{path}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def command_restore(repository, arguments):
    for lineage in reversed(repository.lineages(arguments.cluster)):
        if arguments.backup in lineage.backups():
            break
    else:
        raise Absent(f"no backup {arguments.backup} of {arguments.cluster}")
    backup = lineage.backup(arguments.backup)
    target = os.fsencode(arguments.target)
    os.makedirs(target, mode=0o700, exist_ok=True)
    if os.listdir(target):
        raise Refused(f"{arguments.target} is not empty")
    os.chmod(target, 0o700)
    make_tablespaces(backup, target)
    directories, control, check, file = [], [], None, None
    for entry, piece, last in backup.contents():
        path = inside(target, name_of(entry))
        if entry["type"] == "dir":
            os.makedirs(path, exist_ok=True)
            directories.append((path, entry["mode"]))
            continue
        check = check or Check(entry, backup.manifest["chunk_size"])
        check.add(piece, last)
        if name_of(entry) == b"global/pg_control":
            control.append((path, entry, piece))
        else:
            file = file or create(path)
            file.write(piece)
        if last:
            check = None
        if last and file:
            finish(file, path, entry)
            file = None
    for path, mode in directories:
        os.chmod(path, mode)
    # Last of all: without it no server starts, so a half-done restore can never be used.
    need(len(control) == 1, "the backup has no global/pg_control")
    path, entry, content = control[0]
    file = create(path)
    file.write(content)
    finish(file, path, entry)


def make_tablespaces(backup, target):
    """Every tablespace goes where it lay: move it by changing the link before the first start."""
    for tablespace in backup.manifest["tablespaces"]:
        path = name_of(tablespace)
        os.makedirs(path, mode=0o700, exist_ok=True)
        if os.listdir(path):
            raise Refused(f"tablespace {os.fsdecode(path)} is not empty")
        os.makedirs(os.path.join(target, b"pg_tblspc"), exist_ok=True)
        os.symlink(path, os.path.join(target, b"pg_tblspc", str(tablespace["oid"]).encode()))


def inside(target, path):
    parts = path.split(b"/")
    need(path and all(part not in (b"", b".", b"..") for part in parts), f"path {path!r} in the file table")
    return os.path.join(target, *parts)


def create(path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    return open(path, "xb")


def finish(file, path, entry):
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.chmod(path, entry["mode"])
    os.utime(path, (entry["mtime"], entry["mtime"]))


def command_verify(repository, _arguments):
    problems = counted = 0

    def check(what, action):
        nonlocal problems, counted
        counted += 1
        try:
            action()
        except (Damaged, OSError, ValueError, KeyError) as error:
            problems += 1
            print(f"damaged: {what}: {error}")

    for folder in repository.clusters():
        for path in sorted((folder / "packs").glob("*")):
            check(f"packs/{path.name}", lambda path=path: verify_pack(path))
        for lineage in repository.lineages(folder.name):
            for segment in lineage.segments():
                check(segment, lambda segment=segment: lineage.segment(segment))
            for segment in lineage.tailed():
                check(f"{segment}.tail", lambda segment=segment: lineage.tail(segment))
            for path in sorted(lineage.folder.glob("gaps/*.json")):
                check(f"gaps/{path.name}", lambda path=path: lineage.gap(path))
            for name in lineage.backups():
                check(f"backup {name}", lambda name=name: verify_backup(lineage, name))
    print(f"{counted} objects, {problems} damaged")
    if problems:
        sys.exit(1)


def verify_pack(path):
    """Its name, and the table of contents at its end (section 6)."""
    data = path.read_bytes()
    need(sha256(data) == path.name, "its bytes are not those that its name tells")
    data = content(path, data)
    need(len(data) >= 28 and data[-4:] == b"PGVP", "it does not end as a pack")
    length = struct.unpack_from("<I", data, len(data) - 8)[0]
    toc = data[len(data) - length :]
    need(toc[:4] == SKIPPABLE and toc[8:16] == b"PGVPACK1", "no table of contents where its end says")
    need(struct.unpack_from("<I", toc, 4)[0] == length - 8, "its table of contents has another length")
    count = struct.unpack_from("<I", toc, 16)[0]
    need(length == 20 + count * 44 + 8, "its table of contents has another number of chunks")
    position = 0
    for index in range(count):
        offset, stored, plain, blake3 = struct.unpack_from("<III32s", toc, 20 + index * 44)
        need(offset == position and plain > 0, f"chunk {index} does not follow the one before")
        position += stored
    need(position == len(data) - length, "its chunks do not end where its table of contents starts")


def verify_backup(lineage, name):
    backup = lineage.backup(name)
    lineage.marks(name)
    backup.postgres_manifest()
    files, size, check = 0, 0, None
    for entry, piece, last in backup.contents():
        if entry["type"] == "file":
            check = check or Check(entry, backup.manifest["chunk_size"])
            check.add(piece, last)
        if entry["type"] == "file" and last:
            files, size, check = files + 1, size + entry["size"], None
    manifest = backup.manifest
    need(files == manifest["files"], f"{files} files in place of {manifest['files']}")
    need(size == manifest["size_bytes"], f"{size} bytes in place of {manifest['size_bytes']}")
    for pack in manifest["packs"]:
        found = (lineage.folder.parent / "packs" / pack["sha256"]).stat().st_size
        need(found == pack["size"], f"pack {pack['sha256']} has {found} bytes")


def main():
    parser = argparse.ArgumentParser(description="Reads a pgvault repository without pgvault.")
    parser.add_argument("repository", help="the directory with pgvault-repository.json")
    identity = os.environ.get("PGVAULT_IDENTITY_FILE")
    parser.add_argument("--identity", default=identity, metavar="FILE", help="opens an encrypted repository")
    commands = parser.add_subparsers(required=True)
    commands.add_parser("list").set_defaults(run=command_list)
    wal = commands.add_parser("wal")
    wal.add_argument("cluster")
    wal.add_argument("segment")
    wal.add_argument("out")
    wal.set_defaults(run=command_wal)
    restore = commands.add_parser("restore")
    restore.add_argument("cluster")
    restore.add_argument("backup")
    restore.add_argument("target")
    restore.set_defaults(run=command_restore)
    commands.add_parser("verify").set_defaults(run=command_verify)
    try:
        arguments = parser.parse_args()
    except SystemExit as error:
        sys.exit(255 if error.code else 0)
    try:
        arguments.run(Repository(arguments.repository, arguments.identity), arguments)
    except Absent as error:
        print(error, file=sys.stderr)
        sys.exit(1)
    except Exception as error:  # Whatever it is: 1 would tell PostgreSQL that the WAL ends here.
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(255)


if __name__ == "__main__":
    main()
