# SPDX-License-Identifier: GPL-2.0-or-later
"""The units under the init systems that they are for, each as the first process of a host."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from restarting_host import RestartingHost, kept_host

from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.release import Release
from elivepatch.progress import Progress
from elivepatch.workshop import Workshop

pytestmark = [pytest.mark.guest, pytest.mark.slow]

PACKAGING = Path(__file__).parents[2] / "packaging"

SYSTEMD = """
cd /root
ln -sf /usr/local/bin/elivepatch usr/bin/elivepatch
echo 0123456789abcdef0123456789abcdef >etc/machine-id
cp run/guest/files/elivepatch*.service run/guest/files/elivepatch*.timer etc/systemd/system/
cat >etc/systemd/system/trial.service <<'UNIT'
[Unit]
After=elivepatch.service elivepatch-shutdown.service elivepatch-alive.timer
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/sh /run/guest/second
ExecStopPost=/usr/bin/systemctl --no-block poweroff
UNIT
mkdir -p etc/systemd/system/multi-user.target.wants etc/systemd/system/timers.target.wants
for unit in elivepatch.service elivepatch-shutdown.service trial.service; do
    ln -s "/etc/systemd/system/$unit" etc/systemd/system/multi-user.target.wants/
done
ln -s /etc/systemd/system/elivepatch-alive.timer etc/systemd/system/timers.target.wants/
ln -s /dev/null etc/systemd/system/serial-getty@ttyS0.service
"""

OPENRC = """
cd /root
ln -sf /usr/local/bin/elivepatch usr/bin/elivepatch
cp run/guest/files/elivepatch.initd etc/init.d/elivepatch
cat >etc/init.d/trial <<'UNIT'
#!/sbin/openrc-run
depend() { after elivepatch; }
start() {
	start-stop-daemon --start --background --exec /bin/sh -- -c "sh /run/guest/second; openrc-shutdown -p now"
}
UNIT
chmod 755 etc/init.d/trial etc/init.d/elivepatch
ln -s /etc/init.d/elivepatch /etc/init.d/trial etc/runlevels/default/
"""


@pytest.fixture
def systemd_host(
    workshop: Workshop,
    kernel: PreparedKernel,
    release: Release,
    progress: Progress,
    trial_files: dict[str, bytes],
    tmp_path: Path,
) -> Generator[RestartingHost]:
    units = {path.name: path.read_bytes() for path in (PACKAGING / "systemd").iterdir()}
    with kept_host(workshop, kernel, release, progress, "systemd-sysv") as host:
        yield RestartingHost(
            host.image,
            host.kernel,
            host.busybox,
            tmp_path / "host",
            workshop.cache / "guests",
            trial_files | units,
            init="/lib/systemd/systemd",
            prepare=SYSTEMD,
        )


@pytest.fixture
def openrc_host(
    workshop: Workshop,
    kernel: PreparedKernel,
    release: Release,
    progress: Progress,
    trial_files: dict[str, bytes],
    tmp_path: Path,
) -> Generator[RestartingHost]:
    script = {"elivepatch.initd": (PACKAGING / "openrc/elivepatch").read_bytes()}
    with kept_host(workshop, kernel, release, progress, "openrc") as host:
        yield RestartingHost(
            host.image,
            host.kernel,
            host.busybox,
            tmp_path / "host",
            workshop.cache / "guests",
            trial_files | script,
            init="/sbin/openrc-init",
            prepare=OPENRC,
        )


LOAD = 'mark load; elivepatch load lp_good.ko --report lp_good.json; echo "exit $?"\n'


def test_under_systemd_an_orderly_restart_brings_the_livepatch_back(systemd_host: RestartingHost) -> None:
    first = systemd_host.run(
        f"""
mark units; systemctl is-active elivepatch.service elivepatch-shutdown.service elivepatch-alive.timer
systemd-analyze verify --man=no /etc/systemd/system/elivepatch*.service /etc/systemd/system/elivepatch-alive.timer 2>&1
{LOAD}
mark alive; systemctl start elivepatch-alive.service; echo "exit $?"
mark stopped; systemctl restart elivepatch-shutdown.service; grep -l '"stopped"' /var/lib/elivepatch-client/journal/*
"""
    )
    told = first.sections
    print(first.output)
    assert told["units"].split()[:3] == ["active"] * 3
    assert "elivepatch" not in told["units"].partition("active\nactive\nactive")[2], told["units"]
    assert "lp_good is loaded" in told["load"]
    assert "exit 0" in told["alive"]
    assert "journal" not in told["stopped"]  # the host does not go down
    second = systemd_host.run("mark back; held; cat /proc/cmdline; systemctl status --no-pager elivepatch.service")
    print(second.output)
    assert "\nlivepatched\n" in second.sections["back"]


#: In place of the client: it fails once at boot, as the client does where a task stays in a patched function.
ONCE = """
cat >usr/local/bin/once <<'PROGRAM'
#!/bin/sh
[ "$1" != boot ] || test -e /run/failed || { touch /run/failed; exit 4; }
exec /usr/bin/elivepatch "$@"
PROGRAM
chmod 755 usr/local/bin/once
"""
AWAIT = """mark back
for second in $(seq 60); do held | grep -q lp_good && break; sleep 1; done; held; cat /proc/cmdline
test -e /run/failed && echo "it had failed"
"""


def test_under_systemd_a_load_that_failed_at_boot_is_tried_again(systemd_host: RestartingHost) -> None:
    assert "lp_good is loaded" in systemd_host.run(LOAD).sections["load"]
    systemd_host.prepare += f"""{ONCE}
mkdir etc/systemd/system/elivepatch.service.d
cat >etc/systemd/system/elivepatch.service.d/once.conf <<'UNIT'
[Service]
ExecStart=
ExecStart=/usr/local/bin/once boot
RestartSec=3
UNIT
"""
    told = systemd_host.run(f"{AWAIT}systemctl show -p NRestarts elivepatch.service").sections["back"]
    print(told)
    assert "it had failed" in told
    assert "NRestarts=1" in told
    assert "\nlivepatched\n" in told


def test_under_openrc_a_load_that_failed_at_boot_is_tried_again(openrc_host: RestartingHost) -> None:
    assert "lp_good is loaded" in openrc_host.run(LOAD).sections["load"]
    openrc_host.prepare += f"""{ONCE}
printf '%s\\n' ELIVEPATCH_PROGRAM=/usr/local/bin/once ELIVEPATCH_INTERVAL=3 >etc/conf.d/elivepatch
"""
    told = openrc_host.run(AWAIT).sections["back"]
    print(told)
    assert "it had failed" in told
    assert "\nlivepatched\n" in told


def test_under_openrc_an_orderly_restart_brings_the_livepatch_back(openrc_host: RestartingHost) -> None:
    first = openrc_host.run(
        f"""
mark units; rc-service elivepatch status; echo "exit $?"; cat /run/elivepatch-alive.pid
{LOAD}
mark restarted; rc-service elivepatch restart; echo "exit $?"; grep -l stopped /var/lib/elivepatch-client/journal/*
"""
    )
    print(first.output)
    assert "exit 0" in first.sections["units"]
    assert "lp_good is loaded" in first.sections["load"]
    assert "exit 0" in first.sections["restarted"]
    second = openrc_host.run('mark back; held; cat /proc/cmdline; rc-service elivepatch status; echo "exit $?"')
    print(second.output)
    assert "\nlivepatched\n" in second.sections["back"]
