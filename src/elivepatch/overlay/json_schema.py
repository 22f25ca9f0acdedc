# SPDX-License-Identifier: GPL-2.0-or-later
"""The JSON Schema of schema version 1: for editors, and for who makes descriptions by a program.

It says the form. What it cannot say (that ids are unique, references lead somewhere, files are there) only lint finds.
"""

from __future__ import annotations

import json
import re
from typing import Any

from elivepatch.overlay import schema

URL = "https://json-schema.org/draft/2020-12/schema"


def _text(description: str, pattern: re.Pattern[str] | None = None) -> dict[str, Any]:  # Any: JSON, here and below
    found: dict[str, Any] = {"type": "string", "description": description, "minLength": 1}
    if pattern is None:
        return found | {"maxLength": schema.TEXT_CHARACTERS}
    return found | {"pattern": f"^(?:{pattern.pattern})$"}


def _list(items: dict[str, Any], description: str) -> dict[str, Any]:
    several = {"type": "array", "items": items, "minItems": 1, "maxItems": schema.LIST_ITEMS, "uniqueItems": True}
    return {"description": description, "anyOf": [several, items]}


def _entry() -> dict[str, Any]:
    name = _text("id of a patch of this overlay", schema.ENTRY_ID)
    commit = {
        "type": "object",
        "description": "a commit whose change is the patch",
        "properties": {
            "repository": _text("one of 'repositories'", schema.ENTRY_ID),
            "id": _text("its full id", schema.OBJECT),
        },
        "required": list(schema.COMMIT_KEYS),
        "additionalProperties": False,
    }
    kernels = _text("a release, a version, a series (6.1.*), or bounds (>=6.1.100 <6.1.175)")
    properties: dict[str, Any] = {
        "id": _text("names the patch within the overlay", schema.ENTRY_ID),
        "title": _text("what it does, in a line"),
        "kernels": _list(kernels, "the kernels that it is for: any of these"),
        "distributions": _list(
            _text("ID or ID:VERSION_ID of os-release"), "the distributions that it is for: any of these, or all"
        ),
        "patch": _text("file below patches/", schema.PATH),
        "commit": commit,
        "cves": _list(_text("id of a CVE", schema.CVE), "the CVEs that it closes"),
        "requires": _list(name, "patches that must be applied before it"),
        "after": _list(name, "patches that go before it where both are applied"),
        "replaced-by": _text("the patch that takes its place", schema.ENTRY_ID),
        "licence": _text("SPDX expression"),
        "author": _text("who wrote it"),
        "tested-with": _list(_text("release of a kernel"), "what it was tested with"),
        "check": _text("script below patches/ for the boot test", schema.PATH),
    }
    return {
        "type": "object",
        "properties": properties,
        "required": ["id", "kernels"],
        "oneOf": [{"required": ["patch"]}, {"required": ["commit"]}],
        "additionalProperties": False,
    }


def json_schema() -> dict[str, Any]:
    """The schema as data."""
    url = _text("where it is", schema.REPOSITORY_URL)
    return {
        "$schema": URL,
        "title": "elivepatch.yml, schema version 1",
        "type": "object",
        "properties": {
            "schema": {"const": 1, "description": "version of the schema"},
            "title": _text("what the overlay is for, in a line"),
            "licence": _text("SPDX expression, for patches that say none"),
            "author": _text("for patches that say none"),
            "repositories": {
                "type": "object",
                "description": "repositories that commits are of: name to URL",
                "propertyNames": {"pattern": f"^{schema.ENTRY_ID.pattern}$"},
                "additionalProperties": url,
            },
            "patches": {"type": "array", "items": _entry(), "maxItems": schema.ENTRIES},
        },
        "required": ["schema", "patches"],
        "additionalProperties": False,
    }


def json_schema_text() -> str:
    """The schema as it is published: docs/overlay-schema.json."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"
