# @ECLASS: pypi.eclass
# @MAINTAINER:
# nobody@gentoo.org
# @SUPPORTED_EAPIS: 8
# @BLURB: a stand-in, with what our ebuilds name and nothing else

case ${EAPI} in
	8) ;;
	*) die "${ECLASS}: EAPI ${EAPI:-0} not supported" ;;
esac

SRC_URI="https://files.pythonhosted.org/packages/source/${PN::1}/${PN}/${P}.tar.gz"
