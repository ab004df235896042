#!/usr/bin/env bash

# Template of this repository's recipes: prepares a corpus, then trains and scores a
# baseline and MVQ students with the same configuration and seed. It needs only
# pip-installed ESPnet. Stages are numbered as in ESPnet's asr.sh; stages 6 to 8 run mvq.sh.

set -euo pipefail

. utils/common.sh

# Empty options of the quantizer get the defaults of mvq.sh.

# General
stage=1             # First stage to run.
stop_stage=14       # Last stage to run.
skip_stages=        # Stages to skip, separated by spaces.
ngpu=0              # GPUs for teacher and training; 0: CPU.
nj=2                # Parallel jobs of extraction and statistics.
inference_nj=2      # Parallel jobs of decoding.
num_threads=        # CPU threads of training and quantizer; empty: all cores.
python=python3      # Python of all commands; MVQ students: "${python} -m espnet_mvq.run".
dumpdir=dump        # Folder of formatted data and codebook indexes.
expdir=exp          # Folder of experiments and results.
exp_tag=            # End of the experiments' names.
asr_stats_dir=      # Statistics; empty: in expdir. Reuse those of another run with
                    # --skip_stages 10.
token_list_dir=     # Token list; empty: below data/. Reuse that of another run with
                    # --skip_stages 5.

# Data
train_set=          # Training set, a folder below data/ (required).
valid_set=          # Validation set (required).
test_sets=          # Test sets, separated by spaces (required).
local_data_opts=    # Options of local/data.sh.
min_wav_duration=0.1  # Minimum duration of training and validation utterances, in s.
max_wav_duration=30   # Their maximum duration, in s.
sample_rate=16000   # In Hz.
lang=en             # Part of the token list's name.
nbpe=100            # Size of the token list.
bpemode=unigram     # unigram, bpe or char.

# Teacher, quantizer, codebook indexes
teacher=            # s3prl/UPSTREAM[:CHECKPOINT], transformers/NAME_OR_DIR ... (required
                    # for MVQ students).
layer=-1            # Teacher layer, counted from 1; -1: the last.
teacher_conf=       # Options of the teacher's back end, KEY=VALUE separated by spaces.
mvq_dir=            # Folder of quantizer, arks and logs; empty: named after the teacher.
num_codebooks=8     # Bytes per teacher frame.
max_frames=         # Number of training frames of the quantizer.
quantizer_hours=    # Hours of speech that contain these frames.
quantizer_iterations=  # Number of rounds of the quantizer's training.
on_error=           # stop or skip: action for utterances with unusable audio.
mvq_args=           # More options of mvq.sh; they override the options above.

# Students
asr_config=conf/train_asr.yaml          # Baseline; empty: no baseline.
mvq_asr_config=conf/train_asr_mvq.yaml  # MVQ students, separated by spaces; empty: none and
                                        # no teacher.
asr_args=           # More options of all trainings.
inference_config=conf/decode_asr.yaml   # Configuration of decoding.
inference_asr_model=valid.loss.ave.pth  # Checkpoint for decoding.

help_message="Usage: $0 [options]   (defaults in brackets)
  --stage N --stop_stage N --skip_stages \"N N\" [${stage} to ${stop_stage}]
     1 data, 4 format, 5 token list, 6 quantizer, 7 codebook indexes, 8 their check,
     10 statistics, 11 training, 12 decoding, 13 scoring, 14 report
  --ngpu N [${ngpu}] --nj N [${nj}] --inference_nj N [${inference_nj}] --python CMD [${python}]
  --dumpdir DIR [${dumpdir}] --expdir DIR [${expdir}] --num_threads N [all cores]
  --exp_tag TAG --asr_stats_dir DIR --token_list_dir DIR
  --train_set NAME --valid_set NAME --test_sets \"NAME NAME\"
  --nbpe N [${nbpe}] --bpemode MODE [${bpemode}]
  --teacher NAME --layer N [${layer}] --teacher_conf \"KEY=VALUE ...\"
  --mvq_dir DIR [named after teacher and layer]
  --num_codebooks N [${num_codebooks}] --max_frames N [160000] --on_error stop|skip [stop]
  --mvq_args \"...\"
  --asr_config YAML [${asr_config}] --mvq_asr_config \"YAML ...\" [${mvq_asr_config}]
  --asr_args \"...\" --inference_config YAML [${inference_config}]"

log "$0 $*"
. utils/parse_options.sh

no_arguments "$@"
stages 1 4 5 6 7 8 10 11 12 13 14
[[ "${skip_stages}" =~ ^[0-9\ ]*$ ]] || refuse_option skip_stages "numbers of stages"
whole_number 0 ngpu
whole_number 1 nj inference_nj ${num_threads:+num_threads} nbpe sample_rate num_codebooks \
    ${quantizer_iterations:+quantizer_iterations}
whole_number -1 layer
number min_wav_duration max_wav_duration
check_quantizer_options
one_of bpemode unigram bpe char
required "the name of a set, a folder below data/ (required)" train_set valid_set
required "names of sets, folders below data/ (required)" test_sets
required "BACKEND/NAME, such as s3prl/wavlm_large (required)" ${mvq_asr_config:+teacher}
[ ! -x "${python}" ] || without_spaces python
required "a folder" dumpdir expdir
without_spaces dumpdir expdir mvq_dir asr_stats_dir token_list_dir
[ -n "${asr_config}${mvq_asr_config}" ] ||
    refuse "--asr_config and --mvq_asr_config: got none, expected at least one"
for file in ${asr_config} ${mvq_asr_config} "${inference_config}"; do
    [ -f "${file}" ] || refuse "no such configuration: ${file}"
done
. ./path.sh
. ./cmd.sh
check_back_end train_cmd cuda_cmd
# On a cluster, this counts only the cores of this process.
num_threads=${num_threads:-$(OMP_NUM_THREADS='' nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}

data_dir=${dumpdir}/raw
token_dir=${token_list_dir:-data/${lang}_token_list/bpe_${bpemode}${nbpe}}
token_list=${token_dir}/tokens.txt
bpemodel=${token_dir}/bpe.model
mvq_dir=${mvq_dir:-${dumpdir}/mvq/$(teacher_tag "${teacher}" "${layer}" "${teacher_conf}")_cb${num_codebooks}}
quantizer=${mvq_dir}/quantizer.safetensors
stats_dir=${asr_stats_dir:-${expdir}/asr_stats_raw_${lang}_bpe${nbpe}}

# exp_of CONFIG: the experiment folder of a configuration
exp_of() {
    echo "${expdir}/$(experiment_name "$1" "${lang}" "${nbpe}" "${exp_tag}")"
}

# launcher_of CONFIG: the Python command that runs ESPnet for a configuration
launcher_of() {
    [ "$1" = "${asr_config}" ] && echo "${python}" || echo "${python} -m espnet_mvq.run"
}

students="${asr_config} ${mvq_asr_config}"  # configurations, the baseline's first
baseline_exp=${asr_config:+$(exp_of "${asr_config}")}
mvq_exps=()
for config in ${mvq_asr_config}; do
    mvq_exps+=("$(exp_of "${config}")")
done
exps=(${baseline_exp:+"${baseline_exp}"} ${mvq_exps[@]+"${mvq_exps[@]}"})

if runs 1; then
    log "stage 1: Data preparation for data/${train_set}, data/${valid_set} ..."
    # shellcheck disable=SC2086
    local/data.sh ${local_data_opts}
fi

if runs 4; then
    log "stage 4: Format data: data/ -> ${data_dir}"
    for dset in ${train_set} ${valid_set} ${test_sets}; do
        limits=()
        if [[ " ${test_sets} " != *" ${dset} "* ]]; then
            limits=(--min_duration "${min_wav_duration}" --max_duration "${max_wav_duration}")
        fi
        ${python} pyscripts/format_data.py --data_dir "data/${dset}" \
            --outdir "${data_dir}/${dset}" --sample_rate "${sample_rate}" \
            ${limits[@]+"${limits[@]}"}
    done
fi

if runs 5; then
    log "stage 5: Make a token list from ${data_dir}/${train_set}/text"
    ${python} pyscripts/train_bpe.py --text "${data_dir}/${train_set}/text" \
        --nbpe "${nbpe}" --mode "${bpemode}" --outdir "${token_dir}"
fi

# mvq FIRST LAST: run these stages of mvq.sh
mvq() {
    local use_gpu=false quantizer_args=${quantizer_iterations:+--num_iterations ${quantizer_iterations}}
    [ "${ngpu}" -eq 0 ] || use_gpu=true
    options mvq_dir train_set nj num_threads use_gpu python teacher layer teacher_conf \
        num_codebooks max_frames quantizer_hours quantizer_args on_error
    # shellcheck disable=SC2086
    bash "$(${python} -m espnet_mvq --mvq_sh)" --stage "$1" --stop_stage "$2" \
        --datadir "${data_dir}" "${opts[@]}" ${mvq_args}
}

if [ -z "${mvq_asr_config}" ]; then
    skip_stages+=" 6 7 8"
fi

if runs 6; then
    log "stage 6: Train a quantizer on layer ${layer} of ${teacher}"
    mvq 1 2
fi

if runs 7; then
    log "stage 7: Extract codebook indexes of ${train_set}"
    mvq 3 3
fi

if runs 8; then
    log "stage 8: Check the codebook indexes, list them in ${data_dir}/${train_set}"
    mvq 4 4
fi

# Options of statistics and of all trainings
data_opts=(--use_preprocessor true --bpemodel "${bpemodel}" --token_type bpe
    --token_list "${token_list}" --non_linguistic_symbols none --cleaner none --g2p none
    --frontend_conf "fs=${sample_rate}"
    --train_data_path_and_name_and_type "${data_dir}/${train_set}/wav.scp,speech,sound"
    --train_data_path_and_name_and_type "${data_dir}/${train_set}/text,text,text"
    --valid_data_path_and_name_and_type "${data_dir}/${valid_set}/wav.scp,speech,sound"
    --valid_data_path_and_name_and_type "${data_dir}/${valid_set}/text,text,text")

if runs 10; then
    log "stage 10: Collect statistics for all students in ${stats_dir}"
    read -r stats_config _ <<<"${students}"
    launcher=$(launcher_of "${stats_config}")
    logdir=${stats_dir}/logdir
    rm -rf "${logdir}"
    num_valid=$(num_lines "${data_dir}/${valid_set}/wav.scp")
    num_train=$(num_lines "${data_dir}/${train_set}/wav.scp")
    stats_nj=$(min "${nj}" "$(min "${num_train}" "${num_valid}")")
    split_scp "${data_dir}/${train_set}/wav.scp" "${logdir}/train/keys" "${stats_nj}"
    split_scp "${data_dir}/${valid_set}/wav.scp" "${logdir}/valid/keys" "${stats_nj}"
    # shellcheck disable=SC2086
    ${train_cmd} JOB=1:"${stats_nj}" "${logdir}/stats.JOB.log" \
        ${launcher} -m espnet2.bin.asr_train --collect_stats true "${data_opts[@]}" \
        --train_shape_file "${logdir}/train/keys.JOB.scp" \
        --valid_shape_file "${logdir}/valid/keys.JOB.scp" \
        --output_dir "${logdir}/stats.JOB" --config "${stats_config}" ${asr_args} ||
        failed "${logdir}"/stats.*.log
    opts=()
    for job in $(seq "${stats_nj}"); do
        opts+=(--input_dir "${logdir}/stats.${job}")
    done
    ${python} -m espnet2.bin.aggregate_stats_dirs "${opts[@]}" --output_dir "${stats_dir}"
    for dset in train valid; do
        # ESPnet's samplers need "length,vocabulary size".
        awk -v n="$(wc -l <"${token_list}")" '{ print $0 "," n }' \
            "${stats_dir}/${dset}/text_shape" >"${stats_dir}/${dset}/text_shape.bpe"
    done
fi

# train LAUNCHER CONFIG EXP: train one student through ESPnet's launcher
train() {
    local launcher=$1 config=$2 exp=$3
    log "Training ${exp}; log: ${exp}/train.log"
    # The pipe carries nothing; its end tells the watcher that the training has ended.
    {
        # shellcheck disable=SC2086
        OMP_NUM_THREADS=${num_threads} ${python} -m espnet2.bin.launch \
            --cmd "${cuda_cmd} --name $(basename "${exp}")/train.log" \
            --log "${exp}/train.log" --ngpu "${ngpu}" --num_nodes 1 \
            --init_file_prefix "${exp}/.dist_init_" --multiprocessing_distributed true -- \
            ${launcher} -m espnet2.bin.asr_train "${data_opts[@]}" \
            --train_shape_file "${stats_dir}/train/speech_shape" \
            --train_shape_file "${stats_dir}/train/text_shape.bpe" \
            --valid_shape_file "${stats_dir}/valid/speech_shape" \
            --valid_shape_file "${stats_dir}/valid/text_shape.bpe" \
            --normalize global_mvn \
            --normalize_conf "stats_file=${stats_dir}/train/feats_stats.npz" \
            --resume true --output_dir "${exp}" --config "${config}" ${asr_args} \
            >"${exp}/launch.log" 2>&1
    } | {
        ${python} -m espnet_mvq.bin.watch_training --exp "${exp}" \
            ${baseline_exp:+--baseline "${baseline_exp}"} || true
    } || {
        # Without a log, or with that of an earlier training, it was not started.
        if [ ! -f "${exp}/train.log" ] || ended_well "${exp}/train.log"; then
            tail -n 5 "${exp}/launch.log" >&2
        fi
        failed "${exp}/train.log"
    }
}

if runs 11; then
    log "stage 11: Train ${exps[*]}"
    mkdir -p "${exps[@]}"
    for config in ${students}; do
        train "$(launcher_of "${config}")" "${config}" "$(exp_of "${config}")"
    done
fi

inference_tag=$(basename "${inference_config}" .yaml)_asr_model_${inference_asr_model%.*}

# decode LAUNCHER EXP: decode all test sets with one student
decode() {
    local launcher=$1 exp=$2 dset dir logdir jobs job
    for dset in ${test_sets}; do
        dir=${exp}/${inference_tag}/${dset}
        logdir=${dir}/logdir
        log "Decoding ${dir}"
        rm -rf "${logdir}"
        jobs=$(min "${inference_nj}" "$(num_lines "${data_dir}/${dset}/wav.scp")")
        split_scp "${data_dir}/${dset}/wav.scp" "${logdir}/keys" "${jobs}"
        # shellcheck disable=SC2086
        ${train_cmd} JOB=1:"${jobs}" "${logdir}/asr_inference.JOB.log" \
            ${launcher} -m espnet2.bin.asr_inference --ngpu 0 --batch_size 1 \
            --data_path_and_name_and_type "${data_dir}/${dset}/wav.scp,speech,sound" \
            --key_file "${logdir}/keys.JOB.scp" --asr_train_config "${exp}/config.yaml" \
            --asr_model_file "${exp}/${inference_asr_model}" \
            --output_dir "${logdir}/output.JOB" --config "${inference_config}" ||
            failed "${logdir}"/asr_inference.*.log
        for job in $(seq "${jobs}"); do
            cat "${logdir}/output.${job}/1best_recog/text"
        done >"${dir}/text"
    done
}

if runs 12; then
    log "stage 12: Decode ${test_sets}"
    for config in ${students}; do
        decode "$(launcher_of "${config}")" "$(exp_of "${config}")"
    done
fi

if runs 13; then
    log "stage 13: Score"
    for exp in "${exps[@]}"; do
        for dset in ${test_sets}; do
            ${python} pyscripts/score.py --ref "${data_dir}/${dset}/text" \
                --hyp "${exp}/${inference_tag}/${dset}/text" --bpemodel "${bpemodel}" \
                --outdir "${exp}/${inference_tag}/${dset}"
        done
    done
    ${python} pyscripts/results_table.py --exp "${exps[@]}" \
        >"${expdir}/RESULTS.md"
    log "Error rates: ${expdir}/RESULTS.md"
fi

if runs 14; then
    log "stage 14: Report"
    ${python} -m espnet_mvq.bin.report "${exps[@]}" \
        ${baseline_exp:+--baseline "${baseline_exp}"} \
        --output "${expdir}/report.html" --markdown "${expdir}/REPORT.md"
    log "Report: ${expdir}/report.html; its tables: ${expdir}/REPORT.md"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
