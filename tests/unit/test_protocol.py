# SPDX-License-Identifier: GPL-2.0-or-later
"""What client and server of different versions make of each other."""

import pytest
from pydantic import ValidationError

from elivepatch.protocol.models import BuildRequest, BuildStatus, Report

LATER = {
    "status": "done",
    "key": "k",
    "invented_later": 1,
    "proof": {"level": "exact", "invented_later": 1},
    "diagnosis": [{"rule": "r", "message": "m", "invented_later": 1}],
}


def test_a_client_takes_no_offence_at_what_a_newer_server_adds() -> None:
    report = Report.model_validate(LATER)
    assert report.status is BuildStatus.DONE
    assert report.proof is not None
    assert report.diagnosis[0].rule == "r"
    assert "invented_later" not in report.dump_json()


def test_a_server_takes_nothing_silently() -> None:
    with pytest.raises(ValidationError, match="invented_later"):
        BuildRequest.model_validate({"kernel": "6.12.1", "invented_later": 1})


@pytest.mark.parametrize("kernel", ["", "--help", "6.12\n", "a b", "../x", "x" * 301, "$(id)"])
def test_what_is_no_name_of_a_kernel(kernel: str) -> None:
    with pytest.raises(ValidationError):
        BuildRequest(kernel=kernel)
