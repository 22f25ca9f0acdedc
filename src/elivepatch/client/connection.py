# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection to a build server: API v2 over HTTP, and its errors as the errors they are."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, TypeVar

import httpx2
from pydantic import TypeAdapter, ValidationError

from elivepatch.client.address import check_url
from elivepatch.client.event_stream import EventStream
from elivepatch.client.host import Clock
from elivepatch.client.http import HINT, Watch, open_client, unreachable
from elivepatch.client.inputs import Part
from elivepatch.errors import (
    DownloadFailedError,
    ElivepatchError,
    InvalidInputError,
    ModuleRejectedError,
    NotFoundError,
    ServerUnavailableError,
    UnavailableError,
    error_classes,
)
from elivepatch.progress import Event, Sink
from elivepatch.protocol import limits
from elivepatch.protocol.models import Answer, Build, BuildRequest, ModuleReport, Problem

_API = "/elivepatch/api/v2"
_ANSWER_BYTES = 16 * 1024 * 1024
#: How often in a row the server may be out of reach before the client gives up; with the waits between, a minute.
RETRIES = 8
_LONGEST_WAIT = 15.0
_DOWNLOADS = 3
_CHUNK_BYTES = 256 * 1024
#: How long an answer may take to arrive once it has begun: so many seconds, and its greatest size at so many bytes/s.
_BODY_SECONDS = 60.0
_SLOWEST = 64 * 1024
#: How long it may take until it has begun: so many times what may pass between two bytes, beside what is sent.
_BEGIN_FACTOR = 3.0
_BUILD_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")

_Model = TypeVar("_Model", bound=Answer)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


class Connection:
    """A connection to one server. No redirect is followed: a module comes from where it was asked for."""

    def __init__(
        self, url: str, clock: Clock, *, ca_certificate: Path | None = None, connect_timeout: float = 10
    ) -> None:
        self.url = check_url(url)
        self._clock = clock
        self._client = open_client(self.url, ca_certificate, connect_timeout)
        self._watch = Watch()
        #: Seconds that the server's clock is ahead of this host's, as its last answer says; None where none said.
        self.clock_ahead: float | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def submit(self, request: BuildRequest, parts: Sequence[Part]) -> str:
        """Ask for a build; gives its id. The server may know it already.

        Raises InvalidInputError, UnavailableError or whatever else the server answers.
        """
        files: list[tuple[str, tuple[str | None, bytes, str]]] = [
            ("request", (None, request.model_dump_json(exclude_none=True).encode(), "application/json")),
            *((part.part, (part.name, part.data, "application/octet-stream")) for part in parts),
        ]
        with self._stream("POST", "/builds", files=files, timeout=httpx2.Timeout(180, connect=10)) as response:
            body = self._body(response)
            location = response.headers.get("location", "").rstrip("/").rpartition("/")[2]
        try:
            found = Build.model_validate_json(body).id
        except ValidationError:
            found = location
        if not _BUILD_ID.fullmatch(found):
            raise ServerUnavailableError(f"{self.url} took the request but names no build.", hint=HINT)
        return found

    def has_image(self, sha256: str) -> bool:
        """Whether the server has the image with that digest. Raises UnavailableError."""
        try:
            with self._stream("GET", f"/images/{sha256}"):
                return True
        except NotFoundError:
            return False

    def send_image(
        self, archive: BinaryIO, sha256: str, size: int, sent: Callable[[float], None], *, timeout: float
    ) -> None:
        """Send the archive of a kernel's image, of ``size`` bytes; ``sent`` is told what fraction is away.

        ``timeout`` is seconds for the whole. Raises InvalidInputError where the server does not take it, and
        UnavailableError.
        """
        deadline = self._clock.now() + timeout

        def body() -> Generator[bytes]:
            archive.seek(0)
            while chunk := archive.read(_CHUNK_BYTES):
                if self._clock.now() > deadline:
                    raise UnavailableError(
                        f"The kernel's image could not be sent to {self.url} within {timeout:.0f} s.",
                        hint="Raise image_timeout, or do without with --no-image: the server then builds the kernel.",
                    )
                yield chunk
                sent(archive.tell() / size)

        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        # the answer comes when the server has unpacked it
        patience = httpx2.Timeout(60, connect=10, read=min(timeout, 600))
        for attempt in range(_DOWNLOADS):
            try:
                with self._stream("PUT", f"/images/{sha256}", headers=headers, content=body(), timeout=patience):
                    return
            except UnavailableError:
                if attempt + 1 == _DOWNLOADS or self._clock.now() > deadline:
                    raise
                self._clock.sleep(2.0 ** (attempt + 1))

    def build(self, build_id: str) -> Build:
        """The state of a build. Raises UnavailableError, also where the answer is about another build."""
        build = self.get(f"/builds/{build_id}", Build)
        if build.id != build_id:
            raise ServerUnavailableError(
                f"{self.url} was asked for the build {build_id} and tells of {build.id[:128]!r}.", hint=HINT
            )
        return build

    def get(self, path: str, model: type[_Model]) -> _Model:
        """What the server says at a path of the API. Raises UnavailableError, and whatever else the server answers."""
        with self._stream("GET", path) as response:
            body = self._body(response)
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            raise ServerUnavailableError(
                f"{self.url} answers in a way that is not understood: {error.errors()[0]['msg']}.",
                hint="Server and client should be of the same version.",
            ) from error

    def follow(self, build_id: str, sink: Sink, tell: Callable[[str], None], *, timeout: float) -> Build:
        """Pass on the events of a build until it has ended, whatever becomes of the line in between.

        ``timeout`` is seconds for the whole. Events that came before are asked for only once. Raises UnavailableError
        where the server stays away or the build takes longer.
        """
        deadline = self._clock.now() + timeout
        stream = EventStream()
        away = quiet = 0
        while True:
            heard = stream.last_id
            try:
                for event in self._events(build_id, stream):
                    if event:
                        sink(event)
                    if self._clock.now() > deadline:
                        break
            except UnavailableError as error:
                tell(f"the events broke off: {error.message}")
            quiet = 0 if stream.last_id != heard else quiet + 1
            stream = EventStream(stream.last_id)
            try:
                build = self.build(build_id)
            except UnavailableError as error:
                away += 1
                if away > RETRIES:
                    raise
                tell(f"{error.message} Trying again ({away} of {RETRIES}).")
            else:
                away = 0
                if build.status.final:
                    return build
            if self._clock.now() > deadline:
                raise UnavailableError(
                    f"The build {build_id} did not end within {timeout:.0f} s.",
                    hint="It goes on at the server: ask for the same again later, or raise build_timeout.",
                )
            self._clock.sleep(min(_LONGEST_WAIT, 0.25 * 2 ** min(max(away, quiet), 8)))

    def module(self, build_id: str, said: ModuleReport) -> bytes:
        """The module of a build, as the report describes it.

        Raises DownloadFailedError where it does not arrive whole, ModuleRejectedError where it is not that module.
        """
        if not 0 < said.size <= limits.MODULE_BYTES:
            raise ModuleRejectedError(
                f"The server speaks of a module of {said.size} bytes; the limit is {limits.MODULE_BYTES}.",
                hint="No livepatch is that large: look at the log of the server.",
            )
        reason = ""
        for attempt in range(_DOWNLOADS):
            if attempt:
                self._clock.sleep(2.0**attempt)
            try:
                data = self._download(build_id, said.size)
            except ServerUnavailableError as error:
                reason = error.message
                continue
            if len(data) < said.size:
                reason = f"{len(data)} of {said.size} bytes arrived"
                continue
            if len(data) > said.size or hashlib.sha256(data).hexdigest() != said.sha256:
                raise ModuleRejectedError(
                    f"What {self.url} sent is not the module {said.name} that its report describes (SHA-256 differs).",
                    hint="Do not load it. Ask again; if it stays so, somebody or something changes it on the way.",
                )
            return data
        raise DownloadFailedError(
            f"The module {said.name} did not arrive whole: {reason}.",
            hint="Ask for the same again: the server keeps it, nothing is built twice.",
        )

    # -- below

    def _download(self, build_id: str, size: int) -> bytes:
        with self._stream("GET", f"/builds/{build_id}/module") as response:
            return self._body(response, limit=size + 1, cut=True)

    def _events(self, build_id: str, stream: EventStream) -> Generator[Event | None]:
        """The events as they come; None says that the line is alive."""
        headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
        if stream.last_id:
            headers["Last-Event-ID"] = stream.last_id
        with self._stream("GET", f"/builds/{build_id}/events", headers=headers) as response:
            if response.status_code == 204:
                return  # it has ended, and nothing is left to tell
            if not response.headers.get("content-type", "").startswith("text/event-stream"):
                raise ServerUnavailableError(f"{self.url} gives no events of the build.", hint=HINT)
            for chunk in response.iter_raw():
                yield None
                for message in stream.feed(chunk):
                    try:
                        yield _EVENT.validate_json(message.data)
                    except ValidationError:
                        continue  # what it does not understand cannot hurt: the build itself is asked in the end

    def _stream(
        self,
        method: str,
        path: str,
        *,
        headers: dict[str, str] | None = None,
        files: list[tuple[str, tuple[str | None, bytes, str]]] | None = None,
        content: Iterable[bytes] | None = None,
        timeout: httpx2.Timeout | None = None,
    ) -> _Answer:
        request = self._client.build_request(
            method,
            self.url + _API + path,
            headers=headers,
            files=files,
            content=content,
            timeout=timeout or self._client.timeout,
        )
        return _Answer(self, request)

    def send(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request and give the response, its body still to be read, if it is a success."""
        request.extensions["trace"] = self._watch.trace
        patience = _BEGIN_FACTOR * (request.extensions["timeout"]["read"] or 0)
        with self._watch.within(patience + int(request.headers.get("content-length", "0")) / _SLOWEST):
            response = self._client.send(request, stream=True)
        self._look_at_clock(response.headers.get("date", ""))
        try:
            encoding = response.headers.get("content-encoding", "identity")
            if encoding.lower() != "identity":  # unpacked, it could be of any size
                raise ServerUnavailableError(
                    f"{self.url} answers in the encoding {encoding[:40]!r}, which was not asked for.",
                    hint="Where a proxy stands before the server, let it pass on answers as they are.",
                )
            if response.is_success:
                return response
            if response.has_redirect_location:
                raise ServerUnavailableError(
                    f"{self.url} points elsewhere: {response.headers['location'][:200]!r}.",
                    hint="Redirects are not followed. If you trust that address, name it with -u.",
                )
            raise _refusal(response, self.url, self._body(response, cut=True))
        except BaseException:
            response.close()
            raise

    def _look_at_clock(self, date: str) -> None:
        with contextlib.suppress(ValueError, TypeError, OverflowError):
            self.clock_ahead = email.utils.parsedate_to_datetime(date).timestamp() - time.time()

    def _body(self, response: httpx2.Response, *, limit: int = _ANSWER_BYTES, cut: bool = False) -> bytes:
        body = bytearray()
        deadline = self._clock.now() + _BODY_SECONDS + limit / _SLOWEST
        for chunk in response.iter_raw():
            body += chunk
            if self._clock.now() > deadline:
                raise ServerUnavailableError(
                    f"{self.url} sends its answer too slowly: {len(body)} bytes have come so far.", hint=HINT
                )
            if len(body) > limit:
                if cut:
                    break
                raise ServerUnavailableError(f"{self.url} answers with more than {limit} bytes.", hint=HINT)
        return bytes(body[:limit])


class _Answer:
    """A response as a context: what breaks while it is read becomes an error that names the server."""

    def __init__(self, connection: Connection, request: httpx2.Request) -> None:
        self._connection = connection
        self._request = request
        self._response: httpx2.Response | None = None

    def __enter__(self) -> httpx2.Response:
        try:
            self._response = self._connection.send(self._request)
        except httpx2.TransportError as error:
            raise unreachable(self._connection.url, error) from error
        return self._response

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._response is not None:
            self._response.close()
        if isinstance(error, httpx2.TransportError | httpx2.DecodingError):
            raise unreachable(self._connection.url, error) from error


def _refusal(response: httpx2.Response, url: str, body: bytes) -> ElivepatchError:
    """The error that a response carries (RFC 9457), or one that says that it carries none."""
    status = response.status_code
    try:
        problem = Problem.model_validate_json(body)
    except ValidationError:
        return ServerUnavailableError(
            f"{url} answers HTTP {status}, and not as an elivepatch server of API v2 does.", hint=HINT
        )
    known = {cls.code: cls for cls in reversed(error_classes()) if cls.__init__ is ElivepatchError.__init__}
    fallback = InvalidInputError if status < 500 else ServerUnavailableError
    cls = known.get(problem.code, fallback)
    return cls(problem.detail or problem.title, hint=problem.hint, diagnosis=problem.diagnosis)
