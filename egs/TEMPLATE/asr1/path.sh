# shellcheck shell=bash
# Sourced by the recipes after common.sh: selects the Python that has espnet_mvq.
MAIN_ROOT=$(cd ../../.. && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f "${MAIN_ROOT}/.venv/bin/activate" ]; then
    # `make venv` creates it.
    # shellcheck source=/dev/null
    . "${MAIN_ROOT}/.venv/bin/activate"
fi
check_python "run 'make venv' in ${MAIN_ROOT}, or activate the environment that has it"

# Each parallel job uses one thread. The training sets its own number.
export OMP_NUM_THREADS=1
# Spinning threads make small models up to 40 times slower as soon as another process
# needs one of the cores.
export OMP_WAIT_POLICY=PASSIVE
# Decoded text and the order of files must not depend on the user's locale.
export PYTHONIOENCODING=UTF-8
export LC_ALL=C
