#!/usr/bin/env bash

# An unmodified recipe of an ESPnet checkout with MVQ distillation: the data stages of
# egs2/mini_an4/asr1, then mvq.sh through the checkout's own run.pl.
#
# Usage: tests/integration/espnet_checkout.sh ESPNET_DIR
#
# The recipe is copied, file by file as it is, to egs2/mini_an4/asr1_espnet_mvq, and runs
# there with the python3 of the path, which must have espnet_mvq[s3prl]. No network is
# needed. Where there is no sph2pipe, soundfile stands in for it.

set -euo pipefail

if [ $# -ne 1 ] || [ ! -d "$1/egs2/mini_an4/asr1" ]; then
    echo "Usage: $0 ESPNET_DIR   (a checkout of ESPnet, with egs2/mini_an4)" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
recipe=$(cd "$1" && pwd)/egs2/mini_an4/asr1_espnet_mvq
rm -rf "${recipe}"
cp -a "$1/egs2/mini_an4/asr1" "${recipe}"
export PATH=${PATH}:${root}/tests/integration/stand_ins
cd "${recipe}"

# ESPnet's own stages: data, format, token list
./run.sh --stop_stage 5 --use_lm false

# The corpus has a handful of utterances, so the codebooks are small.
bash "$(python3 -m espnet_mvq.where)" --train_set train_nodev --dev_set train_dev --nj 2 \
    --teacher "s3prl/hf_hubert_custom:${root}/egs/demo/asr1/teacher" --layer 4 \
    --num_codebooks 4 --quantizer_args "--codebook_size 16 --num_iterations 4"

# It was ESPnet's run.pl that ran the jobs: its logs end so.
grep -q "^# Accounting: time=" dump/mvq/*/train_nodev/log/extract.1.log
diff <(cut -d " " -f 1 dump/raw/train_nodev/wav.scp) \
    <(cut -d " " -f 1 dump/raw/train_nodev/codebook_indexes.scp)
diff -rq "$1/egs2/mini_an4/asr1" "${recipe}" | grep -v "^Only in" && exit 1
echo "espnet_checkout.sh: all of it works with $1"
