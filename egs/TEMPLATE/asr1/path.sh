# shellcheck shell=bash
# Sourced by the recipes: finds the Python that espnet_mvq is installed in.
MAIN_ROOT=$(cd ../../.. && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f "${MAIN_ROOT}/.venv/bin/activate" ]; then
    # Made by `make venv`
    # shellcheck source=/dev/null
    . "${MAIN_ROOT}/.venv/bin/activate"
fi
# A command of several words, or the path of a program, which may have spaces
# shellcheck disable=SC2154  # set by the script that sources this one
read -ra _python <<<"${python}"
if [ -x "${python}" ]; then
    _python=("${python}")
fi
if ! "${_python[@]}" -c "import espnet_mvq" 2>/dev/null; then
    echo "$0: Error: espnet_mvq is not installed for '${python}': run 'make venv' in" \
        "${MAIN_ROOT}, or activate the environment it is installed in" >&2
    exit 1
fi

# Each parallel job is one thread; training sets its own number.
export OMP_NUM_THREADS=1
# Threads that wait by spinning make small models up to 40 times slower as soon as
# another process wants one of the cores.
export OMP_WAIT_POLICY=PASSIVE
# Decoded text and sorted files must not depend on the user's language.
export PYTHONIOENCODING=UTF-8
export LC_ALL=C
