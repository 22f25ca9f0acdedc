# SPDX-License-Identifier: GPL-2.0-or-later
"""What the manual pages say beside what the commands say of themselves. Paragraphs; examples are (what, command)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """The words of one page. ``files`` and ``exits`` are (name, meaning)."""

    summary: str
    description: tuple[str, ...]
    settings: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    exits: tuple[tuple[str, str], ...]
    examples: tuple[tuple[str, str], ...]
    see_also: tuple[str, ...]


CLIENT = Text(
    summary="change the running kernel by a source patch, without a reboot",
    description=(
        "elivepatch sends a patch and the facts of the running kernel to a build server, gets back a livepatch module "
        "that was proven against exactly that kernel and tried in a virtual machine, checks it, loads it, and "
        "remembers what it did.",
        "Without a command it makes a livepatch of the patches that -p names and loads it. The patches of livepatches "
        "that are in force go into the new one, which replaces them. A kernel other than the running one is built for, "
        "and its module is fetched, but it is never loaded.",
        "What changes the kernel needs root; asking and fetching do not. With --dry-run nothing is sent and nothing "
        "is changed.",
    ),
    settings=(
        "Settings come from /etc/elivepatch/client.toml, then from the environment, then from the command line: the "
        "later counts. In the environment a setting is called ELIVEPATCH_ and its name in capitals. -c names another "
        "file; that can also be one of the first version, with a section [Defaults].",
    ),
    files=(
        ("/etc/elivepatch/client.toml", "The settings. Nobody but root may be able to write to it."),
        ("/var/lib/elivepatch-client/journal", "What was asked for and done, a file for each request."),
        ("/var/lib/elivepatch-client/modules", "The modules, by release."),
        ("/var/lib/elivepatch-client/patches", "The patches of modules that were received."),
        ("/etc/portage/patches", "On a Gentoo host, the patches that its kernel was built with."),
    ),
    exits=(
        ("0", "Done; also when the kernel holds this very module already."),
        ("1", "A bug, of the client or of the server."),
        ("2", "Wrong usage, or an input or setting that is not what it should be."),
        ("3", "Refused: the patch cannot be a livepatch of this kernel. The diagnosis says why."),
        ("4", "It does not fit the kernel, or was not loaded, or was undone."),
        ("5", "The boot test failed."),
        ("6", "The server, the kernel or a program is not available."),
        ("7", "Of status and repair: somebody should look. Of boot: what was in force is guarded, or not readable."),
        ("8", "Of status and repair: a livepatch is in transition."),
        ("130", "Interrupted. A load under way was undone; a build goes on at the server."),
        ("141", "Who read standard output went away; what was done stays done."),
    ),
    examples=(
        ("See what would be done:", "elivepatch -p fix.patch -u https://build.example --dry-run"),
        ("Make a livepatch and load it:", "elivepatch -p fix.patch -u https://build.example"),
        ("See what is loaded:", "elivepatch status"),
        ("Go back to the original code:", "elivepatch revert elivepatch_0a1b2c3d4e5f"),
    ),
    see_also=("elivepatch-server(8)", "patch(1)", "kmod(8)", "dmesg(1)"),
)

SERVER = Text(
    summary="build, prove and try livepatch modules for the kernels that hosts run",
    description=(
        "elivepatch-server takes requests for livepatches over HTTP and makes them: it finds the kernel's source, "
        "configuration and image, compiles only what the patch changes, proves that the original of each patched "
        "function is byte for byte what the kernel holds, links the module, and tries it in a virtual machine.",
        "Without a command it serves, with the flags that it always had. It listens on the loopback address unless it "
        "is told otherwise; there are no accounts, so let only the hosts that need it through.",
        "Clients of the first version are answered too when the setting v1 is on.",
    ),
    settings=(
        "Settings come from /etc/elivepatch/server.toml, then from the environment, then from the command line: the "
        "later counts. In the environment a setting is called ELIVEPATCH_ and its name in capitals. serve -f FILE or "
        "ELIVEPATCH_SETTINGS names another file.",
    ),
    files=(
        ("/etc/elivepatch/server.toml", "The settings."),
        ("/var/lib/elivepatch", "Database, builds and modules, when it runs as root."),
        ("/var/cache/elivepatch", "Downloads, build roots and prepared kernels, when it runs as root."),
    ),
    exits=(
        ("0", "Done; a server was told to end."),
        ("1", "A bug, or the machine ran out of something."),
        ("2", "Wrong usage, or an input or setting that is not what it should be."),
        ("3", "Refused: the patch cannot be a livepatch of this kernel."),
        ("4", "It does not fit the kernel."),
        ("5", "The boot test failed."),
        ("6", "A kernel, a source, an address or a tool is not available."),
    ),
    examples=(
        ("Serve on the loopback address:", "elivepatch-server"),
        (
            "Serve clients of both versions to a network:",
            "elivepatch-server -H 10.0.0.5 -C cert.pem -K key.pem serve --v1",
        ),
        (
            "One build without a server:",
            "elivepatch-server build --kernel 6.12.118+deb13-amd64 --patch fix.patch -o fix.ko",
        ),
        ("Free the disk of what was used least recently:", "elivepatch-server gc"),
    ),
    see_also=("elivepatch(8)", "bwrap(1)", "mmdebstrap(1)", "qemu-system-x86_64(1)"),
)
