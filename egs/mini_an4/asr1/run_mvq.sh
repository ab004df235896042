#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/mini_an4/asr1 of an ESPnet checkout: copy conf/
# and this file there, and run it instead of run.sh. A few utterances: it shows that all
# of it runs. `teacher` must be one that is there without a network, or a network must be.
set -euo pipefail
teacher=${teacher:-s3prl/hubert_base} layer=${layer:-9}

./run.sh --stop_stage 5 --use_lm false
bash "$(python3 -m espnet_mvq.where)" --train_set train_nodev --dev_set train_dev --nj 2 \
    --teacher "${teacher}" --layer "${layer}" --num_codebooks 4 \
    --quantizer_args "--codebook_size 16 --num_iterations 4"
./run.sh --stage 10 --stop_stage 13 --use_lm false --python "python3 -m espnet_mvq.run" \
    --asr_config conf/tuning/train_asr_conformer_debug_mvq.yaml "$@"
