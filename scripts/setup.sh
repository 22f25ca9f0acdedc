#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Set up a Debian 12 or 13 machine for elivepatch: Debian packages, and the Python packages in .venv.
set -eu
cd "$(dirname "$0")/.."
began=$(date +%s)
say() { printf '[setup %3d s] %s\n' "$(($(date +%s) - began))" "$*"; }

packages="python3 python3-venv ca-certificates apt dpkg git make util-linux xz-utils e2fsprogs kmod patch binutils cpio
  bubblewrap mmdebstrap uidmap debian-archive-keyring qemu-system-x86 bzip2 zstd gpgv gnupg openssh-client debuginfod openssl
  groff-base zsh fish"
missing=""
for package in $packages; do
  [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
  say "Debian packages:$missing"
  as_root=""
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || { echo "setup: install as root: apt-get install$missing" >&2; exit 6; }
    as_root=sudo
  fi
  $as_root apt-get -qq update
  # shellcheck disable=SC2086  # a list of words
  DEBIAN_FRONTEND=noninteractive $as_root apt-get -qq install --yes --no-install-recommends $missing >/dev/null
fi

if [ ! -x .venv/bin/uv ]; then
  say "Python environment in .venv"
  python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
fi
say "Python packages of requirements/dev.txt"
.venv/bin/uv pip install --quiet --python .venv/bin/python --require-hashes -r requirements/dev.txt
.venv/bin/uv pip install --quiet --python .venv/bin/python --no-deps --editable .
touch .venv/.ready
say "ready: .venv/bin/elivepatch and .venv/bin/elivepatch-server"
