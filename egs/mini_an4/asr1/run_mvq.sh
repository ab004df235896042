#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/mini_an4/asr1 of an ESPnet checkout. Copy conf/ and
# this file into it, and run this file instead of run.sh. Options are those of run.sh and go
# to all of its stages. The corpus is tiny; the recipe only shows that everything runs. The
# environment selects the teacher (teacher=... layer=...), a local or a downloadable one.
set -euo pipefail
teacher=${teacher:-s3prl/hubert_base} layer=${layer:-9}
stage=${stage:-1}           # 6: after the data stages; 7: with existing codebook indexes
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
