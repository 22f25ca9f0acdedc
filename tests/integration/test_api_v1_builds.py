# SPDX-License-Identifier: GPL-2.0-or-later
"""A classic client, a real server and a real kernel: what its requests give, with the boot test and all."""

from __future__ import annotations

import re
import uuid
from collections.abc import Generator

import demo_host
import httpx2
import pytest

from build_support import LIVEPATCHES
from classic_client import ClassicClient
from elivepatch.build.prepared import PreparedKernel
from elivepatch.kernel.module_file import read_module
from elivepatch.workshop import Workshop

pytestmark = pytest.mark.integration

STRING = (LIVEPATCHES / "string.patch").read_bytes()
NO_MODULE = b'{"message":"These are not the             patches you are looking for"}\n'


@pytest.fixture(scope="module")
def server(
    workshop: Workshop, kernel: PreparedKernel, tmp_path_factory: pytest.TempPathFactory
) -> Generator[demo_host.Server]:
    del kernel  # prepared, so that no build has to
    with demo_host.server(workshop, tmp_path_factory.mktemp("server"), "--v1") as running:
        yield running


@pytest.fixture
def client(server: demo_host.Server) -> ClassicClient:
    return ClassicClient(server.port, str(uuid.uuid4()))


@pytest.fixture(scope="module")
def config(kernel: PreparedKernel) -> bytes:
    """What lies in /boot on a host with this kernel, and is given with -k."""
    return (kernel.path / "image/config").read_bytes()


@pytest.fixture(scope="module")
def version(config: bytes) -> str:
    """What is typed by hand after -a: three numbers."""
    found = re.search(rb"^# Linux/x86 (\d+\.\d+\.\d+) Kernel Configuration$", config, re.MULTILINE)
    assert found
    return found[1].decode()


def test_a_classic_client_gets_a_module_for_the_kernel_of_its_configuration(
    server: demo_host.Server, client: ClassicClient, kernel: PreparedKernel, config: bytes, version: str
) -> None:
    answer = client.post(version, STRING, config, timeout=600)
    assert answer.status == 201, answer.body
    assert answer.body == f'{{"get_config": {{"KernelVersion": null, "UUID": "{client.uuid}"}}}}\n'.encode()
    fetched = client.fetch(version)
    assert fetched.status == 200
    module = read_module(fetched.body)
    assert module.vermagic is not None
    assert module.vermagic.split()[0] == kernel.release
    assert module.name != "elivepatch_main"  # no two livepatches of one name
    build = httpx2.get(f"{server.url}/elivepatch/api/v2/builds?limit=1").json()["builds"][0]
    report = httpx2.get(f"{server.url}/elivepatch/api/v2/builds/{build['id']}").json()["report"]
    assert (report["kernel"]["release"], report["proof"]["level"]) == (kernel.release, "exact")
    assert report["verification"]["reverted"]


def test_a_patch_that_does_not_apply_gives_no_module_and_a_reason(
    client: ClassicClient, config: bytes, version: str
) -> None:
    answer = client.post(version, STRING.replace(b"VmallocUsed", b"VmallocNever"), config, timeout=300)
    assert (answer.status, answer.json()["code"]) == (422, "does-not-apply")
    assert answer.json()["diagnosis"][0]["file"] == "fs/proc/meminfo.c"
    assert client.fetch(version).body == NO_MODULE


def test_a_configuration_that_is_not_the_kernels_is_refused(
    server: demo_host.Server, client: ClassicClient, kernel: PreparedKernel, config: bytes, version: str
) -> None:
    wrong = config.replace(b"\nCONFIG_PROC_FS=y", b"\n# CONFIG_PROC_FS is not set")
    answer = client.post(kernel.release, STRING, wrong, timeout=300)
    assert (answer.status, answer.json()["code"]) == (409, "configuration-mismatch")
    # a version alone is not taken for the published kernel, whose configuration is another
    answer = ClassicClient(server.port, str(uuid.uuid4())).post(version, STRING, wrong, timeout=300)
    assert (answer.status, answer.body) == (403, b'{"message":"gentoo-sources not available"}\n')


def test_a_kernel_of_a_source_that_this_server_does_not_use(client: ClassicClient, config: bytes) -> None:
    answer = client.post("5.1.6", STRING, config, timeout=300)
    assert (answer.status, answer.body) == (403, b'{"message":"gentoo-sources not available"}\n')
