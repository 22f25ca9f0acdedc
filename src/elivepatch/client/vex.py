# SPDX-License-Identifier: GPL-2.0-or-later
"""What was found of a kernel's vulnerabilities as OpenVEX, so that scanners honour livepatches.

Format: https://github.com/openvex/spec, version 0.2.0.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from urllib.parse import quote

from elivepatch.client.cve_mode import CveOutcome
from elivepatch.kernel.running import RunningKernel
from elivepatch.protocol.cves import CveEntry
from elivepatch.version import installed_version

_CONTEXT = "https://openvex.dev/ns/v0.2.0"
_DEBIAN = re.compile(r"\bDebian (\S+) \(")


def open_vex(found: CveOutcome, kernel: RunningKernel) -> str:
    """The document, as JSON text. One product: the kernel, by the package URLs that scanners know it by."""
    products = [{"@id": name} for name in product_names(kernel)]
    closed = set(found.closed)
    statements = [{**_statement(entry, closed), "products": products} for entry in found.scan.cves]
    text = json.dumps(statements, sort_keys=True)
    digest = hashlib.sha256(f"{kernel.boot_id} {text}".encode()).hexdigest()
    document = {
        "@context": _CONTEXT,
        "@id": f"https://openvex.dev/docs/elivepatch/{digest}",
        "author": "elivepatch",
        "role": "client",
        "tooling": f"elivepatch {installed_version()}, CVE data of {found.scan.data_date}",
        "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "version": 1,
        "statements": statements,
    }
    return json.dumps(document, indent=2) + "\n"


def product_names(kernel: RunningKernel) -> list[str]:
    """The package URLs (https://github.com/package-url/purl-spec) of the running kernel; a ``+`` in them is ``%2B``."""
    release = quote(kernel.release, safe="")
    names = [f"pkg:generic/linux@{release}"]
    if match := _DEBIAN.search(kernel.version):
        names.insert(0, f"pkg:deb/debian/linux-image-{release}@{quote(match[1], safe=':')}?arch=amd64")
    return names


def _statement(entry: CveEntry, closed: set[str]) -> dict[str, object]:
    """What is said of one vulnerability. A livepatch in memory fixes it as a new kernel would."""
    said: dict[str, object] = {"vulnerability": {"name": entry.id}}
    if entry.id in closed or entry.state == "closed":
        return {**said, "status": "fixed", "status_notes": "fixed in the running kernel by a livepatch"}
    if entry.state == "vendor-fixed":
        return {**said, "status": "fixed", "status_notes": entry.why or ""}
    if entry.state == "undecided":
        return {**said, "status": "under_investigation", "status_notes": entry.why or ""}
    if entry.state == "not-built":
        return {
            **said,
            "status": "not_affected",
            "justification": "vulnerable_code_not_present",
            "impact_statement": entry.why or "",
        }
    action = f"Install a kernel of {entry.fix_version} or later." if entry.fix_version else "There is no fix yet."
    if entry.state == "not-loaded":  # whoever can have the module loaded has the fault
        action = f"Keep {', '.join(entry.objects)} from being loaded (modprobe.d(5): blacklist, install). {action}"
    return {**said, "status": "affected", "action_statement": action}
