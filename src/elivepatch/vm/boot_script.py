# SPDX-License-Identifier: GPL-2.0-or-later
"""What runs in the guest of a boot test: /init, for the shell of busybox.

It says what it did in marker lines on the second serial port, ``@NONCE WORD…``; `verdict` reads them. The nonce is new
for every run and is removed from the guest's files before anything else runs, so neither the kernel nor a check script
can print such a line. It decides nothing: a step that fails is told, and what makes no sense after it is left out.

Each step is also put into the kernel's log, so that its warnings can be seen in their place.
"""

from __future__ import annotations

#: Seconds of the check script's run; a check looks at something, it does not work.
CHECK_TIMEOUT = 20
#: Seconds of the guest in which the livepatch must be gone after it was disabled, and those more for each function:
#: the kernel takes them out of the function tracer one by one, behind the transition.
REVERT_LIMIT = 30
REVERT_LIMIT_PER_FUNCTION = 0.5
#: Bytes of the check script's output that are kept of each run.
CHECK_OUTPUT = 4096

#: The line in the kernel log behind which everything is looked at.
BASELINE = "elivepatch boot test: begin"
END = "elivepatch boot test: end"

INIT = r"""#!/bin/sh
# /init of a boot test. Settings: nonce, name, transition_limit, revert_limit, check_limit (s), check_output (bytes)
. /settings
/bin/busybox rm /settings
/bin/busybox --install -s /bin
export PATH=/bin HOME=/tmp LANG=C
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /run
mkdir -p /sbin && ln -sf /bin/modprobe /sbin/modprobe
stty -F /dev/ttyS1 raw
exec </dev/null >/dev/ttyS1 2>&1

mark() { echo "@$nonce $*"; }
note() { echo "<5>elivepatch boot test: $*" >/dev/kmsg; }
centiseconds() { read -r up idle </proc/uptime; echo "${up%.*}${up#*.}"; }
# not with the shell's own read, which takes a byte at a time: the file ends after the first
taint() { mark taint "$1" "$(cat /proc/sys/kernel/tainted)"; }
finish() {
    note end
    mark end
    sync
    poweroff -f
    sleep 60
}

load_modules() {
    while read -r module; do
        insmod "/modules/$module.ko" >/tmp/out 2>&1
        mark "$1" "$module" $? "$(head -c 200 /tmp/out | tr '\n' ' ')"
    done </modules/order
}

unload_modules() {
    while read -r module; do
        rmmod "$module" >/tmp/out 2>&1
        mark module-unload "$module" $? "$(head -c 200 /tmp/out | tr '\n' ' ')"
    done </modules/reverse
}

check() {
    test -f /check || return
    note "check, $1"
    if test "$(head -c 2 /check)" = '#!'; then
        timeout -s KILL "$check_limit" /check >/tmp/check.out 2>&1
    else
        timeout -s KILL "$check_limit" sh /check >/tmp/check.out 2>&1
    fi
    status=$?
    head -c "$check_output" /tmp/check.out | sed "s/^/check ($1): /"
    echo
    mark check "$1" "$status"
}

klp="/sys/kernel/livepatch/$name"

load() {
    note "load"
    insmod /livepatch.ko >/tmp/out 2>&1
    status=$?
    mark load "$1" "$status" "$(head -c 200 /tmp/out | tr '\n' ' ')"
    test "$status" = 0 || return 1
    if ! test -d "$klp"; then
        mark not-a-livepatch "$1"
        return 1
    fi
    began=$(centiseconds)
    while test "$(cat "$klp/transition")" != 0; do
        if test $(($(centiseconds) - began)) -gt "${transition_limit}00"; then
            mark stuck "$1"
            stuck_tasks
            return 1
        fi
        usleep 20000
    done
    mark transition "$1" $((($(centiseconds) - began) * 10))
    mark enabled "$1" "$(cat "$klp/enabled")"
}

# who holds the transition up: at most eight tasks
stuck_tasks() {
    found=0
    for task in /proc/[0-9]*; do
        if test "$(cat "$task/patch_state" 2>/dev/null)" = 0 && test $found -lt 8; then
            found=$((found + 1))
            mark holds "${task#/proc/}" "$(cat "$task/comm")"
        fi
    done
}

look() {
    for object in "$klp"/*/; do
        object=${object%/}
        patched=unknown
        test -f "$object/patched" && patched=$(cat "$object/patched")
        mark object "$1" "${object##*/}" "$patched"
        for function in "$object"/*/; do
            function=${function%/}
            test -d "$function" && mark function "$1" "${object##*/}" "${function##*/}"
        done
    done
}

revert() {
    note "revert"
    began=$(centiseconds)
    echo 0 >"$klp/enabled"
    while test -d "$klp"; do
        if test $(($(centiseconds) - began)) -gt "${revert_limit}00"; then
            mark revert "$1" 1
            return 1
        fi
        usleep 20000
    done
    mark revert "$1" 0
}

unload() {
    note "unload"
    # the kernel lets go of the module a moment after the livepatch is gone from sysfs
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        rmmod "$name" >/tmp/out 2>&1
        status=$?
        test "$status" = 0 && break
        usleep 100000
    done
    mark unload "$1" "$status" "$(head -c 200 /tmp/out | tr '\n' ' ')"
    return "$status"
}

mark boot "$(uname -r)"
load_modules module
dmesg -n 8
note begin
taint before

check before
if ! load first; then
    test -d "$klp" && revert first
    taint load
    finish
fi
look first
taint load
check after
revert first || finish
check reverted
unload first || finish
taint unload

# the second round: the livepatch is there first and applies as its objects come
if test -s /modules/reverse; then
    note "second round"
    unload_modules
    load second || finish
    load_modules module-late
    look second
    check late
    revert second || finish
    unload second
    taint second
fi
finish
"""


def settings(*, nonce: str, name: str, transition_limit: int, revert_limit: int = REVERT_LIMIT) -> str:
    """The file that /init reads first. Every value is of letters, digits and ``_`` only, so that none needs quotes."""
    values = {
        "nonce": nonce,
        "name": name,
        "transition_limit": str(transition_limit),
        "revert_limit": str(revert_limit),
        "check_limit": str(CHECK_TIMEOUT),
        "check_output": str(CHECK_OUTPUT),
    }
    return "".join(f"{key}={value}\n" for key, value in values.items())
