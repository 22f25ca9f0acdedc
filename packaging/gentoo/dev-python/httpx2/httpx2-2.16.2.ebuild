# Copyright 2026 Gentoo Authors
# Distributed under the terms of the GNU General Public License v2

EAPI=8

DISTUTILS_USE_PEP517=hatchling
PYTHON_COMPAT=( python3_{11..14} )

inherit distutils-r1 pypi

DESCRIPTION="HTTP client for Python, the continuation of httpx"
HOMEPAGE="
	https://github.com/pydantic/httpx2
	https://pypi.org/project/httpx2/
"

LICENSE="BSD"
SLOT="0"
KEYWORDS="~amd64"

RDEPEND="
	>=dev-python/anyio-4.10[${PYTHON_USEDEP}]
	~dev-python/httpcore2-${PV}[${PYTHON_USEDEP}]
	>=dev-python/idna-3.18[${PYTHON_USEDEP}]
	>=dev-python/truststore-0.10[${PYTHON_USEDEP}]
	$(python_gen_cond_dep '
		>=dev-python/typing-extensions-4.5[${PYTHON_USEDEP}]
	' python3_{11,12})
"
BDEPEND="
	dev-python/hatch-fancy-pypi-readme[${PYTHON_USEDEP}]
	>=dev-python/uv-dynamic-versioning-0.14.1[${PYTHON_USEDEP}]
"

# its tests need servers, and packages that Gentoo does not have
RESTRICT="test"

export UV_DYNAMIC_VERSIONING_BYPASS=${PV}
