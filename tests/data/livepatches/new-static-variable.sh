#!/bin/sh
test "$(cat /proc/loadavg | wc -w)" = 6 && test "$(cut -d" " -f6 /proc/loadavg)" -lt "$(cut -d" " -f6 /proc/loadavg)"
