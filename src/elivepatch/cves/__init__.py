# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel lacks: the feed of vulnerabilities, which of them a kernel has, and the fixes for them."""
