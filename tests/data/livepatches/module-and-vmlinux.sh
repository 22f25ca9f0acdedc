#!/bin/sh
grep -q DEBUG /proc/fs/xfs/stat && grep -q VMALLOCCHUNK /proc/meminfo
