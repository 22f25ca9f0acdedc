#!/bin/bash
# SPDX-License-Identifier: GPL-2.0-or-later
#
# insmod, modprobe and rmmod for the kernel's livepatch selftests: livepatches go through elivepatch, all else to kmod.
# What the kernel refuses is said in kmod's words, which the selftests compare with; all else in elivepatch's own.

program=$(basename "$0")
kmod=/usr/sbin/$program
[[ $1 == -* ]] && exec "$kmod" "$@"
file=$1
[[ -f $file ]] || file=$(modinfo -n "$1" 2>/dev/null)
[[ $(modinfo -F livepatch "$file" 2>/dev/null) == Y ]] || exec "$kmod" "$@"

if [[ $program == rmmod ]]; then
	command=(elivepatch revert "$1")
else
	# those that replace all others are told so; the others stack, as they do with insmod
	how=--beside
	[[ " $* " == *" replace=1 "* || $(basename "$file") == test_klp_state* ]] && how=--drop-earlier
	command=(elivepatch load "$file" --no-report "$how" "${@:2}")
fi
echo "$ ${command[*]}" >>"$CLIENT"
said=$("${command[@]}" 2>&1)
status=$?
echo "$said" >>"$CLIENT"
[[ $status == 0 ]] && exit 0

case $said in
*"The kernel refused"*"(ENODEV)"*) why="No such device" ;;
*"The kernel refused"*"(EBUSY)"*) why="Device or resource busy" ;;
*"The kernel refused"*"(EINVAL)"*)
	why="Invalid parameters"
	[[ $program == modprobe ]] && why="Invalid argument"
	;;
*)
	echo "$said"
	exit 1
	;;
esac
case $program in
insmod) echo "insmod: ERROR: could not insert module $1: $why" ;;
*) echo "$program: ERROR: could not insert '$1': $why" ;;
esac
exit 1
