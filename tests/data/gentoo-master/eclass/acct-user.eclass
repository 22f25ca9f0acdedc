# @ECLASS: acct-user.eclass
# @MAINTAINER:
# nobody@gentoo.org
# @SUPPORTED_EAPIS: 8
# @BLURB: a stand-in, with what our ebuilds name and nothing else

case ${EAPI} in
	8) ;;
	*) die "${ECLASS}: EAPI ${EAPI:-0} not supported" ;;
esac

SLOT="0"
KEYWORDS="amd64"
S=${WORKDIR}

# @FUNCTION: acct-user_add_deps
# @DESCRIPTION:
# A stand-in.
acct-user_add_deps() {
	local group
	for group in "${ACCT_USER_GROUPS[@]}"; do
		RDEPEND+=" acct-group/${group}"
	done
}
