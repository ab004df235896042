#!/usr/bin/env bash
# The same student with one loss after the other: none, embedding KD, MVQ, AdaKD.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

stage=1             # First stage to run.
stop_stage=5        # Last stage to run.
nj=2                # Parallel jobs.
python=python3      # Python of everything.
asr_config=conf/train_asr_debug.yaml
inference_config=conf/decode_asr_debug.yaml
losses="l2_stored l2_teacher l2_decoded mvq mvq_adakd"  # of conf/losses
teacher=transformers/openai/whisper-tiny.en
teacher_conf=window_s=0
layer=3             # Teacher layer, counted from 1.
loss_teacher=       # Teacher of AdaKD, with a task head (see bin/teacher_loss); empty: the
                    # MVQ student, which is trained for it first.
k_updates=900       # AdaKD: updates in which k falls.
max_frames=40000    # Frames the quantizer is trained on.

help_message="Usage: $0 [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 data, quantizer and indexes, 2 stored embeddings, 3 teacher losses, 4 students,
     5 report
  --losses \"NAME ...\" [${losses}]   names below conf/losses
  --teacher NAME [${teacher}] --teacher_conf \"K=V\" [${teacher_conf}] --layer N [${layer}]
  --loss_teacher NAME --k_updates N [${k_updates}] --max_frames N [${max_frames}]
  --asr_config YAML [${asr_config}] --inference_config YAML [${inference_config}]
  --nj N [${nj}] --python CMD [${python}]"

. utils/parse_options.sh
. ./path.sh

train_set=train_clean_5
data=dump/raw/${train_set}
tag=$(basename "${teacher##*:}")_layer${layer}
configs=
for loss in ${losses}; do
    configs+=" exp/conf/train_asr_debug_${loss}.yaml"
done
runs() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# recipe OPTIONS: stages of run.sh
recipe() {
    ./run.sh --nj "${nj}" --python "${python}" --teacher "${teacher}" --layer "${layer}" \
        --teacher_conf "${teacher_conf}" --max_frames "${max_frames}" \
        --asr_config "${asr_config}" --inference_config "${inference_config}" "$@"
}

if runs 1; then
    log "stage 1: Data, quantizer, codebook indexes"
    recipe --mvq_asr_config conf/train_asr_debug_mvq.yaml --stop_stage 10
fi

if runs 2; then
    log "stage 2: Embeddings, stored as float16"
    bash "$(${python} -m espnet_mvq.where)" --target embeddings --train_set "${train_set}" \
        --nj "${nj}" --python "${python}" --teacher "${teacher}" --layer "${layer}" \
        --teacher_conf "${teacher_conf}"
fi

if runs 3; then
    if [ -z "${loss_teacher}" ]; then
        log "stage 3: MVQ student"
        recipe --mvq_asr_config conf/train_asr_debug_mvq.yaml --stage 11 --stop_stage 11
        loss_teacher=espnet/exp/asr_train_asr_debug_mvq_raw_en_bpe100
    fi
    log "stage 3: Task losses of ${loss_teacher}"
    ${python} -m espnet_mvq.bin.teacher_loss --data_dir "${data}" --teacher "${loss_teacher}"
fi

if runs 4; then
    log "stage 4: Students of ${asr_config} with ${losses}"
    for loss in ${losses}; do
        ${python} pyscripts/merge_yaml.py --base "${asr_config}" \
            --added "conf/losses/${loss}.yaml" --out "exp/conf/train_asr_debug_${loss}.yaml" \
            --set train="${data}" teacher="${teacher}" layer="${layer}" \
            teacher_conf="{${teacher_conf//=/: }}" updates="${k_updates}" \
            quantizer="dump/mvq/${tag}_cb8/quantizer.safetensors"
    done
    recipe --mvq_asr_config "${configs}" --stage 11 --stop_stage 13
fi

if runs 5; then
    log "stage 5: Report"
    recipe --mvq_asr_config "${configs}" --stage 14
    du -bc dump/mvq/*/"${train_set}"/*.ark
fi
