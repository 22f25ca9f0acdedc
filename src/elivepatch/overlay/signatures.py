# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a commit or a tag is signed by one of the keys that were pinned. git, gpg and ssh-keygen decide.

Nothing of a user takes part: gpg gets a home of its own that holds the pinned keys and no others, so a good signature
is one of theirs; ssh-keygen gets the file of allowed signers. Where one of the two is not pinned, its program is one
that always fails. What git's exit status does not tell (expired and revoked keys) the status lines of gpg do
(doc/DETAILS of GnuPG, "Format of the --status-fd output").
"""

from __future__ import annotations

import calendar
import hashlib
import re
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from elivepatch.errors import InvalidSettingError, UnavailableError
from elivepatch.git import Git
from elivepatch.process import Completed, ProgramError, find_program, run

_KEY_BYTES = 4 * 1024**2
_SECONDS = 60.0
_MEMORY = 1024**3
_FATAL = ("BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG")
_STATUS = re.compile(r"^\[GNUPG:\] (\w+)(?: (.*))?$", re.MULTILINE)
#: Options of an allowed signer: YYYYMMDD[HHMM[SS]][Z], local time without the Z (ssh-keygen(1), ALLOWED SIGNERS).
_VALID = re.compile(r'valid-(after|before)="?(\d{8}(?:\d{4}(?:\d{2})?)?)(Z?)', re.ASCII | re.IGNORECASE)
_SSH_GOOD = re.compile(r'^Good "git" signature for (\S.*?) with (\S+) key (\S+)$', re.MULTILINE)


class SignatureRejectedError(UnavailableError):
    """No signature by one of the pinned keys was made over it."""

    code = "signature-rejected"
    http_status = 502
    default_hint = (
        "Nothing of it was used, what was there before stays. If the keys of the overlay have changed, renew the file "
        "of keys; otherwise tell whoever runs it."
    )


@dataclass(frozen=True)
class PinnedKeys:
    """The keys that may sign: a file of OpenPGP keys, or one of allowed ssh signers, or both."""

    openpgp: Path | None = None
    ssh: Path | None = None

    def __bool__(self) -> bool:
        return self.openpgp is not None or self.ssh is not None

    def digest(self) -> str | None:
        """Tells one set of keys from another; None where none are pinned. Raises InvalidSettingError."""
        files = [path for path in (self.openpgp, self.ssh) if path is not None]
        if not files:
            return None
        return hashlib.sha256(b"".join(hashlib.sha256(_read(path)).digest() for path in files)).hexdigest()


def require_signed(git: Git, oid: str, *, tag: bool, keys: PinnedKeys, what: str) -> str:
    """Check the signature of a commit, or of a tag; gives who made it, for people.

    ``what`` it is goes into messages. Raises SignatureRejectedError, and InvalidSettingError for keys that cannot be
    read.
    """
    with tempfile.TemporaryDirectory(prefix="elivepatch-keys.") as name:
        home = Path(name)
        gpg = _gpg(home, keys.openpgp)
        signers = "/dev/null" if keys.ssh is None else str(_signers(keys.ssh, home / "signers"))
        settings = {
            # gpg 2.4 says nothing of trust where all pinned keys are trusted; `_judged` wants a good signature by one
            "gpg.minTrustLevel": "fully" if keys.openpgp is None else "undefined",
            "gpg.program": gpg,
            "gpg.openpgp.program": gpg,
            "gpg.x509.program": "/bin/false",
            "gpg.ssh.program": "/bin/false" if keys.ssh is None else str(find_program("ssh-keygen", hint=_SSH_HINT)),
            "gpg.ssh.allowedSignersFile": signers,
        }
        checked = Git(git.directory, settings=settings, system=False)
        words = ("verify-tag" if tag else "verify-commit", "--raw", oid)
        environment = {"GNUPGHOME": name, "HOME": name}
        try:
            done = checked(*words, check=False, timeout=_SECONDS, environment=environment, memory_bytes=_MEMORY)
        except ProgramError as error:
            raise SignatureRejectedError(f"The signature of {what} cannot be checked: {error.reason}.") from error
    return _judged(done, what)


_GPG_HINT = "Install gpg (Debian: apt install gpg)."
_SSH_HINT = "Install ssh-keygen (Debian: apt install openssh-client)."


def _gpg(home: Path, keys: Path | None) -> str:
    """The program that checks OpenPGP signatures, its home filled with the keys."""
    if keys is None:
        return "/bin/false"
    program = find_program("gpg", hint=_GPG_HINT)
    home.chmod(0o700)
    # the keys are those that were pinned: whom they belong to has been settled
    (home / "gpg.conf").write_text("trust-model always\nno-auto-key-retrieve\nno-auto-key-import\nno-autostart\n")
    copied = _copied(keys, home / "pinned")
    words = [program, "--homedir", home, "--batch", "--quiet", "--no-autostart", "--import", copied]
    done = run(words, check=False, timeout=_SECONDS, env={"GNUPGHOME": str(home), "HOME": str(home)})
    if done.returncode != 0:
        said = " ".join(done.stderr.split())[:300]
        raise InvalidSettingError(
            f"The keys {keys} cannot be used: {said}", hint="Make the file with 'gpg --export --armor ID…'."
        )
    return str(program)


def _copied(path: Path, target: Path) -> Path:
    """A copy of a file of keys: what is checked cannot change meanwhile."""
    target.write_bytes(_read(path))
    return target


def _signers(path: Path, target: Path) -> Path:
    """A copy of a file of allowed signers, with those that are valid today.

    git has ssh-keygen look at the time that the commit says it was made, which whoever holds an expired key can set.
    """
    lines = _read(path).decode(errors="surrogateescape").splitlines(keepends=True)
    kept = "".join(line for line in lines if _is_valid(line, time.time()))
    target.write_bytes(kept.encode(errors="surrogateescape"))
    return target


def _is_valid(line: str, now: float) -> bool:
    """Whether an allowed signer is valid at a time; what cannot be understood ssh-keygen refuses."""
    for which, text, utc in _VALID.findall(line):
        try:
            moment = time.strptime(text.ljust(14, "0"), "%Y%m%d%H%M%S")
            limit = calendar.timegm(moment) if utc else time.mktime(moment)
        except (ValueError, OverflowError):
            continue
        if (now < limit) if which.lower() == "after" else (now >= limit):
            return False
    return True


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            data = stream.read(_KEY_BYTES + 1)
    except OSError as error:
        raise InvalidSettingError(
            f"The keys {path} cannot be read: {error.strerror}.", hint="Name another file, or mend its permissions."
        ) from error
    if not data.strip() or len(data) > _KEY_BYTES:
        raise InvalidSettingError(f"The keys {path} are empty or too large.", hint="Name a file with the keys.")
    return data


def _judged(done: Completed, what: str) -> str:
    said: dict[str, str] = {}
    for match in _STATUS.finditer(done.stderr):
        said.setdefault(match[1], match[2] or "")
    fault = next((keyword for keyword in _FATAL if keyword in said), None)
    if done.returncode == 0 and fault is None:
        if "GOODSIG" in said and "VALIDSIG" in said:
            return f"OpenPGP key {said['VALIDSIG'].split()[-1]}"
        if ssh := _SSH_GOOD.search(done.stderr):
            return f"{ssh[1]}, {ssh[2]} key {ssh[3]}"
    reason = _REASONS.get(fault or "")
    if reason is None:
        reason = _other_reason(done.stderr)
    raise SignatureRejectedError(f"{what} is refused: {reason}.")


_REASONS = {
    "BADSIG": "its signature is of something else",
    "ERRSIG": "its signature is by a key that is not one of the pinned ones",
    "EXPSIG": "its signature has expired",
    "EXPKEYSIG": "its signature is by a key that has expired",
    "REVKEYSIG": "its signature is by a key that was revoked",
}


def _other_reason(said: str) -> str:
    if "No principal matched" in said or 'Good "git" signature with' in said:
        return "its signature is by a key that is not one of the allowed signers, or not valid today"
    if said.strip():
        last = said.strip().splitlines()[-1]
        return f"its signature does not count ({''.join(c if c.isprintable() else '?' for c in last)[:200]})"
    return "it is not signed, or not by a key of the kind that is pinned"
