# SPDX-License-Identifier: GPL-2.0-or-later
"""What the Debian packages are made of, as far as no package has to be made for it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import packages
import pytest
from debian_copyright import copyright_file, files_of

from elivepatch.errors import InternalError

PACKAGING = packages.PROJECT / "packaging"
#: What podman's manual gives to the user of --userns=auto: it ends where the ids end.
AUTO = "containers:2147483647:2147483648"


def ids(place: Path, *taken: str, user: int = 0, awk: str = "mawk") -> str:
    """The ids that the server's package takes, where some are taken already."""
    (place / "etc").mkdir(parents=True)
    (place / "bin").mkdir()
    (place / "bin/awk").symlink_to(shutil.which(awk) or pytest.fail(f"There is no {awk}."))
    for name, text in (("subuid", "\n".join(taken)), ("subgid", ""), ("passwd", f"u:x:{user}:0::/:"), ("group", "")):
        (place / "etc" / name).write_text(text + "\n")
    text = (PACKAGING / "debian/elivepatch-server.postinst").read_text()
    (function,) = re.findall(r"^free_ids\(\) \{\n.*?^\}\n", text, re.MULTILINE | re.DOTALL)
    env = {"DPKG_ROOT": str(place), "PATH": f"{place / 'bin'}:/usr/bin:/bin"}
    script = f"{function}\nfree_ids\n"
    return subprocess.run(["sh", "-euc", script], env=env, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("taken", "user", "expected"),
    [
        ((), 0, "10000000-10065535"),
        (("root:1000000:1000000000",), 0, "1001000000-1001065535"),
        ((AUTO,), 0, "10000000-10065535"),
        (("b:10065530:65536", "a:9999999:65536"), 0, "10131066-10196601"),
        ((AUTO, "x:10000000:2137483647"), 0, "100000-165535"),
        ((), 10_000_007, "10000008-10065543"),
        (("all:0:4294967295",), 0, ""),
    ],
)
def test_the_subordinate_ids_of_the_server_are_nobody_elses(
    tmp_path: Path, taken: tuple[str, ...], user: int, expected: str
) -> None:
    assert ids(tmp_path, *taken, user=user) == expected


def distribution(site: Path, name: str, licence: str | None, metadata: str = "License-Expression: MIT") -> None:
    record = site / f"{name}-1.0.dist-info"
    (record / "licenses").mkdir(parents=True)
    (site / name).mkdir()
    (record / "METADATA").write_text(f"Name: {name}\n{metadata}\n")
    (record / "RECORD").write_text(f"{name}/__init__.py,,\n{name}.py,,\n../../bin/{name},,\n{record.name}/METADATA,,\n")
    if licence is not None:
        (record / "licenses/LICENSE.txt").write_text(licence)


def test_the_copyright_file_has_the_terms_of_what_is_brought(tmp_path: Path) -> None:
    distribution(tmp_path, "one", "Copyright (c) 2020, Ann\n\nPermission is granted.\n  The copyright notice stays.\n")
    apache = "Apache License\n TERMS AND CONDITIONS FOR USE\nCopyright [yyyy] [name]\n"
    distribution(tmp_path, "two", apache, "Author: Bob\nClassifier: License :: OSI Approved")
    distribution(tmp_path, "elivepatch", None)
    text = copyright_file("Files: *\n", tmp_path, "usr/lib", files_of(tmp_path))
    assert text.startswith("Files: *\n\nFiles: usr/lib/one/*\n usr/lib/one-1.0.dist-info/*\nCopyright: 2020, Ann\n")
    assert (
        "\nLicense: one\n Its metadata say: MIT.\n .\n Copyright (c) 2020, Ann\n .\n Permission is granted.\n" in text
    )
    assert "\nCopyright: Bob\nLicense: two\n Its metadata say: License :: OSI Approved.\n .\n On Debian" in text
    assert "/usr/share/common-licenses/Apache-2.0" in text
    distribution(tmp_path, "bare", None)
    with pytest.raises(InternalError, match="'bare' has no text"):
        copyright_file("", tmp_path, "usr/lib", files_of(tmp_path))


def test_the_date_of_a_package_is_that_of_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    commit = packages.source_date()
    assert commit == packages.source_date() > 1_700_000_000
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    assert packages.source_date() == 1_000_000_000


def test_what_the_installer_leaves_is_not_packed(tmp_path: Path) -> None:
    """It differs from one time to the next, and is nobody's."""
    distribution(tmp_path, "one", "Copyright 2020 Ann")
    record = tmp_path / "one-1.0.dist-info"
    (tmp_path / ".lock").touch()
    (record / "uv_cache.json").write_text("{}")
    packages.without_surplus(tmp_path, ())
    assert not (tmp_path / ".lock").exists()
    assert {path.name for path in record.iterdir()} == {"METADATA", "licenses"}


def test_every_unit_names_its_manual_page() -> None:
    units = [*PACKAGING.glob("systemd/*"), *PACKAGING.glob("server/*")]
    assert len(units) == 5
    for unit in units:
        assert re.search(r"^Documentation=man:elivepatch(-server)?\(8\)$", unit.read_text(), re.MULTILINE), unit


def test_a_package_that_is_removed_ends_the_builds_that_it_started() -> None:
    script = (PACKAGING / "debian/elivepatch-server.prerm").read_text()
    # debhelper stops the service, whose KillMode leaves builds running; what is left of it is ended after that
    assert script.index("#DEBHELPER#") < script.index("systemctl kill --signal=KILL elivepatch-server.service")
