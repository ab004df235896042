#!/usr/bin/env bash
# Comparison of losses with the same student: no distillation, embedding KD, MVQ, MVQ of two
# layers, AdaKD; and training with the text of one utterance in four.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

. utils/common.sh

stage=1             # First stage to run.
stop_stage=6        # Last stage to run.
nj=2                # Parallel jobs.
num_threads=        # CPU threads of training and quantizer; empty: all cores.
python=python3      # Python with espnet_mvq.
expdir=exp          # Folder of experiments and results.
asr_stats_dir=exp/asr_stats_raw_en_bpe100  # Statistics of the features.
asr_config=conf/train_asr_debug.yaml
asr_args=           # More options of all trainings.
inference_config=conf/decode_asr_debug.yaml
losses="l2_stored l2_teacher l2_decoded mvq mvq_adakd mvq_two_layers"
losses+=" text_quarter mvq_text_quarter"
teacher=transformers/openai/whisper-tiny.en
teacher_conf=window_s=0
layer=3             # Teacher layer, counted from 1.
second_layer=4      # Second layer of mvq_two_layers.
loss_teacher=       # Teacher of AdaKD, with a task head (see bin/teacher_loss); empty: the
                    # MVQ student, which is then trained first.
k_updates=900       # AdaKD: updates until k reaches its final value.
max_frames=40000    # Number of training frames of the quantizer.
num_test=120        # Utterances of test_clean to decode, evenly spread; ESPnet's CTC search
                    # takes a second per utterance. Empty: all.

help_message="Usage: $0 [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 data, quantizer and indexes, 2 stored embeddings, 3 teacher losses and, for the
     loss posteriors, the posteriors of the same teacher, 4 training, 5 decoding, 6 report
  --losses \"NAME ...\" [${losses}]   names below conf/losses
  --teacher NAME [${teacher}] --teacher_conf \"K=V\" [${teacher_conf}]
  --layer N [${layer}] --second_layer N [${second_layer}]
  --loss_teacher NAME --k_updates N [${k_updates}] --max_frames N [${max_frames}]
  --asr_config YAML [${asr_config}] --inference_config YAML [${inference_config}]
  --num_test N [${num_test}]
  --asr_args \"...\" --expdir DIR [${expdir}] --asr_stats_dir DIR [${asr_stats_dir}]
  --nj N [${nj}] --num_threads N [all cores] --python CMD [${python}]"

. utils/parse_options.sh

stages 1 2 3 4 5 6
whole_number 1 nj ${num_threads:+num_threads} max_frames k_updates ${num_test:+num_test}
whole_number -1 layer second_layer
required "BACKEND/NAME, such as s3prl/wavlm_large" teacher
[ ! -x "${python}" ] || without_spaces python
without_spaces expdir asr_stats_dir
. ./path.sh

train_set=train_clean_5
test_set=test_clean${num_test:+_${num_test}}
data=dump/raw/${train_set}
tag=$(teacher_tag "${teacher}" "${layer}" "${teacher_conf}")
teacher_yaml="{$(sed 's/  */, /g; s/=/: /g' <<<"${teacher_conf}")}"
student=$(basename "${asr_config}" .yaml)

# recipe LOSSES OPTIONS...: run stages of run.sh for the baseline and a student per loss
recipe() {
    local configs=() loss config
    for loss in $1; do
        config=${expdir}/conf/${student}_${loss}.yaml
        configs+=("${config}")
        ${python} pyscripts/merge_yaml.py --base "${asr_config}" \
            --added "conf/losses/${loss}.yaml" --out "${config}" \
            --set train="${data}" teacher="${teacher}" layer="${layer}" \
            teacher_conf="${teacher_yaml}" updates="${k_updates}" \
            quantizer="dump/mvq/${tag}_cb8/quantizer.safetensors"
    done
    shift
    ./run.sh --nj "${nj}" --num_threads "${num_threads}" --python "${python}" \
        --teacher "${teacher}" --layer "${layer}" --teacher_conf "${teacher_conf}" \
        --max_frames "${max_frames}" --expdir "${expdir}" --asr_stats_dir "${asr_stats_dir}" \
        --test_sets "${test_set}" --asr_config "${asr_config}" --mvq_asr_config "${configs[*]}" \
        --asr_args "${asr_args}" --inference_config "${inference_config}" "$@"
}

# mvq LAYER OPTIONS...: run mvq.sh for a layer of the teacher
mvq() {
    local layer=$1
    shift
    bash "$(${python} -m espnet_mvq --mvq_sh)" --train_set "${train_set}" --nj "${nj}" \
        --python "${python}" --teacher "${teacher}" --layer "${layer}" \
        --teacher_conf "${teacher_conf}" "$@"
}

if runs 1; then
    log "stage 1: Prepare data, quantizer and codebook indexes"
    recipe mvq --stop_stage 1
    if [ -n "${num_test}" ]; then
        ${python} local/make_domain.py --data_dir data/test_clean --condition clean \
            --outdir "data/${test_set}" --max_utterances "${num_test}"
    fi
    recipe mvq --stage 4 --stop_stage 10
    if [[ " ${losses} " == *" mvq_two_layers "* ]]; then
        log "stage 1: Prepare quantizer and codebook indexes of layer ${second_layer}"
        mvq "${second_layer}" --index_name codebook_indexes_second --num_codebooks 8 \
            --max_frames "${max_frames}" ${num_threads:+--num_threads "${num_threads}"} \
            --stop_stage 4
    fi
fi

if runs 2; then
    log "stage 2: Store embeddings as float16"
    mvq "${layer}" --target embeddings
fi

if runs 3; then
    if [ -z "${loss_teacher}" ]; then
        log "stage 3: Train the MVQ student"
        recipe mvq --stage 11 --stop_stage 11
        loss_teacher=espnet/${expdir}/$(experiment_name "${student}_mvq" en 100)
    fi
    log "stage 3: Compute the task losses of ${loss_teacher}"
    ${python} -m espnet_mvq.bin.teacher_loss --data_dir "${data}" --teacher "${loss_teacher}"
    if [[ " ${losses} " == *" posteriors "* ]]; then
        log "stage 3: Store the posteriors of ${loss_teacher}"
        mvq -1 --target posteriors --teacher "${loss_teacher}" --teacher_conf ""
    fi
fi

if runs 4; then
    log "stage 4: Train students of ${asr_config} with ${losses}"
    # The list of *_text_quarter. teacher_loss would read a list named `unlabelled`.
    awk 'NR % 4 != 1 { print $1 }' "${data}/wav.scp" >"${data}/no_text"
    recipe "${losses}" --stage 11 --stop_stage 11
fi

if runs 5; then
    log "stage 5: Decode"
    recipe "${losses}" --stage 12 --stop_stage 13
fi

if runs 6; then
    log "stage 6: Write the report"
    recipe "${losses}" --stage 14
fi
