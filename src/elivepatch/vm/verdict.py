# SPDX-License-Identifier: GPL-2.0-or-later
"""What a boot test says about a livepatch, decided from what the guest wrote and from nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from elivepatch.errors import Diagnosis
from elivepatch.protocol.models import Verification
from elivepatch.vm import boot_script

#: Characters of the kernel log that go into the report.
LOG_KEPT = 32 * 1024
_EXCERPT_LINES = 12

#: Taint bits that loading a livepatch sets by itself: out of tree, unsigned, livepatch
#: (Documentation/admin-guide/tainted-kernels.rst).
_LIVEPATCH_TAINT = 1 << 12 | 1 << 13 | 1 << 15
#: Bits that a warning and an oops set; the log says more about them than the bit does.
_TOLD_BY_LOG = 1 << 9 | 1 << 7
_TAINT_LETTERS = "PFSRMBUDAWCIOELKXTNJ"

#: What a kernel says when something is wrong, whatever the level of the message.
_TROUBLE = re.compile(
    r"\bWARNING: |\bBUG: |\bkernel BUG at |\bOops\b|\bCall Trace:|\bKernel panic\b|Unpatched return thunk"
    r"|\bgeneral protection fault\b|\bunable to handle\b|\binvalid opcode\b|\b[Mm]issing ENDBR\b"
    r"|\brcu: INFO: .*\bstall|\bself-detected stall\b|\bINFO: task .* blocked for more than\b"
    r"|\blivepatch: (?!module verification).*\bfailed\b|\bUBSAN: |\bINFO: possible |\bsuspicious RCU usage\b",
)

#: ENODEV and ENXIO, as a module's init returns them where the machine has nothing that the module is for.
_NO_DEVICE = "No such device"

#: What a kernel says too when its machine does not let it run; and what follows such a message.
_STARVED = re.compile(
    r"\brcu: INFO: |\bstall\b|\bsoft lockup\b|\bworkqueue lockup\b|\bblocked for more than\b|Call Trace:"
)


@dataclass(frozen=True)
class Expectation:
    """What the guest was asked to show.

    ``objects`` are the klp objects the livepatch must apply to; ``functions`` are entries as in sysfs,
    ``OBJECT/FUNCTION`` or ``OBJECT/FUNCTION,SYMPOS``. ``only_callbacks`` says that it has callbacks, and replaces no
    function. ``checked`` says that there is a check script, and ``check_crlf``
    that lines of it end in CR LF, which is no shell's end of a line. ``transition_limit`` and
    ``revert_limit`` are seconds. ``not_run`` are the objects whose module is a copy without its init (see `stub`).
    """

    release: str
    name: str
    objects: tuple[str, ...]
    functions: tuple[str, ...] = ()
    only_callbacks: bool = False
    checked: bool = False
    check_crlf: bool = False
    transition_limit: int = 30
    revert_limit: int = boot_script.REVERT_LIMIT
    not_run: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ended:
    """What is left of a guest: both of its serial ports, and how it ended (``limit`` is its time limit in seconds)."""

    console: str
    control: str
    nonce: str
    timed_out: bool = False
    limit: float = 0.0
    accelerator: str | None = None


@dataclass(frozen=True)
class _Marks:
    """The marker lines of one run, in order, as words."""

    lines: tuple[tuple[str, ...], ...]

    def find(self, *words: str) -> Iterator[tuple[str, ...]]:
        """What stands behind these words, for each line that begins with them."""
        for line in self.lines:
            if line[: len(words)] == words:
                yield line[len(words) :]

    def first(self, *words: str) -> tuple[str, ...] | None:
        """What stands behind these words in the first such line."""
        return next(self.find(*words), None)

    def status(self, *words: str) -> int | None:
        """The exit status told by a line, or None for a step that was not reached."""
        rest = self.first(*words)
        return int(rest[0]) if rest and rest[0].isdigit() else None


@dataclass(frozen=True)
class Verdict:
    """The outcome of a boot test; it is passed when nothing was found.

    ``starved`` says that all that was found are stalls, as a guest has them too that got no time to run.
    ``deviceless`` are modules of the kernel that could not be loaded for want of their device.
    """

    verification: Verification
    diagnosis: tuple[Diagnosis, ...] = field(default=())
    starved: bool = False
    deviceless: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the livepatch may be shipped."""
        return not self.diagnosis


def parse_marks(control: str, nonce: str) -> _Marks:
    """The marker lines in the output of the guest; whatever does not carry the nonce is not one."""
    marks = re.findall(rf"@{re.escape(nonce)} ([^\r\n]*)", control)
    return _Marks(tuple(tuple(mark.split()) for mark in marks))


def judge(expected: Expectation, ended: Ended) -> Verdict:
    """Decide whether the livepatch passed, and say everything that speaks against it."""
    marks = parse_marks(ended.control, ended.nonce)
    findings = [
        *_boot(expected, ended, marks),
        *_load(expected, marks),
        *_checks(expected, ended, marks),
        *_removal(expected, marks),
        *_kernel_log(ended),
        *_taint(marks),
        *_end(ended, marks),
    ]
    if not findings and marks.first("end") is None:
        findings = [_failed("boot-failed", "The guest ended before its boot test did.", _excerpt(ended.console))]
    only_log = bool(findings) and all(finding.rule == "kernel-warning" for finding in findings)
    complaints = [line for line in _relevant(ended.console).splitlines() if _TROUBLE.search(line)]
    return Verdict(
        _verification(expected, ended, marks),
        tuple(_without_repeats(findings)),
        deviceless=_deviceless(marks),
        starved=only_log and "Call Trace:" not in complaints[0] and all(_STARVED.search(line) for line in complaints),
    )


def _verification(expected: Expectation, ended: Ended, marks: _Marks) -> Verification:
    def succeeded(*words: str) -> bool | None:
        status = marks.status(*words)
        return None if status is None else status == 0

    return Verification(
        booted=marks.first("boot") is not None,
        loaded=succeeded("load", "first"),
        transition_ms=_transition_ms(expected.name, ended.console) or marks.status("transition", "first"),
        check_before=succeeded("check", "before"),
        check_after=succeeded("check", "after"),
        reverted=succeeded("revert", "first"),
        check_reverted=succeeded("check", "reverted"),
        unloaded=succeeded("unload", "first"),
        accelerator=ended.accelerator,
        not_run=expected.not_run,
        log=_relevant(ended.console)[-LOG_KEPT:] or None,
    )


def _deviceless(marks: _Marks) -> tuple[str, ...]:
    """The kernel's modules that found nothing in the guest that they are for, and went again."""
    return tuple(
        name for name, status, *message in marks.find("module") if status != "0" and _NO_DEVICE in " ".join(message)
    )


def _transition_ms(name: str, console: str) -> int | None:
    """How long the first transition took by the kernel's own clock.

    The guest's shell sees less of it: the load itself returns late in the transition.
    """
    stamp = rf"^\[ *(\d+\.\d+)\] livepatch: '{re.escape(name)}': "
    began = re.search(stamp + "starting patching transition", console, re.MULTILINE)
    ended = re.search(stamp + "patching complete", console, re.MULTILINE)
    if began is None or ended is None:
        return None
    return round((float(ended[1]) - float(began[1])) * 1000)


_IN_THE_LOG = "The log of the guest, which the report has, says what the kernel told of it."


def _failed(rule: str, message: str, seen: str = "", *, hint: str | None = None, where: str | None = None) -> Diagnosis:
    text = f"{message}\n{seen}".rstrip()
    return Diagnosis(rule=rule, message=text, hint=hint or _IN_THE_LOG, function=where, doc=f"docs/errors.md#{rule}")


def _without_repeats(findings: list[Diagnosis]) -> Iterator[Diagnosis]:
    seen: set[tuple[str, str | None]] = set()
    for finding in findings:
        if (finding.rule, finding.function) not in seen:
            seen.add((finding.rule, finding.function))
            yield finding


def _boot(expected: Expectation, ended: Ended, marks: _Marks) -> Iterator[Diagnosis]:
    booted = marks.first("boot")
    if booted is None and not ended.timed_out:
        yield _failed(
            "boot-failed",
            "The kernel did not get as far as the boot test.",
            _excerpt(ended.console),
            hint="The livepatch was not loaded yet: the kernel or the guest is at fault. See the log of the guest.",
        )
    elif booted is not None and booted != (expected.release,):
        yield _failed("boot-failed", f"The guest runs {' '.join(booted)} instead of {expected.release}.")
    for name, status, *message in marks.find("module"):
        if status != "0":
            yield _failed(
                "boot-failed",
                f"The kernel's own module {name} could not be loaded in the guest: {' '.join(message)}",
                hint="It may need hardware that the guest does not have. Build without the boot test (--no-verify).",
            )


def _load(expected: Expectation, marks: _Marks) -> Iterator[Diagnosis]:
    hint = "The log of the guest holds the kernel's reason."
    for turn in ("first", "second"):
        status = marks.status("load", turn)
        if status is None:
            continue
        if status != 0:
            told = " ".join((marks.first("load", turn) or ())[1:])
            yield _failed("load-failed", f"The kernel refused to load the module: {told}", hint=hint)
        elif marks.first("not-a-livepatch", turn) is not None:
            yield _failed(
                "load-failed", f"The module was loaded, but there is no livepatch '{expected.name}'.", hint=hint
            )
        elif marks.first("stuck", turn) is not None:
            holders = ", ".join(f"{' '.join(rest[1:])} ({rest[0]})" for rest in marks.find("holds") if rest)
            yield _failed(
                "transition-stuck",
                f"The transition did not end within {expected.transition_limit} s. Held up by: {holders or 'unknown'}.",
                hint="A task never leaves a patched function. Patch the functions that it calls instead.",
            )
        elif marks.first("transition", turn) is not None:
            yield from _applied(expected, marks, turn)


def _applied(expected: Expectation, marks: _Marks, turn: str) -> Iterator[Diagnosis]:
    if marks.first("enabled", turn) != ("1",):
        yield _failed("load-failed", f"The livepatch '{expected.name}' is not enabled after its transition.")
    late = " when it was loaded after the livepatch" if turn == "second" else ""
    for object_name in expected.objects:
        # kernels before 6.1 have no attribute "patched"; there the entry must do
        if marks.first("object", turn, object_name) not in {("1",), ("unknown",)}:
            yield _failed("load-failed", f"The livepatch did not apply to {object_name}{late}.", where=object_name)
    entries = {"/".join(rest) for rest in marks.find("function", turn) if len(rest) == 2}
    known = entries | {entry.rpartition(",")[0] for entry in entries}
    for function in expected.functions:
        if function not in known:
            yield _failed("load-failed", f"The kernel does not list {function} as patched{late}.", where=function)
    for object_name in expected.objects:
        if not (expected.only_callbacks or any(entry.startswith(f"{object_name}/") for entry in entries)):
            yield _failed("load-failed", f"The livepatch patches no function of {object_name}.", where=object_name)


def _checks(expected: Expectation, ended: Ended, marks: _Marks) -> Iterator[Diagnosis]:
    if not expected.checked:
        return
    wanted = (
        ("before", False, "check-before-succeeded", "The check script succeeds without the livepatch."),
        ("after", True, "check-after-failed", "The check script fails with the livepatch loaded."),
        ("reverted", False, "check-reverted-succeeded", "The check script still succeeds after the revert."),
        ("late", True, "check-after-failed", "The check script fails where the module is loaded after the livepatch."),
    )
    for moment, success, rule, message in wanted:
        status = marks.status("check", moment)
        if status is None or (status == 0) == success:
            continue
        hint = "A check must fail before the load, succeed after it, and fail again after the revert."
        if expected.check_crlf:
            hint = "The script's lines end in CR LF, which the shell does not take for an end of line: make it LF."
        elif status in {126, 127}:
            hint = (
                "The guest has the programs of busybox only (sh, no bash, no python); one that the script needs is not "
                f"there. {hint}"
            )
        elif status == 137:
            hint = f"It was ended after {boot_script.CHECK_TIMEOUT} s. {hint}"
        yield _failed(rule, f"{message} Its exit status is {status}.", _check_output(ended.control, moment), hint=hint)


def _check_output(control: str, moment: str) -> str:
    prefix = f"check ({moment}): "
    lines = [line[len(prefix) :] for line in control.splitlines() if line.startswith(prefix)]
    return "\n".join(lines[-_EXCERPT_LINES:])


def _removal(expected: Expectation, marks: _Marks) -> Iterator[Diagnosis]:
    stuck = any(True for _ in marks.find("stuck"))
    for turn in ("first", "second"):
        if marks.status("revert", turn) not in {None, 0} and not stuck:
            yield _failed(
                "revert-failed",
                f"The livepatch was not gone {expected.revert_limit} s after it was disabled.",
                hint="A task never leaves a function of the livepatch, or the module's own hooks do not end.",
            )
        if marks.status("unload", turn) not in {None, 0}:
            told = " ".join((marks.first("unload", turn) or ())[1:])
            yield _failed("unload-failed", f"The module could not be unloaded after the revert: {told}")
    unloaded = {rest[0] for rest in marks.find("module-unload") if rest[1:2] == ("0",)}
    for name, status, *message in marks.find("module-late"):
        if status != "0" and name in unloaded:
            yield _failed(
                "load-failed",
                f"With the livepatch loaded, the module {name} cannot be loaded: {' '.join(message)}",
                where=name,
                hint="The livepatch cannot be applied to the module when it comes; the log of the guest says why.",
            )


def _relevant(console: str) -> str:
    """The kernel log from the beginning of the test on; all of it where the test was not reached."""
    text = console.replace("\r", "")
    at = text.find(boot_script.BASELINE)
    return text if at < 0 else text[text.rfind("\n", 0, at) + 1 :]


def _excerpt(console: str, at: int | None = None) -> str:
    lines = console.replace("\r", "").splitlines()
    return "\n".join(lines[at : at + _EXCERPT_LINES] if at is not None else lines[-_EXCERPT_LINES:])


def _kernel_log(ended: Ended) -> Iterator[Diagnosis]:
    if boot_script.BASELINE not in ended.console:
        return
    relevant = _relevant(ended.console)
    for number, line in enumerate(relevant.splitlines()):
        if _TROUBLE.search(line):
            yield _failed(
                "kernel-warning",
                "The kernel complained while the livepatch was tried.",
                _excerpt(relevant, number),
                hint="The log of the guest holds the whole message and its call trace.",
            )
            return


def _taint(marks: _Marks) -> Iterator[Diagnosis]:
    before = marks.status("taint", "before")
    if before is None:
        return
    new = 0
    for rest in marks.find("taint"):
        if len(rest) == 2 and rest[1].isdigit():
            new |= int(rest[1])
    new &= ~(before | _LIVEPATCH_TAINT | _TOLD_BY_LOG)
    if new:
        bits = ", ".join(
            f"{bit} ({_TAINT_LETTERS[bit] if bit < len(_TAINT_LETTERS) else 'unknown'})"
            for bit in range(new.bit_length())
            if new >> bit & 1
        )
        yield _failed(
            "new-taint",
            f"The kernel is tainted in a way that a livepatch does not explain: bits {bits}.",
            hint="See Documentation/admin-guide/tainted-kernels.rst of the kernel for what the bits say.",
        )


def _end(ended: Ended, marks: _Marks) -> Iterator[Diagnosis]:
    if ended.timed_out:
        reached = marks.lines[-1][0] if marks.lines and marks.lines[-1] else "nothing"
        yield _failed(
            "boot-timeout",
            f"The guest did not end within {ended.limit:.0f} s; the last it told was: {reached}.",
            _excerpt(ended.console),
            hint="See the log of the guest. A machine under load may need a longer time limit.",
        )
    elif marks.first("end") is not None and boot_script.END not in ended.console:
        # without the kernel's last words its silence would prove nothing
        yield _failed("boot-failed", "The guest's kernel log is not complete.", _excerpt(ended.console))
