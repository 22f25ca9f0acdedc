#!/bin/sh
grep -q VMALLOCCHUNK /proc/meminfo
