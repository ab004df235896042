# shellcheck shell=bash
# The recipes source this file after common.sh. It selects the Python with espnet_mvq.
MAIN_ROOT=$(cd ../../.. && pwd)
if [ -z "${VIRTUAL_ENV:-}" ] && [ -f "${MAIN_ROOT}/.venv/bin/activate" ]; then
    # `make venv` creates this environment.
    # shellcheck source=/dev/null
    . "${MAIN_ROOT}/.venv/bin/activate"
fi
check_python "run 'make venv' in ${MAIN_ROOT}, or activate an environment with espnet_mvq"

# Each parallel job uses one thread; training sets its own number.
export OMP_NUM_THREADS=1
# Spinning threads make small models up to 40 times slower if another process needs one of
# the cores.
export OMP_WAIT_POLICY=PASSIVE
# Decoded texts and the order of files must not depend on the user's locale.
export PYTHONIOENCODING=UTF-8
export LC_ALL=C
