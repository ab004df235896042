#!/usr/bin/env bash

# Extraction of codebook indexes in an ESPnet recipe directory, after the data stages
# (dump/raw/TRAIN_SET/wav.scp exists): select utterances, train a quantizer on a teacher's
# embeddings, extract the codebook indexes of all utterances and check them. Several
# teachers or layers run one after the other; each gets its own set of indexes.
#
# This script needs only pip-installed ESPnet. If the recipe has path.sh and cmd.sh, jobs
# run through ${train_cmd} and ${cuda_cmd}, also on a cluster.

set -euo pipefail

scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=espnet_mvq/scripts/common.sh
. "${scripts}/common.sh"

# Options that are part of the folder's name have their defaults here. Other options stay
# empty and are not passed on; --help shows the defaults of the commands.

# General
stage=1             # First stage to run.
stop_stage=5        # Last stage to run.
nj=4                # Parallel jobs of the extraction; with GPUs, one GPU each.
num_threads=4       # CPU threads for training and measuring the quantizer.
use_gpu=false       # Run teacher and quantizer on GPUs (true or false).
python=${MVQ_PYTHON:-python3}  # Python with espnet_mvq.
datadir=dump/raw    # Parent of the data folders of ESPnet's stages 3 and 4.
featdir=dump/mvq    # Parent of mvq_dir.
mvq_dir=            # Folder of quantizer, arks and logs; empty: named after the teacher.

# Data
train_set=          # Training set, a folder below datadir (required).
dev_set=            # Other sets, separated by spaces, such as the validation set.

# Teacher
teacher=            # s3prl/UPSTREAM[:CHECKPOINT], transformers/NAME_OR_DIR ... (required);
                    # several: separated by spaces.
layer=-1            # Teacher layer, counted from 1; -1: the last. Several: "6 12 18".
teacher_conf=       # Options of the teacher's back end, KEY=VALUE separated by spaces.
dtype=float32       # Precision of the teacher; bfloat16 and float16 are for GPUs.
batch_s=            # Seconds of speech in a batch of the teacher.

# Quantizer
quantizer=          # An existing quantizer; stages 1 and 2 are skipped.
num_codebooks=      # Bytes per teacher frame; empty: 16, or 1 at utterance level.
codebook_size=      # Entries of each codebook.
max_frames=         # Number of training frames of the quantizer.
quantizer_hours=    # Hours of speech that contain these frames; utterance level: inf (all).
quantizer_args=     # More options of espnet_mvq.bin.train_quantizer.
seed=               # Random seed.

# Extraction
target=indexes      # indexes; embeddings: stored as float16; or posteriors of a CTC teacher.
top_k=              # Tokens of a frame that posteriors have one by one; empty: 8.
level=frame         # frame, or utterance: one row per utterance, from its mean (DeCoR).
index_name=         # Name of the scp; empty: codebook_indexes, embeddings or posteriors,
                    # _utterance at that level, and teacher and layer if several are given.
extract_args=       # More options of espnet_mvq.bin.extract.
on_error=           # stop or skip: action for utterances with unusable audio.

help_message="Usage: mvq.sh --train_set NAME --teacher NAME [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 selection of utterances, 2 quantizer, 3 extraction, 4 check, 5 report
  --nj N [${nj}] --num_threads N [${num_threads}] --use_gpu true|false [${use_gpu}]
  --python CMD [${python}]
  --datadir DIR [${datadir}] --featdir DIR [${featdir}] --mvq_dir DIR [named after teacher]
  --train_set NAME --dev_set \"NAME ...\"   below datadir
  --teacher \"NAME ...\" --layer \"N ...\" [${layer}] --teacher_conf \"KEY=VALUE ...\"
  --dtype float32|bfloat16|float16 [${dtype}] --batch_s S
  --num_codebooks N [16] --codebook_size N [256] --max_frames N [160000]
  --quantizer_hours H [2] --quantizer_args \"...\" --seed N [0]
  --quantizer FILE   an existing quantizer; skips stages 1 and 2
  --target indexes|embeddings|posteriors [${target}] --top_k N [8] --index_name NAME
  --level frame|utterance [${level}]   utterance: 1 codebook and all hours by default
  --extract_args \"...\" --on_error stop|skip [stop]"

log "mvq.sh $*"
run_args=("$@")
# shellcheck source=espnet_mvq/scripts/parse_options.sh
. "${scripts}/parse_options.sh"

no_arguments "$@"
stages 1 2 3 4 5
whole_number 1 nj num_threads
whole_number 1 ${top_k:+top_k}
whole_number 2 ${codebook_size:+codebook_size}
[ "${codebook_size:-2}" -le 256 ] || refuse_option codebook_size "2 to 256"
whole_number 0 ${seed:+seed}
number ${batch_s:+batch_s}
check_quantizer_options
one_of use_gpu true false
one_of dtype float32 bfloat16 float16
one_of target indexes embeddings posteriors
one_of level frame utterance
required "a command, such as python3" python
required "a folder" datadir featdir
required "the name of a set, a folder below ${datadir} (required)" train_set
required "BACKEND/NAME, such as s3prl/wavlm_large (required)" teacher
required "numbers of layers" layer
without_spaces featdir mvq_dir
[[ "${train_set}" != *[[:space:]]* ]] || refuse_option train_set "one set"
[[ "${index_name}" != *[/[:space:]]* ]] ||
    refuse_option index_name "a name without slashes and spaces"
read -ra teachers <<<"${teacher}"
for one in "${teachers[@]}"; do
    [[ "${one}" =~ ^[[:alnum:]_]+/. ]] || refuse_option teacher \
        "BACKEND/NAME, such as s3prl/wavlm_large; several: separated by spaces"
done
read -ra layers <<<"${layer}"
for one in "${layers[@]}"; do
    [[ "${one}" =~ ^(-1|0|[1-9][0-9]*)$ ]] ||
        refuse_option layer "numbers from 1 up, 0 (input of the first block) or -1 (last)"
done
read -ra confs <<<"${teacher_conf}"
for one in ${confs[@]+"${confs[@]}"}; do
    [[ "${one}" =~ ^[[:alnum:]_]+=. ]] ||
        refuse_option teacher_conf "KEY=VALUE, several separated by spaces"
done
if [ "${target}" = posteriors ]; then
    [ "${layer}" = -1 ] || refuse_option layer "none (-1) with --target posteriors"
    [ "${level}" = frame ] || refuse_option level "frame with --target posteriors"
fi
if [ -n "${quantizer}" ]; then
    [ "${target}" = indexes ] || refuse_option quantizer "none with --target ${target}"
    [ -f "${quantizer}" ] || refuse_option quantizer "an existing file"
fi

if [ -f path.sh ]; then
    set +u  # ESPnet's path.sh reads variables that may be unset
    # shellcheck source=/dev/null
    . ./path.sh
    set -u
fi
check_python "run 'pip install' there, or choose another Python with --python"
train_cmd=
cuda_cmd=
if [ -f cmd.sh ]; then
    # shellcheck source=/dev/null
    . ./cmd.sh
fi
if "${use_gpu}"; then
    check_back_end cuda_cmd
    read -ra teacher_cmd <<<"${cuda_cmd}"
    ngpu=1
else
    check_back_end train_cmd
    read -ra teacher_cmd <<<"${train_cmd}"
    ngpu=0
fi
if [ ${#teacher_cmd[@]} -eq 0 ]; then
    teacher_cmd=("${py[@]}" -m espnet_mvq.bin.run_jobs)
fi
for dset in ${train_set} ${dev_set}; do
    if [ ! -f "${datadir}/${dset}/wav.scp" ]; then
        refuse "${datadir}/${dset}/wav.scp: no such file; run the recipe's data stages" \
            "first (in ESPnet: --stop_stage 5), or correct --datadir and the set's name"
    fi
    if ! grep -q "[^[:space:]]" "${datadir}/${dset}/wav.scp"; then
        refuse "${datadir}/${dset}/wav.scp: got no utterances, expected at least one; run" \
            "the recipe's data stages again"
    fi
    if [ -e "${datadir}/${dset}/segments" ]; then
        refuse "${datadir}/${dset}/segments: got recordings with segments, expected a" \
            "wav.scp of utterances; ESPnet's stage 3 (format_wav_scp) cuts them into" \
            "dump/raw: give this folder to --datadir"
    fi
done

stem=codebook_indexes
[ "${target}" = indexes ] || stem=${target}
level_tag=
if [ "${level}" = utterance ]; then
    level_tag=_utterance
    quantizer_hours=${quantizer_hours:-inf}
    num_codebooks=${num_codebooks:-1}
fi
num_codebooks=${num_codebooks:-16}
stem+=${level_tag}

if [ $((${#teachers[@]} * ${#layers[@]})) -gt 1 ]; then
    for name in quantizer mvq_dir index_name; do
        [ -z "${!name}" ] || refuse "--${name} is for one teacher and layer; got" \
            "'${teacher}' and '${layer}': run mvq.sh once for each"
    done
    tags=()
    for one in "${teachers[@]}"; do
        for number in "${layers[@]}"; do
            tags+=("$(teacher_tag "${one}" "${number}" "${teacher_conf}" "${dtype}")")
        done
    done
    duplicate=$(printf '%s\n' "${tags[@]}" | sort | uniq -d | head -n 1)
    [ -z "${duplicate}" ] || refuse "--teacher and --layer: got '${teacher}' and" \
        "'${layer}'; two of them would be named ${duplicate}: run mvq.sh once for each," \
        "with --mvq_dir and --index_name"
    count=0
    for one in "${teachers[@]}"; do
        for number in "${layers[@]}"; do
            bash "${BASH_SOURCE[0]}" "${run_args[@]}" --teacher "${one}" \
                --layer "${number}" --index_name "${stem}_${tags[count]}"
            count=$((count + 1))
        done
    done
    exit 0
fi
teacher=${teachers[0]} layer=${layers[0]}
index_name=${index_name:-${stem}}

tag=$(teacher_tag "${teacher}" "${layer}" "${teacher_conf}" "${dtype}")${level_tag}
with_quantizer=false
if [ "${target}" != indexes ]; then
    mvq_dir=${mvq_dir:-${featdir}/${tag}_${target}}
elif [ -n "${quantizer}" ]; then
    mvq_dir=${mvq_dir:-${featdir}/${tag}_$(basename "${quantizer%.*}")}
else
    with_quantizer=true
    mvq_dir=${mvq_dir:-${featdir}/${tag}_cb${num_codebooks}}
    quantizer=${mvq_dir}/quantizer.safetensors
fi
without_spaces mvq_dir
options teacher layer dtype batch_s
teacher_opts=("${opts[@]}" --ngpu "${ngpu}")
for one in ${confs[@]+"${confs[@]}"}; do
    teacher_opts+=(--teacher_conf "${one}")
done

# quantizer_job LOG MODULE OPTIONS...: run a command that uses teacher and quantizer
quantizer_job() {
    # Set in the job: on clusters the job reads ESPnet's path.sh again, which sets one
    # thread. PASSIVE: spinning threads are slow where jobs share cores.
    "${teacher_cmd[@]}" --gpu "${ngpu}" --num-threads "${num_threads}" "$1" \
        env "OMP_NUM_THREADS=${num_threads}" OMP_WAIT_POLICY=PASSIVE \
        "${py[@]}" -m "espnet_mvq.bin.$2" "${teacher_opts[@]}" "${@:3}" || failed "$1"
}

# absolute NAME: print the absolute path of an existing file, folder or BACKEND/PATH; other
# names are printed unchanged
absolute() {
    local backend=
    [[ ! "$1" =~ ^(transformers|espnet|feats)/ ]] || backend=${1%%/*}/
    if [ -e "${1#"${backend}"}" ]; then
        echo "${backend}$(realpath "${1#"${backend}"}")"
    else
        echo "$1"
    fi
}

# record_origin OPTION VALUE...: record in mvq_dir the options it is made with; refuse other
# values if it has a quantizer or an ark, which would be overwritten
record_origin() {
    local file=${mvq_dir}/made_of.txt made previous text=
    made=$(find "${mvq_dir}" ! -name "*.log" \( -name "quantizer.*" -o -name "*.ark*" \) \
        -print -quit 2>/dev/null) || true
    mkdir -p "${mvq_dir}"
    [ ! -f "${file}" ] || text=$(<"${file}")
    while [ $# -gt 0 ]; do
        previous=$(sed -n "s/^$1=//p" <<<"${text}")
        if grep -q "^$1=" <<<"${text}" && [ -n "${made}" ] && [ "$2" != "${previous}" ]; then
            refuse "--$1: got '$2', but ${mvq_dir} was made with '${previous}'; choose" \
                "another folder with --mvq_dir, or delete ${file} if both are the same"
        fi
        text=$(grep -v "^$1=" <<<"${text}" || true; echo "$1=$2")
        shift 2
    done
    # Several runs of mvq.sh may share the folder, so the file is replaced in one step.
    sed "/^$/d" <<<"${text}" >"${file}.tmp$$"
    mv "${file}.tmp$$" "${file}"
}

origin=(teacher "$(absolute "${teacher}")" layer "${layer}"
    teacher_conf "$(printf '%s\n' ${confs[@]+"${confs[@]}"} | sort | paste -sd' ' -)"
    dtype "${dtype}" level "${level}")
if [ "${quantizer}" -ef "${mvq_dir}/quantizer.safetensors" ] || "${with_quantizer}"; then
    # The folder's own quantizer, trained by this run or given by --quantizer
    origin+=(quantizer "the one trained there")
elif [ "${target}" = indexes ]; then
    origin+=(quantizer "$(absolute "${quantizer}")")
fi
record_origin "${origin[@]}"

if "${with_quantizer}" && runs 1; then
    log "stage 1: Select utterances of ${train_set} for the quantizer"
    "${py[@]}" -m espnet_mvq.bin.select_utterances ${seed:+--seed "${seed}"} \
        --data_dir "${datadir}/${train_set}" --outdir "${mvq_dir}/selected" \
        ${quantizer_hours:+--hours "${quantizer_hours}"}
fi

if "${with_quantizer}" && runs 2; then
    log "stage 2: Train ${quantizer} on layer ${layer} of ${teacher}"
    options level num_codebooks codebook_size max_frames seed on_error
    # shellcheck disable=SC2086
    quantizer_job "${mvq_dir}/log/quantizer.log" train_quantizer \
        --wav_scp "${mvq_dir}/selected/wav.scp" --quantizer "${quantizer}" \
        "${opts[@]}" ${quantizer_args}
    grep -h "reconstruction error .* after round" "${mvq_dir}/log/quantizer.log" || true
fi

for dset in ${train_set} ${dev_set}; do
    shard_dir=${mvq_dir}/${dset}
    _nj=$(min "${nj}" "$(num_lines "${datadir}/${dset}/wav.scp")")

    if runs 3; then
        log "stage 3: Extract ${stem} of ${dset} in ${_nj} jobs"
        split_scp "${datadir}/${dset}/wav.scp" "${shard_dir}/split${_nj}/wav" "${_nj}"
        options level target top_k on_error
        if [ "${target}" = indexes ]; then
            opts+=(--quantizer "${quantizer}")
        fi
        if [ -f "${datadir}/${dset}/utt2num_samples" ]; then
            opts+=(--utt2num_samples "${datadir}/${dset}/utt2num_samples")
        fi
        # log/extract.*.log may include logs of an earlier run with more jobs.
        logs=()
        for job in $(seq "${_nj}"); do
            logs+=("${shard_dir}/log/extract.${job}.log")
        done
        # shellcheck disable=SC2086
        "${teacher_cmd[@]}" --gpu "${ngpu}" JOB=1:"${_nj}" \
            "${shard_dir}/log/extract.JOB.log" \
            "${py[@]}" -m espnet_mvq.bin.extract "${teacher_opts[@]}" \
            --wav_scp "${shard_dir}/split${_nj}/wav.JOB.scp" --outdir "${shard_dir}" \
            --job JOB "${opts[@]}" ${extract_args} || failed "${logs[@]}"
    fi

    if runs 4; then
        log "stage 4: Check ${shard_dir}, write ${datadir}/${dset}/${index_name}.scp"
        options target on_error
        "${py[@]}" -m espnet_mvq.bin.combine_indexes --data_dir "${datadir}/${dset}" \
            --shards "${shard_dir}" --nj "${_nj}" --name "${index_name}" "${opts[@]}"
    fi
done

# At utterance level, a report would repeat the results of the quantizer's training.
if [ "${target}${level_tag}" = indexes ] && runs 5; then
    # The quantizer was not trained on utterances of a dev set.
    report_set=${dev_set%% *}
    report_set=${report_set:-${train_set}}
    log "stage 5: Measure the quantizer on ${report_set}"
    quantizer_job "${mvq_dir}/log/inspect.log" inspect_quantizer "${quantizer}" \
        --wav_scp "${datadir}/${report_set}/wav.scp" --output_dir "${mvq_dir}" \
        ${on_error:+--on_error "${on_error}"}
    log "Report: ${mvq_dir}/log/inspect.log and ${mvq_dir}/quantizer_report.json"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
