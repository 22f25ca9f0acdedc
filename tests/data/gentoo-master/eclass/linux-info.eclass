# @ECLASS: linux-info.eclass
# @MAINTAINER:
# nobody@gentoo.org
# @SUPPORTED_EAPIS: 8
# @BLURB: a stand-in, with what our ebuilds name and nothing else

case ${EAPI} in
	8) ;;
	*) die "${ECLASS}: EAPI ${EAPI:-0} not supported" ;;
esac

# @FUNCTION: linux-info_pkg_setup
# @DESCRIPTION:
# A stand-in.
linux-info_pkg_setup() { :; }

EXPORT_FUNCTIONS pkg_setup
