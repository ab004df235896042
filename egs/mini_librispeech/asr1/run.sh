#!/usr/bin/env bash
# A conformer baseline and the same model with the MVQ loss, on five hours of real speech.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

./asr_mvq.sh \
    --train_set train_clean_5 \
    --valid_set dev_clean \
    --test_sets "test_clean" \
    --nbpe 100 \
    --teacher transformers/openai/whisper-tiny.en \
    --layer 3 \
    --num_codebooks 8 \
    --max_frames 100000 \
    "$@"
