#!/bin/sh
[ -d /sys/block/md_same ] || echo md_same > /sys/module/md_mod/parameters/new_array || exit 1
grep -q '^livepatched$' /sys/block/md_same/md/metadata_version && ! grep -rq livepatched /sys/block/md_same/md/bitmap
