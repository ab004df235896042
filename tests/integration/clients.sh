#!/usr/bin/env bash

# Other programs that use our files and our model, each in a virtual environment of its own:
#   lhotse 1.33 and the newest 2.0   load and collate the exported cuts as icefall does
#   multi_quantization               its own tests, with quantizers of our trainer
#   ESPnet 202611                    a student in ESPnet3, and the notebook, on Python 3.12
#
# Usage: tests/integration/clients.sh [--mq_repository URL_OR_DIR] [--python312 PYTHON]
#
# It needs a package index, multi_quantization's repository, and about half an hour on two
# cores. The environments lie in a temporary folder. Those of lhotse see the packages of
# the python3 of the path, which must have espnet_mvq[dev]. Without Python 3.12 the last
# part is skipped.

set -uo pipefail

mq_repository=https://github.com/k2-fsa/multi_quantization
python312=python3.12
while [ $# -gt 0 ]; do
    case $1 in
    --mq_repository | --python312) [ $# -ge 2 ] && printf -v "${1#--}" %s "$2" && shift 2 && continue ;;
    esac
    echo "Usage: $0 [--mq_repository URL_OR_DIR] [--python312 PYTHON]" >&2
    exit 2
done
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "${work}"' EXIT
export PYTHONPATH=${root}
cd "${root}" || exit 1
summary=()

# check NAME COMMAND ...: run a command, and note its result for the summary
check() {
    local name=$1 result=failed
    shift
    echo "== ${name}"
    "$@" && result=passed
    summary+=("${result}  ${name}")
}

site=$(python3 -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
# lhotse_client VERSION: install it beside the packages of python3, and run its test
lhotse_client() {
    local venv=${work}/lhotse
    rm -rf "${venv}"
    python3 -m venv "${venv}" &&
        echo "${site}" >"$("${venv}/bin/python" -c \
            "import sysconfig; print(sysconfig.get_paths()['purelib'])")/python3.pth" &&
        "${venv}/bin/pip" install -q --pre "lhotse$1" &&
        "${venv}/bin/python" -c "import lhotse; print('lhotse', lhotse.__version__)" &&
        "${venv}/bin/python" -m pytest -q tests/espnet_mvq/exchange/test_lhotse_client.py
}
check "lhotse 1.33" lhotse_client "==1.33.*"
check "lhotse 2.0, newest version" lhotse_client ">=2.0.0a0"

multi_quantization_tests() {
    git clone -q "${mq_repository}" "${work}/multi_quantization" &&
        python3 tests/integration/multi_quantization_tests.py "${work}/multi_quantization"
}
check "multi_quantization's own tests" multi_quantization_tests

espnet_202611() {
    local venv=${work}/espnet
    # A copy, because pip leaves files in the folder that it installs
    mkdir "${work}/source" && git archive HEAD | tar -x -C "${work}/source" &&
        "${python312}" -m venv "${venv}" &&
        "${venv}/bin/pip" install -q "${work}/source[transformers,dev]" \
            "espnet[train]==202611" &&
        "${venv}/bin/python" -m pytest -q tests/espnet_mvq/plugin/test_espnet3.py \
            tests/docs/test_notebooks.py
}
if "${python312}" -c "" 2>/dev/null; then
    check "ESPnet 202611: ESPnet3, notebook" espnet_202611
else
    summary+=("skipped ESPnet 202611: no ${python312}")
fi

printf "%s\n" "== Summary" "${summary[@]}"
[[ "${summary[*]}" != *failed* ]]
