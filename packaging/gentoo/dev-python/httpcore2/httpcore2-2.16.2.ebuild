# Copyright 2026 Gentoo Authors
# Distributed under the terms of the GNU General Public License v2

EAPI=8

DISTUTILS_USE_PEP517=hatchling
PYTHON_COMPAT=( python3_{11..14} )

inherit distutils-r1 pypi

DESCRIPTION="Minimal low-level HTTP client for Python, the continuation of httpcore"
HOMEPAGE="
	https://github.com/pydantic/httpx2
	https://pypi.org/project/httpcore2/
"

LICENSE="BSD"
SLOT="0"
KEYWORDS="~amd64"

RDEPEND="
	>=dev-python/h11-0.16[${PYTHON_USEDEP}]
	>=dev-python/truststore-0.10[${PYTHON_USEDEP}]
"
BDEPEND="
	dev-python/hatch-fancy-pypi-readme[${PYTHON_USEDEP}]
	>=dev-python/uv-dynamic-versioning-0.14.1[${PYTHON_USEDEP}]
"

# its tests need servers, and packages that Gentoo does not have
RESTRICT="test"

export UV_DYNAMIC_VERSIONING_BYPASS=${PV}
