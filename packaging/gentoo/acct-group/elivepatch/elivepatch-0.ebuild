# Copyright 2026 Gentoo Authors
# Distributed under the terms of the GNU General Public License v2

EAPI=8

inherit acct-group

DESCRIPTION="A group for the build server of elivepatch"

ACCT_GROUP_ID=-1
