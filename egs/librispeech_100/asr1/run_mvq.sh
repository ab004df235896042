#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/librispeech_100/asr1 of an ESPnet checkout: copy
# conf/ and this file there, and run it instead of run.sh. Options are those of run.sh and
# go to all of its stages; teacher and student come from the environment (see README.md).
set -euo pipefail
teacher=${teacher:-s3prl/wavlm_large} layer=${layer:-18} # or s3prl/hubert_large_ll60k ...
config=${config:-conformer} # conf/tuning/train_asr_*_mvq.yaml
stage=${stage:-1}           # 6: data are there; 7: codebook indexes of this teacher too
stop_stage=10000
nj=${nj:-1}                 # extracting jobs, a GPU each

options=()
while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) sed -n "s/^# //p" "$0" && exec ./run.sh --help ;;
        --stage) stage=${2-} ;;
        --stop[-_]stage) stop_stage=${2-} ;;
        *) options+=("${@:1:2}") ;;
    esac
    shift $(($# > 1 ? 2 : 1))
done
if ! [[ "${stage} ${stop_stage}" =~ ^[1-9][0-9]*\ [1-9][0-9]*$ ]] ||
    [ "${stop_stage}" -lt "${stage}" ]; then
    echo "$0: Error: --stage and --stop_stage: got '${stage}' and '${stop_stage}', expected" \
        "numbers from 1 up, the second not below the first" >&2
    exit 2
fi

set +u
. ./path.sh  # its python3 has espnet_mvq
set -u
[ "${stage}" -gt 5 ] || ./run.sh ${options[@]+"${options[@]}"} --stage "${stage}" \
    --stop_stage "$((stop_stage > 5 ? 5 : stop_stage))"
[ "${stop_stage}" -gt 5 ] || exit 0
[ "${stage}" -gt 6 ] || bash "$(python3 -m espnet_mvq --mvq_sh)" --dev_set dev \
    --train_set train_clean_100_sp --teacher "${teacher}" --layer "${layer}" \
    --num_codebooks 16 --use_gpu true --nj "${nj}"
# Transducers have no accuracy, by which asr.sh chooses the checkpoint to decode with.
criterion=acc
[[ "${config}" != transducer* ]] || criterion=loss
# Named after the teacher too: ESPnet resumes what it finds under the same name.
name=$(basename "${teacher##*:}")_layer${layer}
./run.sh --python "python3 -m espnet_mvq.run" \
    --asr_config "conf/tuning/train_asr_${config}_mvq.yaml" \
    --asr_tag "train_asr_${config}_mvq_${name}" \
    --inference_asr_model "valid.${criterion}.ave.pth" ${options[@]+"${options[@]}"} \
    --stage "$((stage > 6 ? stage : 6))" --stop_stage "${stop_stage}"
