#!/usr/bin/env bash
# MVQ distillation in egs2/aishell/asr1 of an ESPnet checkout; see README.md and --help.
[ ! -f path.sh ] || . ./path.sh
exec "$(dirname "$(python3 -m espnet_mvq --mvq_sh)")/run_mvq.sh" --teacher transformers/TencentGameMate/chinese-hubert-large \
    --layer 18 --mvq_args "--use_gpu true --nj 4" "$@"
