#!/usr/bin/env bash
# MVQ distillation in an unmodified egs2/mini_an4/asr1 of an ESPnet checkout: copy conf/
# and this file there, and run it instead of run.sh. Options are those of run.sh and go to
# all of its stages. A few utterances: it shows that all of it runs. The teacher, from the
# environment (teacher=... layer=...), must be there without a network, or a network must be.
set -euo pipefail
teacher=${teacher:-s3prl/hubert_base} layer=${layer:-9}
stage=${stage:-1}           # 6: data are there; 7: codebook indexes of this teacher too
stop_stage=13

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
[ "${stage}" -gt 5 ] || ./run.sh --use_lm false ${options[@]+"${options[@]}"} \
    --stage "${stage}" --stop_stage "$((stop_stage > 5 ? 5 : stop_stage))"
[ "${stop_stage}" -gt 5 ] || exit 0
[ "${stage}" -gt 6 ] || bash "$(python3 -m espnet_mvq --mvq_sh)" --nj 2 \
    --train_set train_nodev --dev_set train_dev --teacher "${teacher}" --layer "${layer}" \
    --num_codebooks 4 --quantizer_args "--codebook_size 16 --num_iterations 4"
./run.sh --use_lm false --python "python3 -m espnet_mvq.run" \
    --asr_config conf/tuning/train_asr_conformer_debug_mvq.yaml \
    --inference_asr_model valid.loss.ave.pth ${options[@]+"${options[@]}"} \
    --stage "$((stage > 6 ? stage : 6))" --stop_stage "${stop_stage}"
