# SPDX-License-Identifier: GPL-2.0-or-later
"""Reading the body of a request for a build: a multipart form (RFC 7578) whose limits hold while it arrives.

Everything is kept in memory, at most as many bytes as the `Shape` says; the upload that breaks a limit is answered at
that byte, whatever its Content-Length said, and nothing of it is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from elivepatch.errors import (
    BadRequestError,
    BusyError,
    InputTooLargeError,
    InvalidInputError,
    NotOfferedError,
    UnsupportedMediaTypeError,
    UploadTimeoutError,
)
from elivepatch.job import InputFile, Job
from elivepatch.kernel import layout
from elivepatch.protocol import limits
from elivepatch.protocol.models import BuildRequest
from elivepatch.server.problems import model_error

#: Bytes of the JSON of a request.
REQUEST_JSON_BYTES = 64 * 1024
_HINT = "docs/api.md says how a build is asked for."


@dataclass(frozen=True)
class Kind:
    """A part that a request may have: bytes of one, and how many there may be."""

    size: int
    count: int


@dataclass(frozen=True)
class Shape:
    """What a form may be made of, by the names of its parts, and how many bytes it may have in all.

    ``in_archive`` are names of files that come in an archive of their own, once for all builds of a kernel.
    """

    kinds: Mapping[str, Kind]
    total: int
    in_archive: frozenset[str] = frozenset()


_SHAPE = Shape(
    {
        "request": Kind(REQUEST_JSON_BYTES, 1),
        "patch": Kind(limits.PATCH_BYTES, limits.PATCHES),
        "base_patch": Kind(limits.PATCH_BYTES, limits.PATCHES),
        "config": Kind(limits.CONFIG_BYTES, 1),
        "check": Kind(limits.CHECK_BYTES, 1),
        "symbols": Kind(layout.PACKED_LIMIT, 1),
    },
    limits.REQUEST_BYTES,
    frozenset({"vmlinux", "symvers"}),
)


@dataclass
class _Part:
    kind: Kind
    role: str
    name: str
    data: bytearray = field(default_factory=bytearray)


class _Form:
    """Takes the parts as the parser finds them; raises as soon as one is not as it should be."""

    def __init__(self, boundary: bytes, shape: Shape) -> None:
        self._shape = shape
        self.parts: dict[str, list[InputFile]] = {name: [] for name in shape.kinds}
        self.complete = False
        self._part: _Part | None = None
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._headers: dict[str, bytes] = {}
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._on_name,
                "on_header_value": self._on_value,
                "on_header_end": self._on_header,
                "on_headers_finished": self._on_headers,
                "on_part_data": self._on_data,
                "on_part_end": self._on_end,
                "on_end": self._on_form_end,
            },
        )

    def _begin(self) -> None:
        self._headers = {}  # the parser bounds how many there are and how long

    def _on_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._header_name.decode("latin-1").lower()] = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def _on_headers(self) -> None:
        disposition, options = parse_options_header(self._headers.get("content-disposition", b""))
        field_name = options.get(b"name", b"").decode("utf-8", "replace")
        if disposition != b"form-data" or not field_name:
            raise BadRequestError("A part of the request has no name.", hint=_HINT)
        if field_name in self._shape.in_archive:
            raise NotOfferedError(
                f"This server takes no part '{field_name}'.",
                hint="The image of a host's kernel is sent once, as an archive: PUT images/SHA256 (docs/api.md).",
            )
        kind = self._shape.kinds.get(field_name)
        if kind is None:
            raise InvalidInputError(
                f"The request has a part '{for_people(field_name, 'part')}', which is none of "
                f"{', '.join(self._shape.kinds)}.",
                hint=_HINT,
            )
        number = len(self.parts[field_name]) + 1
        if number > kind.count:
            if kind.count > 1:
                raise InputTooLargeError(
                    f"The request has more than {kind.count} parts '{field_name}'.", hint="Join some of them."
                )
            raise InvalidInputError(f"The request has more than one part '{field_name}'.", hint=_HINT)
        name = options.get(b"filename", b"").decode("utf-8", "replace")
        self._part = _Part(kind, field_name, for_people(name, f"{field_name}-{number}"))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part is None:
            raise BadRequestError("A part of the request has no headers.", hint=_HINT)
        if len(part.data) + end - start > part.kind.size:
            raise InputTooLargeError(
                f"The part '{part.role}' ({part.name}) has more than {part.kind.size} bytes.",
                hint="A livepatch is made from a small change; send only what it needs.",
            )
        part.data += data[start:end]

    def _on_end(self) -> None:
        if self._part is None:
            raise BadRequestError("A part of the request has no headers.", hint=_HINT)
        self.parts[self._part.role].append(InputFile(self._part.name, bytes(self._part.data)))
        self._part = None

    def _on_form_end(self) -> None:
        self.complete = True


def for_people(name: str, default: str) -> str:
    """A file's name as it is shown: one line, printable, short, without directories. It is never used as a path."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(char for char in last if char.isprintable())[:200] or default


async def read_job(request: Request, *, slots: asyncio.Semaphore, seconds: float) -> Job:
    """The build that a request asks for. Raises what `read_form` raises."""
    return _as_job(await read_form(request, _SHAPE, slots=slots, seconds=seconds))


async def read_form(
    request: Request, shape: Shape, *, slots: asyncio.Semaphore, seconds: float
) -> Mapping[str, Sequence[InputFile]]:
    """The parts of a form of that shape, by name; every name is there.

    ``slots`` bounds how many are read at once, ``seconds`` how long one may take, waiting included. Raises the
    InvalidInputErrors of the upload, and BusyError when no slot came free.
    """
    request.state.unread = True
    boundary = _check_head(request, shape)
    waiting = True
    try:
        async with asyncio.timeout(seconds), slots:
            waiting = False
            form = await _read(request, boundary, shape)
    except TimeoutError:
        if waiting:
            raise BusyError("Too many uploads are being read.") from None
        raise UploadTimeoutError(
            f"The request did not arrive within {seconds:.0f} s.", hint="Try again over a better connection."
        ) from None
    request.state.unread = False
    return form.parts


def _check_head(request: Request, shape: Shape) -> bytes:
    """The boundary of the form. Refuses what can be refused before the first byte of the body."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not boundary:
        raise UnsupportedMediaTypeError("A build is asked for with a form, 'multipart/form-data'.", hint=_HINT)
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > shape.total:
        raise _too_large(shape)
    return boundary


def _too_large(shape: Shape) -> InputTooLargeError:
    return InputTooLargeError(
        f"The request has more than {shape.total} bytes.",
        hint="A livepatch is made from a small change; send only the patches that it needs.",
    )


async def _read(request: Request, boundary: bytes, shape: Shape) -> _Form:
    total = 0
    try:
        form = _Form(boundary, shape)
        async for chunk in request.stream():
            total += len(chunk)
            if total > shape.total:
                raise _too_large(shape)
            if chunk:
                form.parser.write(chunk)
        form.parser.finalize()
    except FormParserError as error:
        raise BadRequestError(f"The request is not a multipart form: {error}.", hint=_HINT) from error
    if not form.complete:
        raise BadRequestError("The request ends in the middle of a part.", hint="Send it again.")
    return form


def _as_job(parts: Mapping[str, Sequence[InputFile]]) -> Job:
    if not parts["request"]:
        raise InvalidInputError("The request has no part 'request'.", hint=_HINT)
    try:
        request = BuildRequest.model_validate_json(parts["request"][0].data)
    except ValidationError as error:
        raise model_error(error, "The part 'request'") from error
    if not parts["patch"] and request.cves is None:
        raise InvalidInputError("The request has no patch.", hint="Send at least one part 'patch'.")
    config, check, symbols = (parts[name] for name in ("config", "check", "symbols"))
    return Job(
        request=request,
        patches=tuple(parts["patch"]),
        base_patches=tuple(parts["base_patch"]),
        config=config[0].data if config else None,
        check=check[0].data if check else None,
        symbols=symbols[0].data if symbols else None,
    )
