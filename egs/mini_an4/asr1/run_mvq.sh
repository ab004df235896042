#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/mini_an4/asr1 of an ESPnet checkout: copy conf/
# and this file there, and run it instead of run.sh. Options are those of run.sh and apply
# to all of its stages. The corpus has a few utterances and only tests that everything runs.
# Environment variables select the teacher (teacher=... layer=...), which must be on this
# machine or downloadable.
set -euo pipefail
teacher=${teacher:-s3prl/hubert_base} layer=${layer:-9}
stage=${stage:-1}           # 6: data exist; 7: codebook indexes of this teacher exist, too
stop_stage=13

# path.sh selects the python3 that has espnet_mvq.
scripts=$(set +u -- && . ./path.sh >&2 && dirname "$(python3 -m espnet_mvq --mvq_sh)")
. "${scripts}/overlay.sh"
recipe_opts=(--use_lm false)
mvq_opts=(--train_set train_nodev --dev_set train_dev --nj 2 --teacher "${teacher}"
    --layer "${layer}" --num_codebooks 4
    --quantizer_args "--codebook_size 16 --num_iterations 4")
train_opts=(--asr_config conf/tuning/train_asr_conformer_debug_mvq.yaml
    --inference_asr_model valid.loss.ave.pth)
run_overlay "$@"
