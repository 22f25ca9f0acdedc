# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elivepatch import process
from elivepatch.errors import ToolUnavailableError
from elivepatch.vm import machine

GUEST = machine.Machine(vmlinuz=Path("/k/vmlinuz"), initrd=Path("/k/initrd"), console=Path("/k/console"))


def words(guest: machine.Machine, accelerator: machine.Accelerator = "tcg") -> list[str]:
    return [str(word) for word in machine.arguments(guest, accelerator)]


def test_a_guest_gets_nothing_it_was_not_given() -> None:
    argv = words(GUEST)
    assert {"-nodefaults", "-no-user-config", "-no-reboot"} <= set(argv)
    sandbox = argv[argv.index("-sandbox") + 1]
    assert sandbox == "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
    assert not [word for word in argv if word.startswith(("-net", "-drive", "-nic", "virtio"))]


def test_a_panic_ends_the_guest() -> None:
    argv = words(replace(GUEST, command_line=("quiet",)))
    assert argv[argv.index("-append") + 1] == "console=ttyS0 panic=-1 quiet"


def test_software_emulation_shows_every_feature() -> None:
    argv = words(GUEST)
    assert argv[argv.index("-cpu") + 1] == "max"
    assert "host" in words(GUEST, "kvm")
    assert "tcg,thread=single" in argv  # see the reason in the code


@pytest.mark.parametrize(("asked", "given"), [(0, "1"), (1, "1"), (2, "2"), (64, "2")])
def test_two_cores_at_most(asked: int, given: str) -> None:
    argv = words(replace(GUEST, cores=asked))
    assert argv[argv.index("-smp") + 1] == given


def test_disks_are_never_changed_and_names_cannot_add_options() -> None:
    argv = words(replace(GUEST, disks=(Path("/d/a,readonly=off"),)))
    drive = argv[argv.index("-drive") + 1]
    assert drive == "file=/d/a,,readonly=off,format=raw,if=none,id=disk0,snapshot=on"


def test_a_guest_with_a_network_reaches_one_port() -> None:
    argv = words(replace(GUEST, server_port=8080, relay="relay 8080"))
    netdev = argv[argv.index("-netdev") + 1]
    assert netdev == "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:8080-cmd:relay 8080"
    assert argv[:4] == ["setpriv", "--no-new-privs", "--", "qemu-system-x86_64"]


def test_the_probe_starts_where_the_processor_does() -> None:
    firmware = machine._probe_firmware()  # pyright: ignore[reportPrivateUsage]
    assert len(firmware) == 64 * 1024
    assert firmware[-16:-11] == b"\xb0\x2a\xe6\xf4\xf4"


def test_without_qemu_the_hint_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "PATH", "/nonexistent")
    with pytest.raises(ToolUnavailableError, match="qemu-system-x86_64") as caught:
        machine.require_qemu()
    assert "--no-verify" in (caught.value.hint or "")
