#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/librispeech_100/asr1 of an ESPnet checkout: copy
# conf/ and this file there, and run it instead of run.sh. Options are those of run.sh
# for training and decoding; the rest comes from the environment (see README.md).
set -euo pipefail
teacher=${teacher:-s3prl/wavlm_large} layer=${layer:-18} # or s3prl/hubert_large_ll60k ...
config=${config:-conformer} # conf/tuning/train_asr_*_mvq.yaml
stage=${stage:-1}           # 6: data are there; 10: codebook indexes of this teacher too
nj=${nj:-1}                 # extracting jobs, a GPU each

[ "${stage}" -gt 5 ] || ./run.sh --stage "${stage}" --stop_stage 5
[ "${stage}" -gt 9 ] || bash "$(python3 -m espnet_mvq.where)" --dev_set dev \
    --train_set train_clean_100_sp --teacher "${teacher}" --layer "${layer}" \
    --num_codebooks 16 --use_gpu true --nj "${nj}"
# Named after the teacher too: ESPnet resumes what it finds under the same name.
name=$(basename "${teacher##*:}")_layer${layer}
./run.sh --stage "$((stage > 10 ? stage : 10))" --python "python3 -m espnet_mvq.run" \
    --asr_config "conf/tuning/train_asr_${config}_mvq.yaml" \
    --asr_tag "train_asr_${config}_mvq_${name}" "$@"
