#!/bin/sh
# the right type_show() of all those that vmlinux has, and the right print_cpu() called
grep -q EDGE /sys/kernel/irq/*/type || exit 1
for other in /sys/class/tty/ttyS0/type /sys/class/net/lo/type /sys/bus/event_source/devices/software/type \
	/sys/firmware/memmap/0/type /sys/kernel/reboot/type /sys/class/thermal/*/type /sys/devices/system/cpu/cpu0/cache/index0/type; do
	[ -e "$other" ] || continue
	tried=yes
	cat "$other" > /tmp/other || exit 1
	grep -q -e EDGE -e LEVEL /tmp/other && exit 1
done
grep -q '^cpu: 0$' /proc/timer_list && grep -q '^livepatched$' /proc/timer_list && [ "$tried" = yes ]
