#!/usr/bin/env bash
# MVQ distillation in minutes on a CPU, with a small synthetic corpus and a small teacher from
# this repository. See local/README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./asr_mvq.sh \
    --train_set train \
    --valid_set dev \
    --test_sets "test" \
    --nbpe 60 \
    --teacher s3prl/hf_hubert_custom:teacher \
    --layer 4 \
    --num_codebooks 8 \
    --max_frames 30000 \
    "$@"
