#!/bin/sh
grep -q livepatched /proc/version
