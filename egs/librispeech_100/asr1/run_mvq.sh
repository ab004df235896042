#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/librispeech_100/asr1 of an ESPnet checkout:
# copy conf/ and this file there, and run it instead of run.sh.
set -euo pipefail
teacher=${teacher:-s3prl/wavlm_large} layer=${layer:-18} config=${config:-conformer}

./run.sh --stop_stage 5
bash "$(python3 -m espnet_mvq.where)" --train_set train_clean_100_sp --dev_set dev \
    --teacher "${teacher}" --layer "${layer}" --num_codebooks 16 --use_gpu true --nj 1
./run.sh --stage 10 --python "python3 -m espnet_mvq.run" \
    --asr_config "conf/tuning/train_asr_${config}_mvq.yaml" "$@"
