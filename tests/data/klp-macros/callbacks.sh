#!/bin/sh
test "$(cat /proc/sys/fs/pipe-max-size)" = 2097152
