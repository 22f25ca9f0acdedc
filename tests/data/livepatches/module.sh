#!/bin/sh
grep -q DEBUG /proc/fs/xfs/stat
