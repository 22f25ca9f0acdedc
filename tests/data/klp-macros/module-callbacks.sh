#!/bin/sh
grep -q DEBUG /proc/fs/xfs/stat && test "$(cat /proc/sys/fs/xfs/error_level)" = 5
