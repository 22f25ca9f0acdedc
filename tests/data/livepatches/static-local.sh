#!/bin/sh
head -n 1 /proc/interrupts | grep -q cpu0 && grep -q '^ *[0-9]*: ' /proc/interrupts
