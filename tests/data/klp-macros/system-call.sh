#!/bin/sh
test "$(uname -n)" = livepatched
