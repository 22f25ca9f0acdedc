# Copyright 2026 Gentoo Authors
# Distributed under the terms of the GNU General Public License v2

EAPI=8

DISTUTILS_SINGLE_IMPL=1
DISTUTILS_USE_PEP517=hatchling
PYTHON_COMPAT=( python3_{11..14} )

inherit distutils-r1 linux-info shell-completion systemd

DESCRIPTION="Live patches for the kernel that a machine runs: client and build server"
HOMEPAGE="https://wiki.gentoo.org/wiki/Elivepatch"

if [[ ${PV} == 9999 ]]; then
	inherit git-r3
	# where it is kept is said with EGIT_OVERRIDE_REPO_GENTOO_ELIVEPATCH in make.conf
	EGIT_REPO_URI="https://github.com/gentoo/elivepatch.git"
else
	SRC_URI="${P}.tar.gz"
	KEYWORDS="~amd64"
	RESTRICT="fetch"
fi

LICENSE="GPL-2+"
SLOT="0"
IUSE="server"

# completion and manual pages are printed by the programs themselves, so these are needed when it is built, too
COMMON_DEPEND="
	$(python_gen_cond_dep '
		>=dev-python/click-8.1[${PYTHON_USEDEP}]
		>=dev-python/httpx2-2.0[${PYTHON_USEDEP}]
		>=dev-python/pydantic-2.7[${PYTHON_USEDEP}]
		>=dev-python/pyyaml-6.0[${PYTHON_USEDEP}]
		>=dev-python/rich-13.7[${PYTHON_USEDEP}]
	')
	server? (
		$(python_gen_cond_dep '
			>=dev-libs/tree-sitter-c-0.23[python,${PYTHON_USEDEP}]
			>=dev-python/alembic-1.13[${PYTHON_USEDEP}]
			>=dev-python/fastapi-0.115[${PYTHON_USEDEP}]
			>=dev-python/prometheus-client-0.20[${PYTHON_USEDEP}]
			>=dev-python/pydantic-settings-2.4[${PYTHON_USEDEP}]
			>=dev-python/pyelftools-0.31[${PYTHON_USEDEP}]
			>=dev-python/python-multipart-0.0.12[${PYTHON_USEDEP}]
			>=dev-python/sqlalchemy-2.0[${PYTHON_USEDEP}]
			>=dev-python/tree-sitter-0.23[${PYTHON_USEDEP}]
			>=dev-python/unidiff-0.7.5[${PYTHON_USEDEP}]
			>=dev-python/uvicorn-0.30[${PYTHON_USEDEP}]
		')
	)
"
RDEPEND="
	${COMMON_DEPEND}
	sys-apps/kmod
	server? (
		acct-group/elivepatch
		acct-user/elivepatch
		app-arch/cpio
		app-arch/xz-utils
		app-arch/zstd
		app-crypt/gnupg
		app-emulation/qemu
		dev-vcs/git
		sys-apps/bubblewrap
		sys-apps/shadow
		sys-devel/binutils
		sys-devel/patch
		sys-fs/e2fsprogs
	)
"
BDEPEND="
	${COMMON_DEPEND}
"

CONFIG_CHECK="~LIVEPATCH"
ERROR_LIVEPATCH="elivepatch loads nothing into a kernel without CONFIG_LIVEPATCH."

DOCS=( README.md docs )

pkg_setup() {
	# both eclasses have one, and that of the last would be the only one
	linux-info_pkg_setup
	python-single-r1_pkg_setup
}

pkg_nofetch() {
	einfo "There is no published archive of elivepatch yet. In a checkout of its source,"
	einfo "'make gentoo-overlay' makes ${P}.tar.gz, and this repository with its digests."
	einfo "Copy the archive into your DISTDIR."
}

python_compile_all() {
	local shell
	for shell in bash zsh fish; do
		PYTHONPATH=src "${EPYTHON}" -c 'from elivepatch.client.entry import main; main()' \
			completion "${shell}" > "${T}/elivepatch.${shell}" || die
	done

	if use server; then
		for shell in bash zsh fish; do
			PYTHONPATH=src "${EPYTHON}" -c 'from elivepatch.server.cli import main; main()' \
				completion "${shell}" > "${T}/elivepatch-server.${shell}" || die
		done
	fi

	local programs=( elivepatch $(usev server elivepatch-server) )
	ELIVEPATCH_VERSION="${PV}" PYTHONPATH=src \
		"${EPYTHON}" scripts/man_pages.py "${T}/man" "${programs[@]}" || die
}

python_install_all() {
	distutils-r1_python_install_all

	newbashcomp "${T}/elivepatch.bash" elivepatch
	newzshcomp "${T}/elivepatch.zsh" _elivepatch
	newfishcomp "${T}/elivepatch.fish" elivepatch.fish
	keepdir /etc/elivepatch
	doman "${T}"/man/*.8

	systemd_dounit packaging/systemd/elivepatch{,-shutdown,-alive}.service
	systemd_dounit packaging/systemd/elivepatch-alive.timer
	doinitd packaging/openrc/elivepatch

	if use server; then
		systemd_dounit packaging/server/elivepatch-server.service
		newinitd "${FILESDIR}/elivepatch-server.initd" elivepatch-server
		newbashcomp "${T}/elivepatch-server.bash" elivepatch-server
		newzshcomp "${T}/elivepatch-server.zsh" _elivepatch-server
		newfishcomp "${T}/elivepatch-server.fish" elivepatch-server.fish
	else
		rm "${ED}/usr/bin/elivepatch-server" || die
	fi
}

pkg_postinst() {
	if use server; then
		elog "The server makes its build roots with mmdebstrap and apt, which Gentoo does not have."
		elog "Until it does, run the server in a container; docs/install.md says how."
	fi
}
