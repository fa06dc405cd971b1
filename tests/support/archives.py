"""ZIP files made byte by byte, so that each can be wrong in one way; and those that a bundle must not be."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

FULL = 0xFFFFFFFF


@dataclass(frozen=True)
class Part:
    """An entry. What `local` and `central` name is said otherwise in that header alone."""

    name: str | bytes = "main.py"
    data: bytes = b"print(1)\n"
    mode: int = 0o100644
    method: int = 0
    flags: int = 0
    system: int = 3
    packed: bytes | None = None
    extra: bytes = b""
    local: dict[str, Any] = field(default_factory=dict)
    central: dict[str, Any] = field(default_factory=dict)
    descriptor: bytes = b""
    before: bytes = b""
    at: int | None = None  # where the directory says that it is

    @property
    def raw(self) -> bytes:
        return self.name.encode() if isinstance(self.name, str) else self.name

    @property
    def body(self) -> bytes:
        if self.packed is not None:
            return self.packed
        return deflated(self.data) if self.method == 8 else self.data


def deflated(data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(data) + packer.flush()


def zip64(*numbers: int) -> bytes:
    return struct.pack(f"<2H{len(numbers)}Q", 1, 8 * len(numbers), *numbers)


def unicode_path(raw: bytes, name: str) -> bytes:
    said = struct.pack("<BI", 1, zlib.crc32(raw)) + name.encode()
    return struct.pack("<2H", 0x7075, len(said)) + said


def craft(
    *parts: Part,
    comment: bytes = b"",
    end: dict[str, int] | None = None,
    large: dict[str, int] | None = None,
    prefix: bytes = b"",
    suffix: bytes = b"",
) -> bytes:
    """The archive. `large` gives it zip64's end record, with these numbers changed."""
    out, directory = bytearray(prefix), bytearray()
    for part in parts:
        out += part.before
        numbers: dict[str, Any] = {
            "flags": part.flags, "method": part.method, "crc": zlib.crc32(part.data),
            "packed": len(part.body), "size": len(part.data), "raw": part.raw, "extra": part.extra,
        }  # fmt: skip
        near = numbers | part.local
        far = numbers | {"offset": len(out), "disk": 0} | part.central
        if part.at is not None:
            far["offset"] = part.at
        out += struct.pack(
            "<4s5H3I2H", b"PK\x03\x04", 20, near["flags"], near["method"], 0, 33, near["crc"], near["packed"],
            near["size"], len(near["raw"]), len(near["extra"]),
        ) + near["raw"] + near["extra"] + part.body + part.descriptor  # fmt: skip
        directory += struct.pack(
            "<4s6H3I5H2I", b"PK\x01\x02", part.system << 8 | 20, 20, far["flags"], far["method"], 0, 33,
            far["crc"], far["packed"], far["size"], len(far["raw"]), len(far["extra"]), 0, far["disk"], 0,
            part.mode << 16, far["offset"],
        ) + far["raw"] + far["extra"]  # fmt: skip
    said = {"disk": 0, "first": 0, "here": len(parts), "count": len(parts), "size": len(directory)}
    said |= {"start": len(out)}
    out += directory
    if large is not None:
        big = said | large
        at = len(out)
        out += struct.pack(
            "<4sQ2H2I4Q", b"PK\x06\x06", big.get("rest", 44), 45, 45, big["disk"], big["first"], big["here"],
            big["count"], big["size"], big["start"],
        )  # fmt: skip
        out += struct.pack("<4sIQI", b"PK\x06\x07", 0, big.get("at", at), 1)
        said |= {"here": 0xFFFF, "count": 0xFFFF, "size": FULL, "start": FULL}
    said |= end or {}
    out += struct.pack(
        "<4s4H2IH", b"PK\x05\x06", said["disk"], said["first"], said["here"], said["count"], said["size"],
        said["start"], said.get("comment", len(comment)),
    )  # fmt: skip
    return bytes(out + comment + suffix)


def zipped(files: dict[str, bytes | str], **options: Any) -> bytes:
    """As Python's own zipfile makes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, **options) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return out.getvalue()


def named(*names: str | bytes) -> bytes:
    return craft(Part(), *(Part(name) for name in names))


def described(part: Part, form: str = "<3I", sign: bytes = b"PK\x07\x08", **changes: Any) -> Part:
    """The same with its numbers behind its data."""
    numbers = struct.pack(form, zlib.crc32(part.data), len(part.body), len(part.data))
    zeros = {"crc": 0, "packed": 0, "size": 0}
    return replace(part, flags=part.flags | 8, local=zeros, descriptor=sign + numbers, **changes)


def _overlapping(count: int) -> bytes:
    return craft(Part(), *(Part(f"{number}.py", at=0) for number in range(count)))


def _quoted_bomb() -> bytes:
    """Fifield's: each entry's data is a stored block that quotes the next one's header."""
    inner = craft(Part("b", b"\0" * 70_000, method=8))
    first = struct.pack("<BHH", 0, 30, 30 ^ 0xFFFF)
    return craft(Part("a", packed=first + inner[:30], method=8, central={"size": 100_000}), Part("b"))


def _noise(size: int) -> bytes:
    return random.Random(1).randbytes(size)  # noqa: S311


LIES, BAD, NAMES, GIT = "bundle_contradiction", "bundle_malformed", "bundle_path", "bundle_git"
LARGE, OVERLAP, TWICE = "bundle_too_large", "bundle_overlap", "bundle_duplicate"
SPECIAL = "bundle_special"
SLASHES = "a/" * 600 + "b"
BARE = ("x/HEAD", "x/objects/a", "x/refs/b")
# Name: the archive, the code it is refused with, and a word of the refusal.
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    "Z01 not a zip": (b"hello, this is text" * 9, BAD, "not a ZIP"),
    "Z01 a tar": (b"main.py" + b"\0" * 500, BAD, "not a ZIP"),
    "Z01 four bytes": (b"PK\x03\x04", BAD, "cut off"),
    "Z01 noise behind a beginning": (b"PK\x03\x04" + _noise(999), BAD, "cut off"),
    "Z02 cut in the data": (craft(Part())[:40], BAD, "cut off"),
    "Z02 cut in the directory": (craft(Part())[:-30], BAD, "cut off"),
    "Z02 cut in the end": (craft(Part())[:-1], BAD, "cut off"),
    "Z04 no bytes": (b"", "bundle_empty", "empty"),
    "Z04 no entries": (craft(), "bundle_empty", "no file"),
    "Z04 entries that are nowhere listed": (craft(prefix=craft(Part())[:46]), "bundle_empty", "no file"),
    "Z04 folders alone": (craft(Part("a/", b"", 0o40755)), "bundle_empty", "no file"),
    "Z04 of macOS alone": (craft(Part("__MACOSX/._main.py")), "bundle_empty", "no file"),
    "Z07 absolute": (named("/etc/passwd"), NAMES, "absolute"),
    "Z07 of a drive": (named("C:/x"), NAMES, "absolute"),
    "Z07 of a drive's folder": (named("c:x"), NAMES, "absolute"),
    "Z07 of a share": (named("//host/share/x"), NAMES, "absolute"),
    "Z08 climbing": (named("../x.py"), NAMES, "'..'"),
    "Z08 climbing later": (named("a/../../x.py"), NAMES, "'..'"),
    "Z08 climbing backwards": (named("..\\x.py"), NAMES, "backslash"),
    "Z08 a dot": (named("./x.py"), NAMES, "'.'"),
    "Z08 an empty part": (named("a//x.py"), NAMES, "''"),
    "Z08 no name": (named(""), NAMES, "''"),
    "Z08 a home": (named("a/..", "a/~/.."), NAMES, "'..'"),
    "Z10 a symlink": (craft(Part("a", b"/etc/passwd", 0o120777)), SPECIAL, "symbolic link"),
    "Z10 a symlink of another system": (
        craft(Part("a", b"/etc", 0o120777, system=0)), SPECIAL, "symbolic link",
    ),
    "Z11 a symlink and its child": (
        craft(Part("a", b"/tmp", 0o120777), Part("a/x.py")), SPECIAL, "symbolic link",
    ),
    "Z11 a pipe": (craft(Part("a", b"", 0o010644)), SPECIAL, "no file"),
    "Z11 a disk": (craft(Part("a", b"", 0o060644)), SPECIAL, "no file"),
    "Z11 a socket": (craft(Part("a", b"", 0o140644)), SPECIAL, "no file"),
    "Z13 twice": (named("x.py", "x.py"), TWICE, "twice"),
    "Z13 a file and a folder": (named("x", "x/y"), TWICE, "'x/y'"),
    "Z13 a folder and a file": (named("x/y", "x"), TWICE, "'x'"),
    "Z14 another case": (named("Train.py", "train.py"), TWICE, "one name"),
    "Z14 another case above": (named("Data/x", "data/y"), TWICE, "one name"),
    "Z14 composed otherwise": (named("\u00e9.py", "e\u0301.py"), TWICE, "one name"),
    "Z14 sharp": (named("stra\u00dfe", "STRASSE"), TWICE, "one name"),
    "Z16 NUL": (named("x.py\0.txt"), NAMES, "cannot be seen"),
    "Z16 an escape": (named("\x1b[31mx"), NAMES, "cannot be seen"),
    "Z16 a line": (named("x\ny"), NAMES, "cannot be seen"),
    "Z16 turned around": (named("x\u202eyp.exe"), NAMES, "cannot be seen"),
    "Z16 of no width": (named(".g\u200cit/config"), NAMES, "cannot be seen"),
    "Z16 not UTF-8": (named(b"\xff\xfe.py"), NAMES, "UTF-8"),
    "Z16 half a pair": (named(b"\xed\xa0\x80.py"), NAMES, "UTF-8"),
    "Z16 a slash in two bytes": (named(b"a\xc0\xafb"), NAMES, "UTF-8"),
    "Z16 a code page": (named("\u00fc.py".encode("cp437")), NAMES, "UTF-8"),
    "Z17 300 letters": (named("x" * 300), NAMES, "255 bytes"),
    "Z17 600 folders": (named(SLASHES), NAMES, "bytes"),
    "Z17 40 folders": (named("a/" * 40 + "b"), NAMES, "folders deep"),
    "Z17 60,000 letters": (named("x/" * 30_000), NAMES, "bytes"),
    "Z18 .git": (named(".git/config"), GIT, "git repository"),
    "Z18 .git below": (named("a/.git/hooks/pre-commit"), GIT, "git repository"),
    "Z18 .git as a file": (named(".git"), GIT, "git repository"),
    "Z18 .GIT": (named(".GIT/config"), GIT, "git repository"),
    "Z18 .git with a dot": (named(".git./config"), GIT, "git repository"),
    "Z18 .git with a space": (named(".git /config"), GIT, "git repository"),
    "Z18 .git in wide letters": (named("\uff0e\uff47\uff49\uff54/config"), GIT, "git repository"),
    "Z18 git~1": (named("GIT~1/config"), GIT, "git repository"),
    "Z18 a stream of .git": (named(".git::$INDEX_ALLOCATION/config"), NAMES, "colon"),
    "Z18 submodules": (named(".gitmodules"), GIT, "submodules"),
    "Z18 submodules in capitals": (named(".GitModules"), GIT, "submodules"),
    "Z18 submodules, shortened": (named("GITMOD~1"), GIT, "submodules"),
    "Z18 submodules, by number": (named("gi7eba~1"), GIT, "submodules"),
    "Z18 a bare repository": (named(*BARE), GIT, "looks like a git repository"),
    "Z18 a device": (named("a/aux.txt"), NAMES, "keep for themselves"),
    "Z18 a device with a superscript": (named("COM\u00b9"), NAMES, "keep for themselves"),
    "Z18 a dot at the end": (named("x."), NAMES, "end"),
    "Z19 50 over one": (_overlapping(50), OVERLAP, "overlaps"),
    "Z19 inside another": (craft(Part("a", b"x" * 50), Part("b", at=10)), OVERLAP, ""),
    "Z19 quoted": (_quoted_bomb(), LIES, ""),
    "Z19 a gap": (craft(Part("a"), Part("b", before=b"hidden")), OVERLAP, "no entry"),
    "Z19 a whole entry between": (
        craft(Part("a"), Part("b", before=craft(Part("c"))[:43])), OVERLAP, "no entry",
    ),
    "Z20 says less": (craft(Part(method=8, central={"size": 3}, local={"size": 3})), LIES, ""),
    "Z20 says more": (craft(Part(method=8, central={"size": 99}, local={"size": 99})), LIES, ""),
    "Z20 says other here than there": (
        craft(Part(method=8, local={"size": 3})), LIES, "other numbers",
    ),
    "Z20 another checksum": (craft(Part(local={"crc": 7}, central={"crc": 7})), LIES, "hold"),
    "Z20 another name there": (craft(Part(local={"raw": b"evil.py"})), LIES, "another one"),
    "Z20 another method there": (craft(Part(local={"method": 8})), LIES, "another one"),
    "Z20 other flags there": (craft(Part(local={"flags": 0x800})), LIES, "another one"),
    "Z20 stored in less": (craft(Part(central={"packed": 4}, local={"packed": 4})), LIES, "size"),
    "Z20 more than can be": (
        craft(Part(method=8, central={"size": 10**6}, local={"size": 10**6})), LIES, "size",
    ),
    "Z20 damaged": (
        craft(Part(packed=b"\xff" * 9, method=8)), LIES, "unpacked",
    ),
    "Z20 data behind the stream": (
        craft(Part(packed=deflated(b"print(1)\n") + b"more", method=8)), LIES, "unpacked",
    ),
    "Z20 a folder with data": (
        craft(Part(), Part("a/", b"x", 0o40755)), LIES, "size",
    ),
    "Z20 a folder without a slash": (craft(Part("a", b"", 0o40755)), LIES, "folder"),
    "Z20 a file with a slash": (craft(Part(), Part("a/", b"", 0o100644)), LIES, "folder"),
    "Z20 another description": (
        craft(replace(described(Part()), descriptor=b"PK\x07\x08" + b"\0" * 12)), LIES, "no end",
    ),
    "Z20 no description": (craft(replace(described(Part()), descriptor=b"")), LIES, "no end"),
    "Z20 two names": (
        craft(Part(extra=unicode_path(b"main.py", "../x"))), LIES, "two names",
    ),
    "Z20 broken extra fields": (craft(Part(extra=b"\x01\x00\xff\x00")), LIES, "extra"),
    "Z21 encrypted": (craft(Part(flags=1)), "bundle_encrypted", "encrypted"),
    "Z21 strongly encrypted": (craft(Part(flags=0x41)), "bundle_encrypted", "encrypted"),
    "Z21 with hidden headers": (craft(Part(flags=0x2000)), "bundle_encrypted", "encrypted"),
    "Z21 bzip2": (craft(Part(method=12)), "bundle_compression", "bzip2"),
    "Z21 an unknown method": (craft(Part(method=77)), "bundle_compression", "77"),
    "Z22 a million entries": (
        craft(Part(), large={"here": 10**6, "count": 10**6}), LARGE, "1000000 entries",
    ),
    "Z22 65,535 entries": (craft(Part(), end={"here": 65535, "count": 65535}), LARGE, "entries"),
    "Z22 entries that are not there": (craft(Part(), end={"here": 2, "count": 2}), BAD, "directory"),
    "Z22 fewer than there are": (craft(Part(), Part("b"), end={"here": 1, "count": 1}), BAD, "more"),
    "Z22 zip64 elsewhere": (craft(Part(), large={"at": 0}), BAD, "zip64"),
    "Z22 zip64 beyond the end": (craft(Part(), large={"start": 2**63}), BAD, ""),
    "Z22 zip64 with a tail": (craft(Part(), large={"rest": 99}), BAD, "zip64"),
    "Z22 zip64 against the end": (
        craft(Part(), large={}, end={"start": 7}), BAD, "zip64",
    ),
    "Z22 zip64's size is missing": (
        craft(Part(central={"size": FULL}, local={"size": FULL})), LIES, "zip64",
    ),
    "Z22 zip64's size is huge": (
        craft(Part(method=8, central={"size": FULL, "extra": zip64(2**62)})), LIES, "size",
    ),
    "Z22 four gigabytes": (
        craft(*(Part(f"{n}", method=8, packed=b"x" * 3 * 2**20,
                     central={"size": 2**31, "crc": 0}) for n in range(3))),
        LARGE, "unpacks",
    ),
    "Z22 a large file": (
        craft(Part(method=8, packed=b"x" * 3 * 2**20, central={"size": 2**31 + 1})), LARGE, "bytes",
    ),
    "Z23 a bomb": (
        craft(Part(data=b"\0" * (65 * 2**20), method=8)), LARGE, "times its size",
    ),
    "Z25 something before": (craft(Part(), prefix=b"#!/bin/sh\n"), BAD, "before"),
    "Z25 something before that is counted": (
        craft(Part(), prefix=b"PK\x03\x04" + b"\0" * 40), OVERLAP, "no entry",
    ),
    "Z25 something before that is not counted": (
        craft(Part())[:4] + craft(Part()), BAD, "before",
    ),
    "Z25 something behind": (craft(Part(), suffix=b"more"), BAD, "follows"),
    "Z25 two archives": (craft(Part()) + craft(Part("b")), BAD, ""),
    "Z25 an end in the comment": (craft(Part(), comment=craft()), BAD, "two ways"),
    "Z25 of several disks": (craft(Part(), end={"disk": 1}), BAD, "split"),
    "Z25 an entry on another disk": (craft(Part(central={"disk": 3})), BAD, "split"),
}  # fmt: skip
# To vary for the fuzzer: archives that are taken or nearly, and the form that one comes in.
SEEDS = (
    craft(Part(), Part("a/b", b"x" * 99, method=8), comment=b"c"),
    craft(described(Part(method=8)), large={}),
    craft(prefix=craft(Part())[:46]),
    craft(Part("a/", b"", 0o40755), Part("a/b", extra=unicode_path(b"a/b", "a/b"))),
    b"PK\x05\x06" + bytes(18),
)
FORM = (
    b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx\r\n--b\r\nContent-Disposition: form-data; '
    b'name="file"; filename="a.zip"\r\nContent-Type: application/zip\r\n\r\nPK\r\n--b--\r\n'
)
