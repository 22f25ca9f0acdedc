# SPDX-License-Identifier: GPL-2.0-or-later
"""The same by an ordinary user: a kernel prepared and a livepatch built without any privilege."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import tempfile
import traceback
from collections.abc import Generator
from pathlib import Path

import pytest
from test_sandbox import PROBE, script_patch

from build_support import LIVEPATCHES, Builder
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.integration, pytest.mark.slow]

#: Nobody's: Debian gives out 1000 to 59999 to people, one after the other.
USER = 58631


@pytest.fixture
def place() -> Generator[Path]:
    """A directory of that user's."""
    if os.geteuid() != 0:
        pytest.skip("by an ordinary user all tests run so")
    directory = Path(tempfile.mkdtemp(prefix="elivepatch-user-", dir="/var/tmp"))
    os.chown(directory, USER, USER)
    yield directory
    shutil.rmtree(directory)


def test_an_ordinary_user_builds_the_same(builder: Builder, place: Path) -> None:
    cache = place / "cache"
    cache.mkdir()
    for name in ("packages", "roots"):
        (cache / name).symlink_to(builder.workshop.cache / name)
    shutil.copytree(builder.workshop.cache / "apt", cache / "apt")
    for path in (cache, *(cache / "apt").rglob("*"), cache / "apt"):
        os.chown(path, USER, USER)
    patch = (LIVEPATCHES / "string.patch").read_bytes()
    attack = script_patch(builder, PROBE, f"'[\"/etc/shadow\"]' '[\"{place}/written\"]' 9 {os.getpid()}", stop=True)
    expected = builder(patch).module

    def work() -> None:
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        try:
            own = Builder(Workshop(cache), builder.kernel, place / "builds")
            built = own(patch)
            (place / "module").write_bytes(built.module)
            said = "\n".join(finding.message for finding in own(attack).report.diagnosis)
            (place / "said").write_text(said)
        except BaseException:
            (place / "failure").write_text(traceback.format_exc())
            raise

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    child.join(400)
    assert not (place / "failure").exists(), (place / "failure").read_text()
    assert child.exitcode == 0
    assert (place / "module").read_bytes() == expected
    done, told = json.JSONDecoder().raw_decode((place / "said").read_text().partition("ATTACK")[2])[0]
    # in the user namespace that the layers are mounted in, the user is called root: so it may call itself
    assert [each for each in done if each != "root None"] == [], (done, told)
    assert told["user"] in {0, USER}
    assert told["capabilities"][:2] == ["0" * 16] * 2  # effective and permitted; no_new_privs keeps them so
    assert not (place / "written").exists()
