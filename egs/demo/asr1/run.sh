#!/usr/bin/env bash
# MVQ distillation in minutes on a CPU. The repository contains the small synthetic corpus
# and the small teacher; local/README.md describes both.
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
