"""Uploaded ZIP files: read by a reader of our own that takes only what every reader understands alike.

Before a byte is unpacked, the whole archive is accounted for: entries lie one after the other from the first
byte to the central directory, each exactly as that says, and nothing lies between, before or after them.
Unpacking is a stream that ends at the size that was said, and nothing is ever written to a file of an
entry's name. Source: PKWARE's APPNOTE.TXT 6.3.10, whose sections are named below.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from trainforge.hooks.bundle_names import BundleRefused, Names, read_name, show

CHUNK = 1 << 18
_LOCAL, _CENTRAL = struct.Struct("<4s5H3I2H"), struct.Struct("<4s6H3I5H2I")
_END, _END64 = struct.Struct("<4s4H2IH"), struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_END_SIGN = b"PK\x05\x06"
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF
_ENCRYPTED, _DESCRIBED, _PATCH, _UTF8 = 0x2041, 0x0008, 0x0020, 0x0800
_COMPARED = _ENCRYPTED | _DESCRIBED | _PATCH | _UTF8
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_STORED, _DEFLATED = 0, 8
_METHODS = {1: "Shrink", 6: "Implode", 9: "Deflate64", 12: "bzip2", 14: "LZMA", 93: "Zstandard", 95: "XZ"}
_NEWEST = 63  # the version of PKWARE's that others read
_DEFLATE_MOST = 1040  # no deflate stream unpacks to more than 1032 times its size
_AGAIN = "make the ZIP again"


@dataclass(frozen=True)
class Limits:
    """What an archive may hold: entries, bytes, times its own size unpacked; and seconds to read it."""

    files: int = 20_000
    file_bytes: int = 2 * 2**30
    total_bytes: int = 4 * 2**30
    directory_bytes: int = 8 * 2**20
    ratio: int = 200
    ratio_from: int = 64 * 2**20  # small archives of very regular text may pack better
    seconds: float = 300.0


@dataclass(frozen=True)
class Member:
    """A file of an archive. `start` and `packed` say where its data are; sizes are bytes."""

    path: str
    size: int
    packed: int
    crc: int
    deflated: bool
    executable: bool
    start: int = 0


@dataclass(frozen=True)
class _Entry:
    """What the central directory says of an entry."""

    raw: bytes
    path: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int
    mode: int

    @property
    def folder(self) -> bool:
        return self.raw.endswith(b"/")


class Bundle:
    """An archive whose shape has been checked; `contents` checks each file's data while it unpacks them."""

    def __init__(self, file: BinaryIO, limits: Limits | None = None) -> None:
        """Raises BundleRefused."""
        self._file = file
        self._limits = limits or Limits()
        self._until = time.monotonic() + self._limits.seconds
        self._size = file.seek(0, os.SEEK_END)
        self.files = self._read()

    def contents(self, member: Member) -> Iterator[bytes]:
        """The file's bytes; as many as were said, and with the checksum that was said.

        Raises:
            BundleRefused: they are not, which shows at the end at the latest.
        """
        crc, left = 0, member.size
        for piece in self._inflate(member) if member.deflated else self._packed(member):
            left -= len(piece)
            if left < 0:
                break
            crc = zlib.crc32(piece, crc)
            yield piece
        if left or crc != member.crc:
            raise _lie(member.path, "does not hold what the ZIP's directory says")

    def verify(self) -> None:
        """Unpack everything, to nowhere. Raises BundleRefused."""
        for member in self.files:
            for _ in self.contents(member):
                pass

    def _packed(self, member: Member) -> Iterator[bytes]:
        self._file.seek(member.start)
        left = member.packed
        while left:
            self._check_time()
            data = self._file.read(min(CHUNK, left))
            if not data:
                raise _lie(member.path, "ends too early")
            left -= len(data)
            yield data

    def _inflate(self, member: Member) -> Iterator[bytes]:
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        wrong = _lie(member.path, "is damaged: its data cannot be unpacked")
        for packed in self._packed(member):
            if inflate.eof:
                raise wrong  # data after the stream's end, which other readers might find
            data = packed
            while not inflate.eof:
                self._check_time()
                try:
                    piece = inflate.decompress(data, CHUNK)
                except zlib.error:
                    raise wrong from None
                data = inflate.unconsumed_tail
                if piece:
                    yield piece
                if not data and len(piece) < CHUNK:
                    break
        if not inflate.eof or inflate.unused_data:
            raise wrong

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise BundleRefused(
                "bundle_timeout",
                f"the ZIP could not be read within {self._limits.seconds:g} seconds",
                "put less into it; `data:` in the manifest brings data sets",
            )

    # --- the central directory ------------------------------------------------------------------------

    def _read(self) -> tuple[Member, ...]:
        count, size, start = self._directory()
        if count > self._limits.files or size > self._limits.directory_bytes:
            raise BundleRefused(
                "bundle_too_large",
                f"the ZIP has {count} entries; at most {self._limits.files} are taken",
                "pack data sets into one file, or name them under `data:` in the manifest",
            )
        entries = list(self._entries(self._at(start, size), count))
        self._check_sizes(entries)
        names = Names(self._limits.files)
        for entry in entries:
            self._check_time()
            names.add(entry.path, folder=entry.folder)
        if inside := names.repository():
            words = f"{show(inside)} looks like a git repository (HEAD, objects, refs)"
            raise BundleRefused("bundle_git", words, "leave it out")
        members = [one for one in self._lay_out(entries, start) if one is not None] if entries else []
        if not members:
            raise BundleRefused("bundle_empty", "there is no file in the ZIP", "zip the project's files")
        return tuple(sorted(members, key=lambda member: member.path))

    def _directory(self) -> tuple[int, int, int]:
        """Number of entries, and size and place of the central directory (4.3.16)."""
        self._check_beginning()
        tail_at = max(0, self._size - _END.size - _FULL16)
        tail = self._at(tail_at, self._size - tail_at)
        ends = [one.start() for one in re.finditer(_END_SIGN, tail) if _fits(tail, one.start())]
        if len(ends) != 1:
            what = "ends in two ways" if ends else "is cut off, or something follows its end"
            raise BundleRefused("bundle_malformed", f"the ZIP {what}", _AGAIN)
        end_at = tail_at + ends[0]
        said: tuple[int, ...] = _END.unpack_from(tail, ends[0])[1:7]
        locator_at = end_at - _LOCATOR.size
        if locator_at >= 0 and self._at(locator_at, 4) == b"PK\x06\x07":
            said, end_at = self._zip64(locator_at, said)
        disk, first, here, count, size, start = said
        if disk or first or here != count:
            raise BundleRefused("bundle_malformed", "the ZIP is split over several files", "make one of it")
        if start + size != end_at:
            raise BundleRefused(
                "bundle_malformed", "something lies before the ZIP or in front of its end", _AGAIN
            )
        return count, size, start

    def _check_beginning(self) -> None:
        head = self._at(0, min(4, self._size))
        if not head:
            raise BundleRefused("bundle_empty", "the file is empty", "zip the project's files")
        if head == _END_SIGN:
            raise BundleRefused("bundle_empty", "there is no file in the ZIP", "zip the project's files")
        if head != b"PK\x03\x04":
            raise BundleRefused(
                "bundle_malformed", "this is not a ZIP file, or something lies before it", "send a .zip"
            )

    def _zip64(self, locator_at: int, said: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
        """The larger numbers (4.3.14, 4.3.15), which must not speak against the small ones."""
        _, disk, at, disks = _LOCATOR.unpack(self._at(locator_at, _LOCATOR.size))
        wrong = BundleRefused("bundle_malformed", "the ZIP's zip64 record contradicts it", _AGAIN)
        if disk or disks > 1 or at != locator_at - _END64.size:
            raise wrong
        sign, rest, _, _, *large = _END64.unpack(self._at(at, _END64.size))
        if sign != b"PK\x06\x06" or rest != _END64.size - 12:
            raise wrong
        full = (_FULL16, _FULL16, _FULL16, _FULL16, _FULL32, _FULL32)
        if any(small not in (most, big) for small, most, big in zip(said, full, large, strict=True)):
            raise wrong
        return tuple(large), at

    def _entries(self, directory: bytes, count: int) -> Iterator[_Entry]:
        at = 0
        for _ in range(count):
            self._check_time()
            if len(directory) - at < _CENTRAL.size or directory[at : at + 4] != b"PK\x01\x02":
                raise BundleRefused("bundle_malformed", "the ZIP's directory is damaged", _AGAIN)
            sign = _CENTRAL.unpack_from(directory, at)
            names, extras, words = sign[10:13]
            at += _CENTRAL.size
            raw, extra = directory[at : at + names], directory[at + names : at + names + extras]
            at += names + extras + words
            if at > len(directory):
                raise BundleRefused("bundle_malformed", "the ZIP's directory is damaged", _AGAIN)
            yield _central(sign, raw, extra)
        if at != len(directory):
            raise BundleRefused("bundle_malformed", "the ZIP's directory has more than it says", _AGAIN)

    def _check_sizes(self, entries: list[_Entry]) -> None:
        total = sum(entry.size for entry in entries)
        largest = max(entries, key=lambda entry: entry.size, default=None)
        limits = self._limits
        hint = "leave it out; `data:` in the manifest brings data sets"
        if largest is not None and largest.size > limits.file_bytes:
            words = f"{show(largest.path)} has {largest.size} bytes; at most {limits.file_bytes} are taken"
            raise BundleRefused("bundle_too_large", words, hint)
        if total > limits.total_bytes:
            words = f"the ZIP unpacks to {total} bytes; at most {limits.total_bytes} are taken"
            raise BundleRefused("bundle_too_large", words, hint)
        if total > max(limits.ratio_from, limits.ratio * self._size):
            words = (
                f"the ZIP unpacks to {total // self._size} times its size; at most {limits.ratio} is taken"
            )
            raise BundleRefused("bundle_too_large", words, hint)

    # --- the entries themselves -----------------------------------------------------------------------

    def _lay_out(self, entries: list[_Entry], end: int) -> Iterator[Member | None]:
        """Where each entry's data are; they fill the file up to the directory without gap or overlap."""
        order = sorted(entries, key=lambda entry: entry.offset)
        at = 0
        for entry, after in zip(order, [*(one.offset for one in order[1:]), end], strict=True):
            self._check_time()
            if entry.offset != at:
                what = "overlaps another entry" if entry.offset < at else "follows data that are in no entry"
                raise BundleRefused("bundle_overlap", f"{show(entry.path)} {what}", _AGAIN)
            start = self._local(entry)
            self._check_gap(entry, start + entry.packed, after)
            at = after
            yield None if entry.folder else Member(
                entry.path, entry.size, entry.packed, entry.crc, entry.method == _DEFLATED,
                bool(entry.mode & 0o100), start,
            )  # fmt: skip

    def _local(self, entry: _Entry) -> int:
        """Where the data begin, after a local header that says the same as the directory (4.3.7)."""
        head = self._at(entry.offset, _LOCAL.size)
        sign, _, flags, method, _, _, crc, packed, size, names, extras = _LOCAL.unpack(head)
        start: int = entry.offset + _LOCAL.size + names + extras
        behind = self._at(entry.offset + _LOCAL.size, names + extras)
        raw, extra = behind[:names], _extras(behind[names:], entry.raw)
        same = sign == b"PK\x03\x04" and raw == entry.raw and method == entry.method
        if not same or (flags ^ entry.flags) & _COMPARED:
            raise _lie(entry.path, "is another one in the ZIP's directory than at its place")
        _check_unicode_path(raw, extra)
        if _FULL32 in {size, packed}:
            size, packed = _large(extra.get(_ZIP64, b""), (size, packed), entry.path)
        later = entry.flags & _DESCRIBED  # the numbers may follow the data instead
        for here, there in ((crc, entry.crc), (packed, entry.packed), (size, entry.size)):
            if here != there and not (later and here == 0):
                raise _lie(entry.path, "has other numbers at its place than in the ZIP's directory")
        return start

    def _check_gap(self, entry: _Entry, ends: int, after: int) -> None:
        """Behind the data is the next entry, or the data's description (4.3.9) where one was announced."""
        gap = after - ends
        if gap < 0:
            raise BundleRefused("bundle_overlap", f"{show(entry.path)} overlaps another entry", _AGAIN)
        if entry.flags & _DESCRIBED:
            rest = self._at(ends, gap) if gap <= 24 else b""
            numbers = (entry.crc, entry.packed, entry.size)
            forms = [struct.pack("<IQQ", *numbers)]
            with contextlib.suppress(struct.error):  # larger than these can say
                forms.append(struct.pack("<3I", *numbers))
            if rest in [*forms, *(b"PK\x07\x08" + form for form in forms)]:
                return
            raise _lie(entry.path, "has no end, or one that the ZIP's directory contradicts")
        if gap:
            words = f"{gap} bytes behind {show(entry.path)} are in no entry"
            raise BundleRefused("bundle_overlap", words, _AGAIN)

    def _at(self, place: int, size: int) -> bytes:
        if place < 0 or place + size > self._size:
            raise BundleRefused("bundle_malformed", "the ZIP points beyond its end", _AGAIN)
        self._file.seek(place)
        return self._file.read(size)


def _fits(tail: bytes, at: int) -> bool:
    """Whether an end record here has its comment end with the file."""
    if len(tail) - at < _END.size:
        return False
    comment: int = _END.unpack_from(tail, at)[7]
    return at + _END.size + comment == len(tail)


def _central(said: tuple[int, ...], raw: bytes, packed_extra: bytes) -> _Entry:
    _, made_by, needed, flags, method, _, _, crc, packed, size, _, _, _, disk, _, outer, offset = said
    extra = _extras(packed_extra, raw)
    path = read_name(raw)
    _check_unicode_path(raw, extra)
    if _FULL32 in {size, packed, offset}:
        size, packed, offset = _large(extra.get(_ZIP64, b""), (size, packed, offset), path)
    if disk:
        raise BundleRefused("bundle_malformed", "the ZIP is split over several files", "make one of it")
    if flags & (_ENCRYPTED | _PATCH):
        raise BundleRefused("bundle_encrypted", f"{show(path)} is encrypted", "zip it without a password")
    if method not in {_STORED, _DEFLATED} or needed & 0xFF > _NEWEST:
        words = f"{show(path)} is packed with {_METHODS.get(method, f'method {method} of {needed}')}"
        raise BundleRefused("bundle_compression", words, "zip it with the usual method, deflate")
    mode = outer >> 16
    unix = made_by >> 8 in {3, 19}
    entry = _Entry(raw, path, flags, method, crc, packed, size, offset, mode if unix else 0)
    kind = stat.S_IFMT(mode)
    if kind not in {0, stat.S_IFREG, stat.S_IFDIR}:
        what = "a symbolic link" if stat.S_ISLNK(mode) else "no file and no folder"
        raise BundleRefused("bundle_special", f"{show(path)} is {what}", "zip what it leads to (`zip -r`)")
    if kind and (kind == stat.S_IFDIR) != entry.folder:
        raise _lie(path, "is a file by its name and a folder by its kind, or the reverse")
    most = packed if method == _STORED else packed * _DEFLATE_MOST
    least = packed if method == _STORED else 0
    if not least <= size <= most or (entry.folder and (size or crc or packed > 2)):
        raise _lie(path, "cannot have the size that the ZIP says")
    return entry


def _extras(data: bytes, raw: bytes) -> dict[int, bytes]:
    """The extra fields by their number (4.5); those that matter here come once."""
    found: dict[int, bytes] = {}
    at = 0
    while len(data) - at >= 4:
        number, size = struct.unpack_from("<2H", data, at)
        at += 4
        if at + size > len(data) or (number in found and number in {_ZIP64, _UNICODE_PATH}):
            raise _lie(raw, "has damaged extra fields")
        found[number] = data[at : at + size]
        at += size
    if data[at:].strip(b"\0"):
        raise _lie(raw, "has damaged extra fields")
    return found


def _check_unicode_path(raw: bytes, extra: dict[int, bytes]) -> None:
    """A second name (4.6.9) must be the first one: readers differ in which they take."""
    if (second := extra.get(_UNICODE_PATH)) is not None and second[5:] != raw:
        raise _lie(raw, "has two names")


def _large(extra: bytes, small: tuple[int, ...], name: str) -> list[int]:
    """The numbers, with those that are full replaced by zip64's (4.5.3), in its order."""
    full = sum(number == _FULL32 for number in small)
    if len(extra) < 8 * full:
        raise _lie(name, "has no numbers where zip64 should have them")
    larger = iter(struct.unpack_from(f"<{full}Q", extra))
    return [next(larger) if number == _FULL32 else number for number in small]


def _lie(name: str | bytes, what: str) -> BundleRefused:
    return BundleRefused("bundle_contradiction", f"{show(name)} {what}", _AGAIN)
