# @ECLASS: distutils-r1.eclass
# @MAINTAINER:
# nobody@gentoo.org
# @SUPPORTED_EAPIS: 8
# @BLURB: a stand-in, with what our ebuilds name and nothing else

case ${EAPI} in
	8) ;;
	*) die "${ECLASS}: EAPI ${EAPI:-0} not supported" ;;
esac

_PYTHONS=( python3_{11..14} )
[[ ${DISTUTILS_USE_PEP517} == hatchling ]] || die "the stand-in knows hatchling only"
BDEPEND="dev-python/hatchling"
if [[ -n ${DISTUTILS_SINGLE_IMPL} ]]; then
	IUSE="${_PYTHONS[*]/#/python_single_target_}"
	REQUIRED_USE="^^ ( ${IUSE} )"
else
	IUSE="${_PYTHONS[*]/#/python_targets_}"
	REQUIRED_USE="|| ( ${IUSE} )"
	_flags=( "${_PYTHONS[@]/#/python_targets_}" )
	printf -v PYTHON_USEDEP '%s(-)?,' "${_flags[@]}"
	PYTHON_USEDEP=${PYTHON_USEDEP%,}
fi

# @FUNCTION: python_gen_cond_dep
# @DESCRIPTION:
# A stand-in.
python_gen_cond_dep() {
	local impl dependency=${1} kind=targets
	[[ -n ${DISTUTILS_SINGLE_IMPL} ]] && kind=single_target
	for impl in "${_PYTHONS[@]}"; do
		[[ -z ${2} || ${impl} == ${2} || " ${*:2} " == *" ${impl} "* ]] || continue
		echo "python_${kind}_${impl}? ( ${dependency//\$\{PYTHON_USEDEP\}/python_targets_${impl}(-)} )"
	done
}

# @FUNCTION: distutils-r1_src_compile
# @DESCRIPTION:
# A stand-in.
distutils-r1_src_compile() { :; }

# @FUNCTION: distutils-r1_python_install_all
# @DESCRIPTION:
# A stand-in.
distutils-r1_python_install_all() { :; }

# @FUNCTION: python_get_scriptdir
# @DESCRIPTION:
# A stand-in.
python_get_scriptdir() { :; }

EXPORT_FUNCTIONS src_compile
