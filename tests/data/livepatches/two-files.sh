#!/bin/sh
grep -q idle /proc/uptime && grep -q pid /proc/loadavg
