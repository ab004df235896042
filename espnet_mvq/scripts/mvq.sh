#!/usr/bin/env bash

# Codebook indexes of a training set, in any ESPnet recipe directory whose data stages are
# done (dump/raw/TRAIN_SET/wav.scp is there): chooses utterances, trains a quantizer of a
# teacher's embeddings, turns all utterances into codebook indexes and checks them.
# Several teachers or layers are done one after the other, and get a set of indexes each.
#
# It runs on pip-installed ESPnet alone; where the recipe has path.sh and cmd.sh, jobs run
# as ${train_cmd} and ${cuda_cmd} say, on a cluster too.

set -euo pipefail

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}
min() { [ "$1" -le "$2" ] && echo "$1" || echo "$2"; }
SECONDS=0

# General
stage=1             # First stage to run.
stop_stage=5        # Last stage to run.
nj=4                # Parallel jobs of the extraction; with GPUs, one GPU each.
num_threads=4       # CPU threads of the quantizer's training and report.
use_gpu=false       # Teacher and quantizer on GPUs (true or false).
python=${MVQ_PYTHON:-python3}  # Python that espnet_mvq is installed in.
datadir=dump/raw    # Data folders, as ESPnet's stages 3 and 4 leave them.
featdir=dump/mvq    # Below it, a folder for each teacher and layer:
mvq_dir=            # quantizer, arks and logs; empty: named after teacher and layer.

# Data
train_set=          # Training set, a folder below datadir (required).
dev_set=            # More sets that get indexes, separated by spaces, as the validation set.

# Teacher
teacher=            # s3prl/UPSTREAM[:CHECKPOINT], transformers/NAME_OR_DIR ... (required);
                    # several: separated by spaces.
layer=-1            # Teacher layer, counted from 1; -1: the last. Several: "6 12 18".
teacher_conf=       # Options of the teacher's back end, KEY=VALUE separated by spaces.
dtype=float32       # What the teacher computes in; bfloat16 or float16 are for GPUs.
batch_s=            # Seconds of speech that it is given at once; empty: as extract has it.

# Quantizer
quantizer=          # A quantizer that is there already: stages 1 and 2 are left out.
num_codebooks=      # Bytes per teacher frame; empty: 16, or 1 at utterance level.
codebook_size=256   # Entries of each codebook.
max_frames=160000   # Frames the quantizer is trained on.
quantizer_hours=    # Speech they are drawn from, in hours; empty: 2, or all at utterance
                    # level.
quantizer_args=     # More options of espnet_mvq.bin.train_quantizer.
seed=0              # Seed of all that is random.

# Extraction
target=indexes      # indexes, or embeddings: stored as they are (2 bytes a number).
level=frame         # frame, or utterance: one row of each utterance, of its mean (DeCoR).
index_name=         # Name of the scp; empty: codebook_indexes or embeddings, and behind
                    # it _utterance at that level, and teacher and layer where there are
                    # several.
extract_args=       # More options of espnet_mvq.bin.extract.
on_error=stop       # stop or skip: what to do about utterances with unusable audio.

help_message="Usage: mvq.sh --train_set NAME --teacher NAME [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 select utterances for the quantizer, 2 quantizer, 3 extraction, 4 check, 5 report
  --nj N [${nj}] --num_threads N [${num_threads}] --use_gpu true|false [${use_gpu}]
  --python CMD [${python}]
  --datadir DIR [${datadir}] --featdir DIR [${featdir}] --mvq_dir DIR [named after teacher]
  --train_set NAME --dev_set \"NAME ...\"   below datadir
  --teacher \"NAME ...\" --layer \"N ...\" [${layer}] --teacher_conf \"KEY=VALUE ...\"
  --dtype float32|bfloat16|float16 [${dtype}] --batch_s S
  --num_codebooks N [16] --codebook_size N [${codebook_size}] --max_frames N [${max_frames}]
  --quantizer_hours H [2] --quantizer_args \"...\" --seed N [${seed}]
  --quantizer FILE   one that is there already
  --target indexes|embeddings [${target}] --index_name NAME
  --level frame|utterance [${level}]   utterance: 1 codebook and all hours, if not said
  --extract_args \"...\" --on_error stop|skip [${on_error}]"

log "mvq.sh $*"
run_args=("$@")
scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=espnet_mvq/scripts/parse_options.sh
. "${scripts}/parse_options.sh"
# shellcheck source=espnet_mvq/scripts/check_options.sh
. "${scripts}/check_options.sh"

if [ $# -ne 0 ]; then
    log "Error: no positional arguments are taken, got '$*'" >&2
    exit 2
fi
stages 1 2 3 4 5
whole_number 1 nj num_threads ${num_codebooks:+num_codebooks} max_frames
whole_number 2 codebook_size
whole_number 0 seed
[ "${codebook_size}" -le 256 ] || refuse_option codebook_size "2 to 256"
number ${batch_s:+batch_s}
[ "${quantizer_hours}" = inf ] || positive_number ${quantizer_hours:+quantizer_hours}
one_of use_gpu true false
one_of dtype float32 bfloat16 float16
one_of target indexes embeddings
one_of level frame utterance
one_of on_error stop skip
given "a command, such as python3" python
given "a folder" datadir featdir
given "the name of a set, a folder below ${datadir} (required)" train_set
given "BACKEND/NAME, such as s3prl/wavlm_large (required)" teacher
given "numbers of layers" layer
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
if [ -n "${quantizer}" ]; then
    [ "${target}" = indexes ] || refuse_option quantizer "none with --target ${target}"
    [ -f "${quantizer}" ] || refuse_option quantizer "a file that is there"
fi

if [ -f path.sh ]; then
    set +u  # ESPnet's path.sh reads variables that need not be there
    # shellcheck source=/dev/null
    . ./path.sh
    set -u
fi
# A command of several words, or the path of a program, which may have spaces
read -ra py <<<"${python}"
if [ -x "${python}" ]; then
    py=("${python}")
fi
if ! "${py[@]}" -c "import espnet_mvq" 2>/dev/null; then
    log "Error: espnet_mvq is not installed for '${python}': pip install it there, or" \
        "name another one by --python" >&2
    exit 2
fi
train_cmd=
cuda_cmd=
if [ -f cmd.sh ]; then
    # shellcheck source=/dev/null
    . ./cmd.sh
fi
if "${use_gpu}"; then
    read -ra teacher_cmd <<<"${cuda_cmd}"
    ngpu=1
else
    read -ra teacher_cmd <<<"${train_cmd}"
    ngpu=0
fi
if [ ${#teacher_cmd[@]} -eq 0 ]; then
    teacher_cmd=("${py[@]}" -m espnet_mvq.bin.run_jobs)
fi
for dset in ${train_set} ${dev_set}; do
    if [ ! -f "${datadir}/${dset}/wav.scp" ]; then
        log "Error: ${datadir}/${dset}/wav.scp: no such file; run the recipe's data stages" \
            "first (in ESPnet: --stop_stage 5), or correct --datadir and the set's name" >&2
        exit 2
    fi
    if ! grep -q "[^[:space:]]" "${datadir}/${dset}/wav.scp"; then
        log "Error: ${datadir}/${dset}/wav.scp: got no utterances, expected at least one;" \
            "run the recipe's data stages again" >&2
        exit 2
    fi
    if [ -e "${datadir}/${dset}/segments" ]; then
        log "Error: ${datadir}/${dset}/segments: got recordings that are to be cut," \
            "expected a wav.scp of utterances; ESPnet's stage 3 (format_wav_scp) cuts them" \
            "into dump/raw: name its folder by --datadir" >&2
        exit 2
    fi
done

# tag_of TEACHER LAYER: how a folder and an scp are named after them
tag_of() {
    local tag
    tag=$(teacher_tag "$1" "$2" ${confs[@]+"${confs[@]}"})
    [ "${dtype}" = float32 ] || tag+=_${dtype}
    echo "${tag}"
}

stem=codebook_indexes
[ "${target}" = indexes ] || stem=${target}
if [ "${level}" = utterance ]; then
    level_tag=_utterance
    num_codebooks=${num_codebooks:-1}
    quantizer_hours=${quantizer_hours:-inf}
else
    level_tag=
    num_codebooks=${num_codebooks:-16}
    quantizer_hours=${quantizer_hours:-2}
fi
stem+=${level_tag}

if [ $((${#teachers[@]} * ${#layers[@]})) -gt 1 ]; then
    for name in quantizer mvq_dir index_name; do
        if [ -n "${!name}" ]; then
            log "Error: --${name} is of one teacher and layer; got '${teacher}' and" \
                "'${layer}': run mvq.sh once for each" >&2
            exit 2
        fi
    done
    tags=$(for one in "${teachers[@]}"; do
        for number in "${layers[@]}"; do tag_of "${one}" "${number}"; done
    done)
    if [ -n "$(sort <<<"${tags}" | uniq -d)" ]; then
        log "Error: --teacher and --layer: got '${teacher}' and '${layer}', of which two" \
            "would be named $(sort <<<"${tags}" | uniq -d | head -n 1): run mvq.sh once" \
            "for each, with --mvq_dir and --index_name" >&2
        exit 2
    fi
    for one in "${teachers[@]}"; do
        for number in "${layers[@]}"; do
            bash "${BASH_SOURCE[0]}" "${run_args[@]}" --teacher "${one}" \
                --layer "${number}" --index_name "${stem}_$(tag_of "${one}" "${number}")"
        done
    done
    exit 0
fi
teacher=${teachers[0]} layer=${layers[0]} teacher_conf=${confs[*]-}
index_name=${index_name:-${stem}}

tag=$(tag_of "${teacher}" "${layer}")${level_tag}
with_quantizer=true
if [ "${target}" = embeddings ]; then
    with_quantizer=false
    mvq_dir=${mvq_dir:-${featdir}/${tag}_embeddings}
    target_opts=(--target embeddings)
else
    if [ -n "${quantizer}" ]; then
        with_quantizer=false
        mvq_dir=${mvq_dir:-${featdir}/${tag}_$(basename "${quantizer%.*}")}
    else
        mvq_dir=${mvq_dir:-${featdir}/${tag}_cb${num_codebooks}}
        quantizer=${mvq_dir}/quantizer.safetensors
    fi
    target_opts=(--quantizer "${quantizer}")
fi
without_spaces mvq_dir
teacher_opts=(--teacher "${teacher}" --layer "${layer}" --ngpu "${ngpu}" --dtype "${dtype}")
[ -z "${batch_s}" ] || teacher_opts+=(--batch_s "${batch_s}")
for one in ${confs[@]+"${confs[@]}"}; do
    teacher_opts+=(--teacher_conf "${one}")
done

# ESPnet's path.sh, which clusters read again in the job, says one thread. Without it
# each of the parallel jobs would take all cores.
threaded=(env "OMP_NUM_THREADS=${num_threads}")
one_thread=(env OMP_NUM_THREADS=1)

# runs STAGE: whether a stage is asked for
runs() { [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ]; }

# failed LOGS...: show the errors of jobs that failed and end
failed() {
    log "Error: a job failed: $*" >&2
    grep -H -E "ERROR|Error:|error:" "$@" 2>/dev/null | tail -n 5 >&2 ||
        tail -n 12 "$@" >&2
    exit 1
}

# num_lines FILE: its lines, a last one without a line break too
num_lines() { awk 'END { print NR }' "$1"; }

# split_scp FILE DIR N: part the lines of a file, in order, into DIR/wav.1.scp ...
split_scp() {
    mkdir -p "$2"
    awk -v n="$3" -v total="$(num_lines "$1")" -v stem="$2/wav" \
        '{ print > (stem "." int((NR - 1) * n / total) + 1 ".scp") }' "$1"
}

# place_of NAME: a file, a folder or BACKEND/PATH by its absolute path, if it is there
place_of() {
    local backend=
    [[ ! "$1" =~ ^(transformers|espnet|feats)/ ]] || backend=${1%%/*}/
    if [ -e "${1#"${backend}"}" ]; then
        echo "${backend}$(realpath "${1#"${backend}"}")"
    else
        echo "$1"
    fi
}

# remember OPTION VALUE...: keep in the folder which teacher it was made with; refuse another
# one, whose quantizer and indexes would take the place of those that are there
remember() {
    local note=${mvq_dir}/made_of.txt made before text=
    made=$(find "${mvq_dir}" ! -name "*.log" \( -name "quantizer.*" -o -name "*.ark*" \) \
        -print -quit 2>/dev/null) || true
    mkdir -p "${mvq_dir}"
    [ ! -f "${note}" ] || text=$(<"${note}")
    while [ $# -gt 0 ]; do
        before=$(sed -n "s/^$1=//p" <<<"${text}")
        if grep -q "^$1=" <<<"${text}" && [ -n "${made}" ] && [ "$2" != "${before}" ]; then
            log "Error: --$1: got '$2', but ${mvq_dir} was made with '${before}'; choose" \
                "another folder with --mvq_dir, or delete ${note} if both are the same" >&2
            exit 2
        fi
        text=$(grep -v "^$1=" <<<"${text}" || true; echo "$1=$2")
        shift 2
    done
    # At once, and under a name of this process: several mvq.sh may share the folder.
    sed "/^$/d" <<<"${text}" >"${note}.tmp$$"
    mv "${note}.tmp$$" "${note}"
}

facts=(teacher "$(place_of "${teacher}")" layer "${layer}"
    teacher_conf "$(printf '%s\n' ${confs[@]+"${confs[@]}"} | sort | paste -sd' ' -)"
    dtype "${dtype}" level "${level}")
if [ "${quantizer}" -ef "${mvq_dir}/quantizer.safetensors" ] || "${with_quantizer}"; then
    facts+=(quantizer "the one trained there")
elif [ "${target}" = indexes ]; then
    facts+=(quantizer "$(place_of "${quantizer}")")
fi
remember "${facts[@]}"

if "${with_quantizer}" && runs 1; then
    log "stage 1: Speech of ${train_set} for the quantizer, in h: ${quantizer_hours/inf/all}"
    "${py[@]}" -m espnet_mvq.bin.select_utterances --seed "${seed}" \
        --data_dir "${datadir}/${train_set}" --outdir "${mvq_dir}/selected" \
        --hours "${quantizer_hours}"
fi

if "${with_quantizer}" && runs 2; then
    log "stage 2: Quantizer ${quantizer} for layer ${layer} of ${teacher}"
    # shellcheck disable=SC2086
    "${teacher_cmd[@]}" --gpu "${ngpu}" --num-threads "${num_threads}" \
        "${mvq_dir}/log/quantizer.log" "${threaded[@]}" \
        "${py[@]}" -m espnet_mvq.bin.train_quantizer "${teacher_opts[@]}" \
        --wav_scp "${mvq_dir}/selected/wav.scp" --quantizer "${quantizer}" \
        --level "${level}" --num_codebooks "${num_codebooks}" \
        --codebook_size "${codebook_size}" --max_frames "${max_frames}" \
        --seed "${seed}" --on_error "${on_error}" ${quantizer_args} || failed "${mvq_dir}/log/quantizer.log"
    grep -h "reconstruction error .* after round" "${mvq_dir}/log/quantizer.log" || true
fi

for dset in ${train_set} ${dev_set}; do
    shard_dir=${mvq_dir}/${dset}
    _nj=$(min "${nj}" "$(num_lines "${datadir}/${dset}/wav.scp")")

    if runs 3; then
        log "stage 3: ${stem} of ${dset} in ${_nj} jobs"
        split_scp "${datadir}/${dset}/wav.scp" "${shard_dir}/split${_nj}" "${_nj}"
        lengths=()
        if [ -f "${datadir}/${dset}/utt2num_samples" ]; then
            lengths=(--utt2num_samples "${datadir}/${dset}/utt2num_samples")
        fi
        # Those of earlier runs, with more jobs perhaps, say nothing of this one.
        logs=()
        for job in $(seq "${_nj}"); do
            logs+=("${shard_dir}/log/extract.${job}.log")
        done
        # shellcheck disable=SC2086
        "${teacher_cmd[@]}" --gpu "${ngpu}" JOB=1:"${_nj}" \
            "${shard_dir}/log/extract.JOB.log" "${one_thread[@]}" \
            "${py[@]}" -m espnet_mvq.bin.extract "${teacher_opts[@]}" \
            --wav_scp "${shard_dir}/split${_nj}/wav.JOB.scp" "${target_opts[@]}" \
            ${lengths[@]+"${lengths[@]}"} --level "${level}" --outdir "${shard_dir}" \
            --job JOB --on_error "${on_error}" ${extract_args} || failed "${logs[@]}"
    fi

    if runs 4; then
        log "stage 4: Check, then ${datadir}/${dset}/${index_name}.scp"
        "${py[@]}" -m espnet_mvq.bin.combine_indexes --data_dir "${datadir}/${dset}" \
            --shards "${shard_dir}" --nj "${_nj}" --on_error "${on_error}" \
            --target "${target}" --name "${index_name}"
    fi
done

# Vectors of utterances are too few to measure more than their training does.
if [ "${target}${level_tag}" = indexes ] && runs 5; then
    # Utterances the quantizer was not trained on tell most.
    report_set=${dev_set%% *}
    report_set=${report_set:-${train_set}}
    log "stage 5: Report on the quantizer, with speech of ${report_set}"
    # shellcheck disable=SC2086
    "${teacher_cmd[@]}" --gpu "${ngpu}" --num-threads "${num_threads}" \
        "${mvq_dir}/log/inspect.log" "${threaded[@]}" \
        "${py[@]}" -m espnet_mvq.bin.inspect_quantizer "${quantizer}" "${teacher_opts[@]}" \
        --wav_scp "${datadir}/${report_set}/wav.scp" --output_dir "${mvq_dir}" \
        --on_error "${on_error}" ||
        failed "${mvq_dir}/log/inspect.log"
    log "Report: ${mvq_dir}/log/inspect.log, and its numbers in ${mvq_dir}/quantizer_report.json"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
