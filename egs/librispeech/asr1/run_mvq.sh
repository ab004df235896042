#!/usr/bin/env bash
# MVQ distillation in egs2/librispeech/asr1 of an ESPnet checkout: copy this file there and run
# it in place of run.sh. It takes the options of run.sh, and those that --help shows.
# Students: --asr_config conf/tuning/X.yaml, for example a transducer or a streaming one.
set -euo pipefail
run_mvq=$(set +u -- && . ./path.sh >&2 && python3 -m espnet_mvq --run_mvq_sh)
exec bash "${run_mvq}" --teacher s3prl/wavlm_large --layer 18 --num_codebooks 16 "$@"
