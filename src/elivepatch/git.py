# SPDX-License-Identifier: GPL-2.0-or-later
"""The one way in which git is called: on a bare repository of our own, with nothing of a user's or of a repository's.

No hooks, filters, pagers, submodules, large file storage or replaced objects; and only the transports that are named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from elivepatch.process import Completed, Guard, run

#: The id of an object: SHA-1 or SHA-256.
OBJECT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", re.ASCII)
#: Overrides what a tree's .gitattributes says: files come out as they are stored.
ATTRIBUTES = "* -text -eol -ident -filter -working-tree-encoding -export-ignore -export-subst\n"
#: Words for every fetch.
FETCH_OPTIONS = ("--quiet", "--no-auto-maintenance", "--no-write-fetch-head", "--no-recurse-submodules")
_OPTIONS = {
    "core.hooksPath": "/dev/null",
    "core.fsmonitor": "false",
    "core.symlinks": "true",
    "core.autocrlf": "false",
    "gc.auto": "0",
    "maintenance.auto": "false",
    "fetch.recurseSubmodules": "false",
    "submodule.recurse": "false",
    "transfer.bundleURI": "false",
    "protocol.version": "2",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "120",
}
#: These need no repository, or make it.
_WITHOUT_REPOSITORY = {"ls-remote", "init"}
_SSH = "ssh -oBatchMode=yes -oStrictHostKeyChecking=yes -oConnectTimeout=20"
_AUTHENTICATION = re.compile(
    r"could not read Username|Authentication failed|Permission denied|terminal prompts disabled|Host key verification "
    r"failed|returned error: 40[13]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Git:
    """A bare repository. ``transports`` are those that may be used; ``settings`` are more than the usual ones.

    ``system`` says whether the settings of the machine count (/etc/gitconfig: proxies and credentials of whoever runs
    it); those of a user never do.
    """

    directory: Path
    transports: Sequence[str] = ()
    settings: Mapping[str, str] | None = None
    system: bool = True

    def __call__(
        self,
        *words: str,
        check: bool = True,
        guard: Guard | None = None,
        timeout: float = 300.0,
        environment: Mapping[str, str] | None = None,
        place: Sequence[str] = (),
        stdin: bytes | Iterable[bytes] | None = None,
        stdout: Path | None = None,
        memory_bytes: int | None = None,
    ) -> Completed:
        """Run git with these words; ``place`` are options before them. For the rest see `process.run`."""
        settings = _OPTIONS | dict(self.settings or {})
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        env = {
            "GIT_CONFIG_GLOBAL": "/dev/null",
            **({} if self.system else {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_SYSTEM": "/dev/null"}),
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_SSH_COMMAND": _SSH,
            "GIT_ALLOW_PROTOCOL": ":".join(self.transports),
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_NO_REPLACE_OBJECTS": "1",
            **(environment or {}),
        }
        where = [] if words[0] in _WITHOUT_REPOSITORY else [f"--git-dir={self.directory}"]
        return run(
            ["git", *options, *where, *place, *words],
            cwd=Path("/"),
            env=env,
            check=check,
            guard=guard,
            timeout=timeout,
            stdin=stdin,
            stdout=stdout,
            memory_bytes=memory_bytes,
        )

    def init(self) -> None:
        """Make the repository, without anything of a template."""
        self("init", "--quiet", "--bare", "--template=", str(self.directory))
        (self.directory / "info").mkdir(exist_ok=True)
        (self.directory / "info/attributes").write_text(ATTRIBUTES)

    def remove_leftovers(self) -> None:
        """Remove what a git that was killed left behind. Nobody else may be writing to the repository."""
        for pattern in ("**/*.lock", "objects/pack/tmp_*"):
            for left in self.directory.glob(pattern):
                left.unlink(missing_ok=True)


def asks_who_we_are(said: str) -> bool:
    """Whether git says that the other side wants a password or a key."""
    return _AUTHENTICATION.search(said) is not None


def is_forbidden_transport(said: str) -> bool:
    """Whether git says that it may not use the transport of an address."""
    return "transport" in said and "not allowed" in said


def said_last(done: Completed, lines: int = 8) -> str:
    """The end of what git said about its failure."""
    return "\n".join(done.stderr.replace("\r", "\n").splitlines()[-lines:])
