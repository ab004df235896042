#!/usr/bin/env bash
# MVQ distillation in egs2/mini_an4/asr1 of an ESPnet checkout; see README.md and --help.
[ ! -f path.sh ] || . ./path.sh
exec "$(dirname "$(python3 -m espnet_mvq --mvq_sh)")/run_mvq.sh" --teacher s3prl/hubert_base \
    --layer 8 --mvq_args "--nj 2 --num_codebooks 4 --codebook_size 16" "$@"
