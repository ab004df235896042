#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/librispeech_100/asr1 of an ESPnet checkout: copy
# conf/ and this file there, and run it instead of run.sh. Options are those of run.sh and
# apply to all of its stages. Environment variables select teacher and student (see
# README.md).
set -euo pipefail
teacher=${teacher:-s3prl/wavlm_large} layer=${layer:-18} # or s3prl/hubert_large_ll60k ...
config=${config:-conformer} # conf/tuning/train_asr_*_mvq.yaml
stage=${stage:-1}           # 6: data exist; 7: codebook indexes of this teacher exist, too
stop_stage=10000
nj=${nj:-1}                 # parallel jobs of the extraction, one GPU each

# path.sh selects the python3 that has espnet_mvq.
scripts=$(set +u -- && . ./path.sh >&2 && dirname "$(python3 -m espnet_mvq --mvq_sh)")
. "${scripts}/overlay.sh"
recipe_opts=()
mvq_opts=(--train_set train_clean_100_sp --dev_set dev --teacher "${teacher}"
    --layer "${layer}" --num_codebooks 16 --use_gpu true --nj "${nj}")
# asr.sh selects the checkpoint for decoding by accuracy, which transducers do not have.
criterion=acc
[[ "${config}" != transducer* ]] || criterion=loss
# ESPnet resumes an experiment of the same name, so the name includes the teacher.
train_opts=(--asr_config "conf/tuning/train_asr_${config}_mvq.yaml"
    --asr_tag "train_asr_${config}_mvq_$(teacher_tag "${teacher}" "${layer}")"
    --inference_asr_model "valid.${criterion}.ave.pth")
run_overlay "$@"
