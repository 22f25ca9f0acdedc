# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking in the image of a host's kernel: the body of ``PUT images/SHA256``, an archive as `kernel.archive` has it.

It goes to a file as it arrives, bounded in size and time, and is unpacked only when its digest is the one of the
address.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from pathlib import Path

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from elivepatch.build.host_images import HostImages
from elivepatch.errors import BusyError, InputTooLargeError, InvalidInputError, UploadTimeoutError
from elivepatch.kernel.archive_reader import Limits


async def take_image(
    request: Request, sha256: str, images: HostImages, incoming: Path, *, slots: asyncio.Semaphore, seconds: float
) -> None:
    """Read an archive and keep it under its digest. ``incoming`` is a directory for what arrives.

    Raises InvalidInputError, InputTooLargeError, UploadTimeoutError, BusyError.
    """
    request.state.unread = True
    limit = Limits().packed
    length = request.headers.get("content-length", "0")
    if length.isascii() and length.isdigit() and int(length) > limit:
        raise _too_large(limit)
    incoming.mkdir(parents=True, exist_ok=True)
    waiting = True
    with tempfile.TemporaryDirectory(prefix="image-", dir=incoming) as scratch:
        archive = Path(scratch) / "archive"
        try:
            async with asyncio.timeout(seconds), slots:
                waiting = False
                found = await _receive(request, archive, limit)
        except TimeoutError:
            if waiting:
                raise BusyError("Too many uploads are being read.") from None
            raise UploadTimeoutError(
                f"The image did not arrive within {seconds:.0f} s.", hint="Try again over a better connection."
            ) from None
        request.state.unread = False
        if found != sha256:
            raise InvalidInputError(
                f"The image that arrived has the digest {found}, not {sha256}.", hint="Send it again, as it was packed."
            )
        await run_in_threadpool(images.add, archive, sha256)


async def _receive(request: Request, archive: Path, limit: int) -> str:
    digest, total = hashlib.sha256(), 0
    with archive.open("wb") as stream:
        async for chunk in request.stream():
            total += len(chunk)
            if total > limit:
                raise _too_large(limit)
            digest.update(chunk)
            await run_in_threadpool(stream.write, chunk)
    return digest.hexdigest()


def _too_large(limit: int) -> InputTooLargeError:
    return InputTooLargeError(
        f"The image has more than {limit} bytes.", hint="Send it without the modules that the host does not use."
    )
