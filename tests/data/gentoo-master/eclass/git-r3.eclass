# @ECLASS: git-r3.eclass
# @MAINTAINER:
# nobody@gentoo.org
# @SUPPORTED_EAPIS: 8
# @BLURB: a stand-in, with what our ebuilds name and nothing else

case ${EAPI} in
	8) ;;
	*) die "${ECLASS}: EAPI ${EAPI:-0} not supported" ;;
esac

PROPERTIES="live"
BDEPEND="dev-vcs/git"
