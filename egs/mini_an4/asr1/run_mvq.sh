#!/usr/bin/env bash
# MVQ distillation in egs2/mini_an4/asr1 of an ESPnet checkout: copy this file there and run
# it in place of run.sh. It takes the options of run.sh, and those that --help shows.
# The corpus has a few utterances and only tests that everything runs, without a GPU.
set -euo pipefail
run_mvq=$(set +u -- && . ./path.sh >&2 && python3 -m espnet_mvq --run_mvq_sh)
exec bash "${run_mvq}" --teacher s3prl/hubert_base --layer 9 --use_gpu false --num_codebooks 4 \
    --mvq_args "--codebook_size 16" "$@"
