# SPDX-License-Identifier: GPL-2.0-or-later
"""OpenPGP signatures of kernel.org, checked by gpgv against pinned keys.

A keyring may come from anywhere: only signatures of the pinned primary keys count. gpgv's exit status does not tell of
expired and revoked keys, so its status lines are read (doc/DETAILS of GnuPG, "Format of the --status-fd output").
"""

from __future__ import annotations

import base64
import binascii
import lzma
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from elivepatch.errors import InvalidSettingError, SourceRejectedError
from elivepatch.process import find_program, run

#: Signs the lists of checksums of kernel.org, by machine: it says that a mirror has what kernel.org has.
AUTOSIGNER = "B8868C80BA62A1FFFAF5FDA9632D3A06589DA6B1"
#: Sign the tarballs themselves: Greg Kroah-Hartman (stable), Linus Torvalds (mainline). https://www.kernel.org/signature.html
GREGKH = "647F28654894E3BD457199BE38DBBDC86092693E"
TORVALDS = "ABAF11C65A2970B130ABE3C479BE3E4300411886"
NAMES = {AUTOSIGNER: "kernel.org checksum autosigner", GREGKH: "Greg Kroah-Hartman", TORVALDS: "Linus Torvalds"}

KEYRING_HINT = (
    "Make it once: 'gpg --locate-keys autosigner@kernel.org gregkh@kernel.org torvalds@kernel.org', then "
    "'gpg --armor --export' of the three (docs/sources.md)."
)
_KEYRING_BYTES = 16 * 1024**2
_SIGNATURE_BYTES = 16 * 1024**2
_ARMOR = re.compile(
    rb"^-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)^-----END PGP PUBLIC KEY BLOCK-----",
    re.MULTILINE | re.DOTALL,
)


class UnverifiedError(SourceRejectedError):
    """No signature that counts was made over what was downloaded, and none that contradicts it."""


@dataclass
class _Signature:
    """What gpgv says of one signature: its keywords with their arguments."""

    said: dict[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    @property
    def primary(self) -> str:
        """The fingerprint of the primary key that made a valid signature, in capitals."""
        valid = self.said.get("VALIDSIG", ())
        return (valid[9] if len(valid) > 9 else valid[0] if valid else "").upper()

    def fault(self, signers: Sequence[str]) -> str | None:
        """Why it does not count, or None."""
        if "BADSIG" in self.said:
            return "the signature is not of these contents"
        if "REVKEYSIG" in self.said:
            return f"its key {self.primary} is revoked"
        if "EXPKEYSIG" in self.said:
            return f"its key {self.primary} has expired in the keyring; a newer copy of the key may tell a later date"
        if "EXPSIG" in self.said:
            return "the signature has expired"
        if (error := self.said.get("ERRSIG")) is not None:
            key = error[6] if len(error) > 6 and error[6] != "-" else error[0] if error else "unknown"
            return f"it is made by the key {key}, which is not in the keyring"
        if "GOODSIG" not in self.said or not self.primary:
            return "gpgv does not call it good"
        if self.primary not in signers:
            return f"it is made by the key {self.primary}, which is not one of those that may sign this"
        return None


def dearmored(data: bytes) -> bytes:
    """The keys of a keyring in binary form, as gpgv needs it: armored blocks (RFC 9580, 6.2), or binary already.

    Raises ValueError for what is neither. The checksum of a block is not looked at: damage is found by the signatures.
    """
    blocks = _ARMOR.findall(data)
    if not blocks:
        if data[:1] and data[0] & 0x80:  # the first octet of every packet has this bit, and no text has it
            return data
        raise ValueError("it holds no public key")
    keys = b""
    for block in blocks:
        head, _, body = block.replace(b"\r\n", b"\n").rpartition(b"\n\n")
        if head and not all(b": " in line for line in head.splitlines()):
            raise ValueError("an armored block has lines that do not belong there")
        lines = [line.strip() for line in body.lstrip(b"\n").splitlines() if not line.startswith(b"=")]
        try:
            keys += base64.b64decode(b"".join(lines), validate=True)
        except binascii.Error as error:
            raise ValueError(f"an armored block is damaged ({error})") from error
    return keys


def clear_signed_text(path: Path, what: str, keyring: Path, signers: Sequence[str]) -> str:
    """The text of a clear-signed file, without whatever stands around it in the file.

    Raises SourceRejectedError where it is not signed by one of ``signers`` (fingerprints of primary keys) alone, and
    InvalidSettingError for a keyring that cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="elivepatch-gpgv.") as name:
        text = Path(name) / "text"
        found = _gpgv(Path(name), keyring, ["--output", str(text), str(path)])
        if len(found) > 1:
            raise SourceRejectedError(f"{what} is rejected: it holds {len(found)} signatures.")
        _judge(found, what, signers)
        if not text.exists():
            raise SourceRejectedError(f"{what} is rejected: it is not a clear-signed text.")
        try:
            return text.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise SourceRejectedError(f"{what} is rejected: it is not a text ({error}).") from error


def check_detached(
    signature: Path, data: Iterable[bytes], what: str, keyring: Path, signers: Sequence[str], *, timeout: float = 1800.0
) -> str:
    """Check a detached signature over data that comes in pieces; gives the fingerprint of the primary key that made it.

    Raises UnverifiedError where no signature by one of ``signers`` is there (or its key is missing or has expired),
    SourceRejectedError where a signature is of something else or its key is revoked, and InvalidSettingError for a
    keyring that cannot be read.
    """
    if signature.stat().st_size > _SIGNATURE_BYTES:
        raise SourceRejectedError(f"{what} is rejected: its signature is too large.")
    with tempfile.TemporaryDirectory(prefix="elivepatch-gpgv.") as name:
        found = _gpgv(Path(name), keyring, [str(signature), "-"], data, timeout=timeout)
        return _judge(found, what, signers)


def unpacked(path: Path, *, piece: int = 1024**2) -> Iterator[bytes]:
    """The contents of an .xz file in pieces; ends early where the file is damaged, so that no signature fits."""
    try:
        with lzma.open(path) as stream:
            while data := stream.read(piece):
                yield data
    except (lzma.LZMAError, EOFError):
        return


def _judge(found: Sequence[_Signature], what: str, signers: Sequence[str]) -> str:
    faults = [(one, one.fault(signers)) for one in found]
    good = [one.primary for one, fault in faults if fault is None]
    wrong = any("BADSIG" in one.said for one in found)
    if good and not wrong:
        return good[0]
    reasons = "; ".join(dict.fromkeys(fault for _, fault in faults if fault)) or "it is not signed"
    names = ", ".join(f"{NAMES[signer]} ({signer})" if signer in NAMES else signer for signer in signers)
    contradicted = wrong or any("REVKEYSIG" in one.said for one in found)
    raise (SourceRejectedError if contradicted else UnverifiedError)(
        f"{what} is rejected: {reasons}. Expected is a signature by {names}.",
        hint="Nothing of it was used. Try another mirror. If a key is missing or has expired, renew the keyring: "
        + KEYRING_HINT,
    )


def _gpgv(
    scratch: Path, keyring: Path, words: Sequence[str], data: Iterable[bytes] | None = None, *, timeout: float = 60.0
) -> list[_Signature]:
    find_program("gpgv", hint="Install gpgv.")
    keys = scratch / "keys.gpg"
    keys.write_bytes(_keys(keyring))
    # a home of its own: no keys, options or trust of the user come in
    options = ["--homedir", str(scratch), "--status-fd", "1", "--keyring", str(keys)]
    # which gpgv calls a failure and which not is not relied on
    done = run(["gpgv", *options, *words], stdin=data, check=False, timeout=timeout)
    found: list[_Signature] = []
    for line in done.stdout.splitlines():
        mark, *rest = line.split(" ")
        if mark != "[GNUPG:]" or not rest:
            continue
        if rest[0] == "NEWSIG":
            found.append(_Signature())
        elif found:
            found[-1].said.setdefault(rest[0], rest[1:])
    return found


def _keys(keyring: Path) -> bytes:
    try:
        if keyring.stat().st_size > _KEYRING_BYTES:
            raise ValueError("it is too large")
        return dearmored(keyring.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidSettingError(
            f"The keyring {keyring} of kernel.org's keys cannot be used: {error}.", hint=KEYRING_HINT
        ) from error
