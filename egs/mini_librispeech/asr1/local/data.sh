#!/usr/bin/env bash
# Data preparation: folders of LibriSpeech -> data/{train_clean_5,dev_clean,test_clean}
set -euo pipefail

on_error=stop  # stop or skip: action for unusable utterances.
python=python3

. utils/parse_options.sh
. ./db.sh

subsets="train-clean-5 dev-clean test-clean"

if [ -z "${LIBRISPEECH}" ]; then
    # shellcheck disable=SC2086
    ${python} local/download_and_untar.py --outdir downloads --subsets ${subsets}
    LIBRISPEECH=downloads/LibriSpeech
fi
for subset in ${subsets}; do
    ${python} pyscripts/prepare_librispeech.py --corpus "${LIBRISPEECH}" \
        --subset "${subset}" --outdir "data/${subset//-/_}" --on_error "${on_error}"
done
