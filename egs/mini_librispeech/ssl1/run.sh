#!/usr/bin/env bash
# Pre-training of an encoder on speech alone: masked prediction of the codebook indexes of a
# teacher. Then fine-tuning with CTC on texts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

. utils/common.sh

stage=1             # First stage to run.
stop_stage=3        # Last stage to run.
ngpu=0              # 1: train on a GPU.
nj=2                # Parallel jobs of the extraction.
num_threads=        # CPU threads of a training; empty: all cores.
python=python3      # Python with espnet_mvq.
asr1=../asr1        # Recipe with the data, and for fine-tuning.
datadir=dump/raw    # Parent of the data folders, below asr1.
train_set=train_clean_5
valid_set=dev_clean
stats_dir=exp/asr_stats_raw_en_bpe100  # Statistics of the features, below asr1.
target=codebook_indexes  # Data to predict: codebook_indexes or embeddings.
ssl_config=conf/pretrain_mvq.yaml
exp=                # Experiment; empty: exp/ and the configuration's name.
teacher=transformers/openai/whisper-base
teacher_conf=window_s=0
layer=5             # Teacher layer, counted from 1.
num_codebooks=8     # Bytes per teacher frame.
asr_config=conf/train_asr_small.yaml  # Student to fine-tune, below asr1.
asr_args=           # More options of the fine-tuning.

help_message="Usage: $0 [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 data, codebook indexes, statistics, 2 pre-training, 3 fine-tuning and decoding
  --ngpu 0|1 [${ngpu}] --nj N [${nj}] --num_threads N [all cores] --python CMD [${python}]
  --ssl_config YAML [${ssl_config}] --exp DIR [named after the configuration]
  --target codebook_indexes|embeddings [${target}] --datadir DIR [${datadir}]
  --train_set NAME [${train_set}] --valid_set NAME [${valid_set}] --stats_dir DIR [${stats_dir}]
  --teacher NAME [${teacher}] --teacher_conf \"K=V\" [${teacher_conf}] --layer N [${layer}]
  --num_codebooks N [${num_codebooks}]
  --asr_config YAML [${asr_config}] --asr_args \"...\""

log "$0 $*"
. utils/parse_options.sh
no_arguments "$@"
stages 1 2 3
whole_number 0 ngpu
whole_number 1 nj num_codebooks ${num_threads:+num_threads}
whole_number -1 layer
one_of target codebook_indexes embeddings
[ -f "${ssl_config}" ] || refuse "no such configuration: ${ssl_config}"
. ./path.sh
. ./cmd.sh
num_threads=${num_threads:-$(OMP_NUM_THREADS='' nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)}
exp=${exp:-exp/$(basename "${ssl_config}" .yaml)}

# recipe OPTIONS...: run.sh of asr1
recipe() {
    (cd "${asr1}" && ./run.sh --python "${python}" --ngpu "${ngpu}" --nj "${nj}" \
        --num_threads "${num_threads}" --train_set "${train_set}" --nbpe 100 \
        --teacher "${teacher}" --teacher_conf "${teacher_conf}" --layer "${layer}" \
        --num_codebooks "${num_codebooks}" --asr_stats_dir "${stats_dir}" \
        --asr_config "${asr_config}" "$@")
}

if runs 1; then
    log "stage 1: Data, codebook indexes, statistics"
    recipe --stage 1 --stop_stage 10 --mvq_asr_config conf/train_asr_debug_mvq.yaml \
        --mvq_args "--dev_set ${valid_set}"
fi

if runs 2; then
    log "stage 2: Pre-train ${exp}; log: ${exp}/train.log"
    ssl_config=$(realpath "${ssl_config}")
    mkdir -p "${exp}"
    exp=$(realpath "${exp}")
    cd "${asr1}"
    data_opts=()
    for set in train valid; do
        name=${set}_set
        raw=dump/raw/${!name}
        data_opts+=("--${set}_data_path_and_name_and_type" "${raw}/wav.scp,speech,sound"
            "--${set}_data_path_and_name_and_type"
            "${datadir}/${!name}/${target}.scp,${target},mvq_ark"
            "--${set}_shape_file" "${stats_dir}/${set}/speech_shape")
    done
    OMP_NUM_THREADS=${num_threads} ${python} -m espnet2.bin.launch \
        --cmd "${cuda_cmd} --name $(basename "${exp}")/train.log" \
        --log "${exp}/train.log" --ngpu "${ngpu}" --num_nodes 1 \
        --init_file_prefix "${exp}/.dist_init_" --multiprocessing_distributed true -- \
        ${python} -m espnet_mvq.run -m espnet2.bin.ssl_train "${data_opts[@]}" \
        --normalize global_mvn \
        --normalize_conf "stats_file=${stats_dir}/train/feats_stats.npz" \
        --resume true --output_dir "${exp}" --config "${ssl_config}" \
        >"${exp}/launch.log" 2>&1 || failed "${exp}/train.log"
    cd - >/dev/null
fi

if runs 3; then
    log "stage 3: Fine-tune ${asr_config}"
    recipe --stage 11 --stop_stage 13 --mvq_asr_config "" --exp_tag "$(basename "${exp}")" \
        --inference_config conf/decode_asr_debug.yaml \
        --asr_args "--init_param $(realpath "${exp}")/latest.pth:encoder:encoder ${asr_args}"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
