#!/usr/bin/env bash
# Tables of many arms (with and without a teacher, few labels, pre-trained) and seeds. The
# same command resumes: finished jobs are skipped, interrupted trainings continue from their
# last epoch. Each experiment keeps the options and the commit with which it was begun.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

. utils/common.sh

stage=1             # First stage to run.
stop_stage=4        # Last stage to run.
nj=2                # Trainings at a time: CPU cores, or GPUs with --ngpu 1.
ngpu=0              # 1: each training runs on a GPU.
python=python3      # Python of everything.
table=local/table.yaml  # Arms.
arms=               # Names of arms, separated by spaces; empty: all of the table.
expdir=exp/table    # Experiments and results; another one for each table and teacher.
teacher=transformers/openai/whisper-base
teacher_conf=window_s=0
language=en         # Language of a multilingual Whisper; empty: an English-only model.
inference_config=conf/decode_asr_debug.yaml
job=                # Internal: number of the one job to run.

help_message="Usage: $0 [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 data, quantizer, indexes, embeddings, 2 subsets, further indexes, advice,
     3 training and decoding of all arms and seeds, 4 report
  --nj N [${nj}]   trainings at a time   --ngpu 0|1 [${ngpu}]   --python CMD [${python}]
  --table YAML [${table}] --arms \"NAME ...\" [all]
  --expdir DIR [${expdir}]   another one for each table and teacher
  --teacher NAME [${teacher}] --teacher_conf \"K=V\" [${teacher_conf}]
  --language NAME [${language}] --inference_config YAML [${inference_config}]"

log "$0 $*"
run_args=("$@")
. utils/parse_options.sh
no_arguments "$@"
stages 1 2 3 4
whole_number 1 nj ${job:+job}
whole_number 0 ngpu
without_spaces expdir
. ./path.sh
. ./cmd.sh

# of NAME: print an option of the table
of() { sed -n "s/^$1: *\([^ #]*\).*/\1/p" "${table}"; }
student=$(of student)
train_set=$(of train_set)
layer=$(of layer)
num_codebooks=$(of num_codebooks)
data=dump/raw/${train_set}
stats_dir=${expdir}/stats   # of train_set; those of subsets: ${stats_dir}_SET
suffix=raw_en_bpe100
inference=$(basename "${inference_config}" .yaml)_asr_model_valid.cer_ctc.ave/test_clean

# recipe OPTIONS...: run.sh with the options that all arms share
recipe() {
    ./run.sh --python "${python}" --expdir "${expdir}" --teacher "${teacher}" \
        --teacher_conf "${teacher_conf}" --layer "${layer}" --nbpe 100 \
        --num_codebooks "${num_codebooks}" --inference_config "${inference_config}" \
        --inference_asr_model valid.cer_ctc.ave.pth "$@"
}

# chosen SCP FILE: print the lines of the file whose utterances are in the scp
chosen() { awk 'NR == FNR { chosen[$1]; next } $1 in chosen' "$1" "$2"; }

# subset HOURS NAME: utterances of the training set with so many hours, the list of the
# others, and their statistics; features are normalised as for the training set
subset() {
    local dir=dump/raw/$2 file
    [ ! -s "${stats_dir}_$2/train/feats_stats.npz" ] || return 0
    log "stage 2: $1 h of ${train_set}: ${dir}"
    ${python} -m espnet_mvq.bin.select_utterances --data_dir "${data}" --outdir "${dir}/chosen" \
        --hours "$1"
    for file in wav.scp text utt2spk utt2num_samples; do
        chosen "${dir}/chosen/wav.scp" "${data}/${file}" >"${dir}/${file}"
    done
    mkdir -p "${stats_dir}_$2/train"
    ln -sfn "../$(basename "${stats_dir}")/valid" "${stats_dir}_$2/valid"
    for file in speech_shape text_shape.bpe; do
        chosen "${dir}/wav.scp" "${stats_dir}/train/${file}" >"${stats_dir}_$2/train/${file}"
    done
    awk 'NR == FNR { chosen[$1]; next } !($1 in chosen) { print $1 }' "${dir}/wav.scp" \
        "${data}/wav.scp" >"${dir}/unlabelled"
    cp "${stats_dir}/train/feats_stats.npz" "${stats_dir}_$2/train/"
}

# mvq OPTIONS...: run mvq.sh for the training set
mvq() {
    local use_gpu=false
    [ "${ngpu}" -eq 0 ] || use_gpu=true
    bash "$(${python} -m espnet_mvq --mvq_sh)" --train_set "${train_set}" --nj "${nj}" \
        --python "${python}" --use_gpu "${use_gpu}" --teacher "${teacher}" \
        --teacher_conf "${teacher_conf}" --layer "${layer}" \
        --num_codebooks "${num_codebooks}" "$@"
}

# begin CONFIG EXP: keep the options and the commit with which an experiment is begun;
# refuse other options for one that was begun already
begin() {
    mkdir -p "$2"
    if [ ! -e "$2/begun_with.yaml" ]; then
        git rev-parse --short HEAD >"$2/commit" 2>/dev/null || true
        cp "$1" "$2/begun_with.yaml"
    fi
    cmp -s "$1" "$2/begun_with.yaml" ||
        refuse "$1: got other options than those with which $2 was begun," \
            "$2/begun_with.yaml; give the arm another name, or delete $2"
}

# pretrain NAME DATADIR TARGET: pre-train an encoder, unless another job has done so
pretrain() {
    local exp=${expdir}/ssl_$1
    mkdir -p "${exp}"
    # The jobs of all arms that start from it wait for the first.
    (
        flock 9
        begin "${expdir}/conf/ssl_$1.yaml" "${exp}"
        [ ! -e "${exp}/trained" ] || exit 0
        ../ssl1/run.sh --stage 2 --stop_stage 2 --python "${python}" --ngpu "${ngpu}" \
            --num_threads 1 --asr1 "${PWD}" \
            --ssl_config "$(realpath "${expdir}")/conf/ssl_$1.yaml" \
            --exp "$(realpath "${exp}")" --train_set "${train_set}" --datadir "$2" \
            --target "$3" --stats_dir "${stats_dir}"
        touch "${exp}/trained"
    ) 9>"${exp}/lock"
}

# start_from NAME CONFIG OUT: the configuration of a student that starts from a trained arm
start_from() {
    mkdir -p "$(dirname "$3")"
    rm -f "$3"
    ${python} -m espnet_mvq.bin.init_student --teacher_exp "${expdir}/asr_$1_${suffix}" \
        --checkpoint valid.cer_ctc.ave.pth --student_config "$2" --output "$3" \
        --token_list data/en_token_list/bpe_unigram100/tokens.txt
}

# posteriors_of NAME: the posteriors of a trained arm, for the whole training set
posteriors_of() {
    mvq --target posteriors --teacher "espnet/${expdir}/asr_$1_${suffix}" \
        --teacher_conf checkpoint=valid.cer_ctc.ave.pth --layer -1 --nj 1
}

# run_job NAME TRAIN_SET CONFIG [KEY VALUES...]: train and decode one arm with one seed; the
# key is one of pretrained, starts_from and posteriors_of
run_job() {
    local exp=${expdir}/asr_$1_${suffix} stats=${stats_dir} configs
    begin "$3" "${exp}"
    [ ! -s "${exp}/${inference}/text" ] || return 0
    case ${4:-} in
    pretrained) pretrain "$5" "$6" "$7" ;;
    posteriors_of) posteriors_of "$5" ;;
    starts_from)
        start_from "$5" "$3" "${expdir}/conf/init/$1.yaml"
        set -- "$1" "$2" "${expdir}/conf/init/$1.yaml"
        ;;
    esac
    [ "$2" = "${train_set}" ] || stats=${stats_dir}_$2
    if grep -q "^model: mvq" "$3"; then
        configs=(--asr_config "" --mvq_asr_config "$3")
    else
        configs=(--asr_config "$3" --mvq_asr_config "")
    fi
    configs+=(--train_set "$2" --asr_stats_dir "${stats}" --num_threads 1 --inference_nj 1
        --ngpu "${ngpu}")
    # ESPnet adds an epoch when it resumes a training that has ended.
    if [ ! -e "${exp}/trained" ]; then
        recipe --stage 11 --stop_stage 11 "${configs[@]}"
        touch "${exp}/trained"
    fi
    recipe --stage 12 --stop_stage 12 "${configs[@]}"
}

if [ -n "${job}" ]; then
    read -r -a fields < <(sed -n "${job}p" "${expdir}/jobs")
    run_job "${fields[@]}"
    exit 0
fi

# All experiments of a folder have one teacher.
mkdir -p "${expdir}"
origin="Teacher: $(basename "${teacher##*:}") (${teacher_conf}), layer ${layer}; "
origin+="${num_codebooks} codebooks."
[ -e "${expdir}/teacher.txt" ] || echo "${origin}" >"${expdir}/teacher.txt"
[ "${origin}" = "$(<"${expdir}/teacher.txt")" ] ||
    refuse "--expdir: got ${expdir} of '$(<"${expdir}/teacher.txt")', expected another" \
        "folder for '${origin}'"

# further_indexes NAME OPTIONS...: a set of indexes of other options, in dump/NAME
further_indexes() {
    local name=$1 set file
    shift
    if [[ "$*" =~ (dump/mvq/faiss_(.*).safetensors) ]] && [ ! -e "${BASH_REMATCH[1]}" ]; then
        ${python} local/faiss_quantizer.py --kind "${BASH_REMATCH[2]}" \
            --feats "${data}/embeddings.scp" --num_codebooks "${num_codebooks}" \
            --out "${BASH_REMATCH[1]}"
    fi
    for set in "${train_set}" dev_clean; do
        mkdir -p "dump/${name}/${set}"
        for file in wav.scp utt2spk utt2num_samples; do
            cp "dump/raw/${set}/${file}" "dump/${name}/${set}/"
        done
    done
    set -- --datadir "dump/${name}" --mvq_dir "dump/mvq/${name}" --dev_set dev_clean "$@"
    mvq "$@" --stop_stage 4
    measure "dump/mvq/${name}" "$@"
}

# measure DIR OPTIONS...: error of a quantizer on speakers that it was not trained on
measure() {
    [ "$1/quantizer_report.json" -nt "$1/quantizer.safetensors" ] ||
        mvq "${@:2}" --stage 5 --dev_set dev_clean
}

if runs 1; then
    log "stage 1: Data, quantizer, codebook indexes, statistics"
    recipe --stage 1 --stop_stage 10 --train_set "${train_set}" --asr_config "${student}" \
        --mvq_asr_config conf/train_asr_debug_mvq.yaml --asr_stats_dir "${stats_dir}" \
        --ngpu "${ngpu}" --mvq_args "--dev_set dev_clean"
    tag=$(teacher_tag "${teacher}" "${layer}" "${teacher_conf}")
    measure "dump/mvq/${tag}_cb${num_codebooks}"
    log "stage 1: Embeddings, stored as float16"
    mvq --target embeddings --dev_set dev_clean
fi

# Jobs are read by their numbers, also those of another run of this script.
if runs 2 || runs 3; then
    exec 8>"${expdir}/lock"
    flock -n 8 || refuse "--expdir: got ${expdir}, in which another run is at work; wait for it"
    num_jobs=$(${python} pyscripts/table_jobs.py --table "${table}" --expdir "${expdir}" \
        ${arms:+--arms ${arms}})
fi

if runs 2; then
    subset 1 train_1h
    subset 0.1667 train_10min
    if ! cmp -s <(grep quantizer_id "${data}/codebook_indexes.json") \
        <(grep quantizer_id "${data}/codebook_indexes_shuffled.json" 2>/dev/null); then
        log "stage 2: Indexes of other utterances"
        ${python} local/shuffle_indexes.py --data_dir "${data}" \
            --outdir "dump/mvq/shuffled_layer${layer}_cb${num_codebooks}"
    fi
    while read -r name options <&3; do
        log "stage 2: Codebook indexes with ${options}"
        # shellcheck disable=SC2086
        further_indexes "${name}" ${options}
    done 3<"${expdir}/indexes"
    if grep -q "^layers:" "${table}" && [ ! -s "${expdir}/advice/advice.json" ]; then
        log "stage 2: Advice on the layers of the teacher"
        # shellcheck disable=SC2086
        ${python} -m espnet_mvq.bin.advise --data_dir "${data}" --teacher "${teacher}" \
            --teacher_conf ${teacher_conf} --output_dir "${expdir}/advice"
    fi
    if cut -d " " -f 3 "${expdir}/jobs" | xargs grep -q teacher_loss; then
        log "stage 2: Losses of the teacher"
        ${python} -m espnet_mvq.bin.teacher_loss --data_dir "${data}" \
            --teacher "${teacher}" ${language:+--teacher_conf language="${language}"}
    fi
fi

if runs 3; then
    log "stage 3: ${num_jobs} students, ${nj} at a time; logs: ${expdir}/log/"
    # shellcheck disable=SC2086
    ${cuda_cmd} --gpu "${ngpu}" --max-jobs-run "${nj}" JOB=1:"${num_jobs}" \
        "${expdir}/log/JOB.log" ./run_table.sh ${run_args[@]+"${run_args[@]}"} --job JOB ||
        failed "${expdir}"/log/*.log
    if [ ! -s "${expdir}/teacher/text" ]; then
        log "stage 3: Errors of the teacher itself"
        ${python} local/teacher_text.py --teacher "${teacher}" --language "${language}" \
            --data_dir dump/raw/test_clean --outdir "${expdir}/teacher" --ngpu "${ngpu}"
    fi
fi

if runs 4; then
    log "stage 4: Report"
    ${python} pyscripts/table_report.py --table "${table}" --expdir "${expdir}" \
        --suffix "${suffix}" --inference "${inference}" --ref dump/raw/test_clean/text \
        --out "${expdir}/RESULTS.md" --figure "${expdir}/curves.png" \
        --note "${origin}"
    log "Tables: ${expdir}/RESULTS.md"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
