#!/bin/sh
# the last field counts the mounts that were shown to this reader
test "$(tail -n 1 /proc/mounts | cut -d " " -f 6)" = "$(wc -l < /proc/mounts)"
