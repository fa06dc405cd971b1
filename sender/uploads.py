"""Forms with a file (`multipart/form-data`), taken as they come: fields within bounds, the file onto disk.

The file has no name in the sender's folder, so nothing of it outlives the request, whatever ends that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from trainforge.config.errors import MessageInvalid, TooLarge, TrainForgeError, Unreachable
from trainforge.sender.actions import in_thread
from trainforge.sender.context import Sender
from trainforge.sender.problems import let_finish, refuse_announced, text_of

MEDIA = "multipart/form-data"
FILE = "file"
MAX_FIELDS, MAX_FIELD_BYTES = 500, 256 * 1024  # of all fields together
TIME_S = 3600.0
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the refusal says what it would warn of


@dataclass
class Upload:
    """`file` stands at its end; closing it drops it."""

    fields: Mapping[str, str]
    filename: str
    file: BinaryIO


def is_upload(request: Request) -> bool:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == MEDIA


async def receive(
    request: Request, limit: int, before_file: Callable[[Mapping[str, str]], None] = lambda _: None
) -> Upload:
    """The form and its one file of at most `limit` bytes.

    `before_file` is given the fields that came before the file, and may refuse the rest.

    Raises:
        TooLarge: announced, or turned out, larger. StorageFull: the disk is low meanwhile.
        MessageInvalid: not such a form, or without a file. Unreachable: it takes too long.
    """
    sender: Sender = request.app.state.sender
    reader = Reader(request.headers.get("content-type", ""), limit, before_file)
    await refuse_announced(request, limit + 2 * MAX_FIELD_BYTES)
    announced = request.headers.get("content-length", "")
    sender.disk.refuse_without(int(announced) if announced.isdigit() else 0)
    folder = sender.data_dir / "uploads"
    folder.mkdir(mode=0o700, exist_ok=True)
    with contextlib.ExitStack() as held:
        made = await in_thread(lambda: tempfile.TemporaryFile(dir=folder))  # noqa: SIM115
        file = held.enter_context(made)
        try:
            async with asyncio.timeout(TIME_S):
                async for chunk in request.stream():
                    sender.disk.refuse_when_low()
                    if data := reader.feed(chunk):
                        await in_thread(file.write, data)
            upload = Upload(reader.finish(), reader.filename, file)
        except TrainForgeError:
            await let_finish(request)
            raise
        except ClientDisconnect:
            raise MessageInvalid("the upload was broken off", hint="send it again") from None
        except TimeoutError:
            raise Unreachable(f"the upload took longer than {TIME_S:g} s", hint="try a faster line") from None
        held.pop_all()  # the file is the caller's to close
        return upload


@dataclass
class _Part:
    headers: dict[bytes, bytes] = field(default_factory=dict)
    name: bytes = b""
    value: bytes = b""
    data: bytearray = field(default_factory=bytearray)
    of_file: bool = False


class Reader:
    """The form's bytes in, the file's bytes out."""

    def __init__(
        self, content_type: str, limit: int, before_file: Callable[[Mapping[str, str]], None] = lambda _: None
    ) -> None:
        """Raises MessageInvalid: it is not the type of such a form."""
        _, options = parse_options_header(content_type)
        boundary = options.get(b"boundary", b"")
        if not 1 <= len(boundary) <= 200:
            raise MessageInvalid("the form does not say what separates its parts", hint="curl -F does")
        self._limit, self._before_file = limit, before_file
        self._fields: dict[str, str] = {}
        self._part, self._out, self._sizes, self._whole = _Part(), bytearray(), [0, 0], False
        self.filename = ""
        self._has_file = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._all,
            },
        )

    def feed(self, chunk: bytes) -> bytes:
        """Raises MessageInvalid, TooLarge, and what `before_file` raises."""
        try:
            self._parser.write(chunk)
        except FormParserError as error:
            raise MessageInvalid(f"this is not a form with a file: {error}") from error
        out, self._out = bytes(self._out), bytearray()
        return out

    def finish(self) -> dict[str, str]:
        if not self._whole:
            raise MessageInvalid("the form is cut off", hint="send it again")
        if not self._has_file:
            raise MessageInvalid(f"the form has no {FILE}", hint=f'curl -F "{FILE}=@project.zip"')
        return self._fields

    def _begin(self) -> None:
        self._part = _Part()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._part.name += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._part.value += data[start:end]

    def _header_end(self) -> None:
        part = self._part
        part.headers[part.name.lower()] = part.value
        part.name = part.value = b""

    def _headers_end(self) -> None:
        part = self._part
        kind, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise MessageInvalid("a part of the form has no name")
        part.name = options[b"name"]
        part.of_file = part.name == FILE.encode()
        name = text_of(part.name)
        if part.of_file and self._has_file:
            raise MessageInvalid("the form has two files", hint="send one ZIP")
        if b"filename" in options and not part.of_file:
            raise MessageInvalid(f"{name[:80]!r} is no file here", hint=f"the ZIP is called {FILE}")
        if part.of_file:
            self._has_file, self.filename = True, text_of(options.get(b"filename", b""))[-255:]
            self._before_file(self._fields)
        elif name in self._fields or len(self._fields) >= MAX_FIELDS:
            raise MessageInvalid(f"{name[:80]} is said more than once, or too much is said")

    def _data(self, data: bytes, start: int, end: int) -> None:
        most = (MAX_FIELD_BYTES, self._limit)[self._part.of_file]
        self._sizes[self._part.of_file] += end - start
        if self._sizes[self._part.of_file] > most:
            what = "file" if self._part.of_file else "form's fields"
            raise TooLarge(f"the {what} may have {most} bytes at most", hint="send less at once")
        (self._out if self._part.of_file else self._part.data).extend(memoryview(data)[start:end])

    def _end(self) -> None:
        if not self._part.of_file:
            self._fields[text_of(self._part.name)] = text_of(bytes(self._part.data))

    def _all(self) -> None:
        self._whole = True
