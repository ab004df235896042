#!/usr/bin/env bash
# Data preparation: corpus/{train,dev,test} of this folder -> data/{train,dev,test}
set -euo pipefail

python=python3

. utils/parse_options.sh

for subset in train dev test; do
    ${python} pyscripts/prepare_librispeech.py --corpus corpus --subset "${subset}" \
        --outdir "data/${subset}"
done
