#!/usr/bin/env bash
# MVQ distillation in egs2/aishell/asr1 of an ESPnet checkout: copy this file there and run
# it in place of run.sh. It takes the options of run.sh, and those that --help shows.
# The teacher is a HuBERT of 24 layers that was trained on Mandarin.
set -euo pipefail
run_mvq=$(set +u -- && . ./path.sh >&2 && python3 -m espnet_mvq --run_mvq_sh)
exec bash "${run_mvq}" --teacher transformers/TencentGameMate/chinese-hubert-large --layer 16 \
    --num_codebooks 16 "$@"
