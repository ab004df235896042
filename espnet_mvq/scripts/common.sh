#!/usr/bin/env bash
# Functions of mvq.sh and the recipes: log lines, stages, option checks, names of folders.
# Source it before the options get their defaults, and parse_options.sh after them.

SECONDS=0
unset skip_stages  # `runs` must not read it from the environment.

# --- log and files

log() {
    local fname=${BASH_SOURCE[1]##*/}
    echo -e "$(date '+%Y-%m-%dT%H:%M:%S') (${fname}:${BASH_LINENO[0]}:${FUNCNAME[1]}) $*"
}

min() { [ "$1" -le "$2" ] && echo "$1" || echo "$2"; }

# num_lines FILE: number of lines; the last line may have no line break
num_lines() { awk 'END { print NR }' "$1"; }

# split_scp FILE STEM N: split the lines into STEM.1.scp ... STEM.N.scp; the order is kept
split_scp() {
    mkdir -p "$(dirname "$2")"
    awk -v n="$3" -v total="$(num_lines "$1")" -v stem="$2" \
        '{ print > (stem "." int((NR - 1) * n / total) + 1 ".scp") }' "$1"
}

# ended_well LOG: whether the end of a job's log says so, as run_jobs, run.pl and ssh.pl
# ("Ended"), or slurm.pl, queue.pl and pbs.pl ("Finished") write it
ended_well() {
    tail -n 10 "$1" 2>/dev/null |
        grep -qE "^# (Ended \(code 0\) at|Finished at .* with status 0$)"
}

# scheduler_log LOG: the file in which slurm.pl and queue.pl keep the scheduler's messages
# about the job of a log; all jobs of an array have the same
scheduler_log() {
    local dir name
    dir=$(dirname "$1") name=$(basename "$1")
    dir=${dir%/log}/q
    [ -f "${dir}/${name}" ] || name=$(sed -E "s/[.]?[0-9]+([.][a-z]+)$/\1/" <<<"${name}")
    [ ! -f "${dir}/${name}" ] || echo "${dir}/${name}"
}

# cause LOG: print the errors of a job that did not end well
cause() {
    local job queue
    if [ ! -f "$1" ]; then
        echo "$1: no such file, the job did not start"
        return
    fi
    job=$(sed -n "s/^# SLURM_JOB_ID=//p" "$1")
    queue=$(scheduler_log "$1")
    if [ -n "${job}" ] && squeue -h -j "${job}" 2>/dev/null | grep -q .; then
        echo "$1: still runs, as Slurm job ${job}; wait for it, or end it with scancel"
    elif grep -H -E "ERROR|Error:|error:" "$1" | tail -n 3 | grep .; then
        return  # It printed the errors.
    elif [ -n "${job}" ] && [ -n "${queue}" ] &&
        grep -E "(JOB |StepId=)${job}[^0-9]" "${queue}" | sed "s:^:$1\: :" | grep .; then
        return
    elif ! grep -E "^# (Ended|Finished) " "$1" | tail -n 1 | sed "s:^:$1\: :" | grep .; then
        echo "$1: has no end, the job was killed${queue:+; see ${queue}}"
    fi
}

# failed LOG...: print the errors of the jobs that did not end well, and end the script
failed() {
    local file bad=()
    for file in "$@"; do
        ended_well "${file}" || bad+=("${file}")
    done
    if [ ${#bad[@]} -eq 0 ]; then
        log "Error: the jobs could not be started; the messages above give the cause" >&2
        exit 1
    fi
    log "Error: ${#bad[@]} of $# jobs did not end well" >&2
    for file in "${bad[@]:0:20}"; do
        cause "${file}" >&2
    done
    [ ${#bad[@]} -le 20 ] || echo "... and $((${#bad[@]} - 20)) more" >&2
    log "Remove the cause and run the same command again: it resumes" >&2
    exit 1
}

# --- stages

# runs STAGE: true if the stage is between --stage and --stop_stage and not skipped
runs() {
    [ "${stage}" -le "$1" ] && [ "${stop_stage}" -ge "$1" ] &&
        ! [[ " ${skip_stages-} " =~ [[:space:]]$1[[:space:]] ]]
}

# stages [NUMBER...]: end the script if --stop_stage is before --stage, or if none of these
# stages would run
stages() {
    local _co_stage
    whole_number 1 stage stop_stage
    [ "${stop_stage}" -ge "${stage}" ] ||
        refuse_option stop_stage "no stage before --stage ${stage}"
    [ $# -gt 0 ] || return 0
    for _co_stage in "$@"; do
        if [ "${stage}" -le "${_co_stage}" ] && [ "${_co_stage}" -le "${stop_stage}" ]; then
            return 0
        fi
    done
    refuse_option stage "one of the stages: $*"
}

# --- option checks: NAME is an option and the shell variable of its value. A failed check
# ends the script with one line on stderr, before anything runs or is written.

# refuse MESSAGE...: end the script with an error
refuse() {
    echo "$0: Error: $*" >&2
    exit 2
}

# refuse_option NAME EXPECTED: end the script with the value of an option
refuse_option() {
    local _co_got=${!1}
    refuse "--$1: got '${_co_got//$'\n'/ }', expected $2"
}

# no_arguments "$@": refuse positional arguments
no_arguments() {
    [ $# -eq 0 ] || refuse "expected no positional arguments, got '$*'"
}

# required EXPECTED NAME...: refuse empty values
required() {
    local _co_name
    for _co_name in "${@:2}"; do
        [ -n "${!_co_name}" ] || refuse_option "${_co_name}" "$1"
    done
}

# whole_number MIN NAME...: accept only whole numbers from MIN up
whole_number() {
    local _co_name
    for _co_name in "${@:2}"; do
        # Integers of bash overflow with more digits.
        if ! [[ "${!_co_name}" =~ ^(-?[1-9][0-9]{0,17}|0)$ ]] ||
            [ "${!_co_name}" -lt "$1" ]; then
            refuse_option "${_co_name}" "a whole number from $1 up"
        fi
    done
}

# number NAME...: accept only decimal numbers from 0 up
number() {
    local _co_name
    for _co_name in "$@"; do
        [[ "${!_co_name}" =~ ^([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?$ ]] ||
            refuse_option "${_co_name}" "a number from 0 up"
    done
}

# one_of NAME VALUE...: accept only these values
one_of() {
    local _co_value
    for _co_value in "${@:2}"; do
        [ "${!1}" != "${_co_value}" ] || return 0
    done
    refuse_option "$1" "one of: ${*:2}"
}

# without_spaces NAME...: refuse paths with white space, which lists of folders and the logs
# of run.pl, slurm.pl and queue.pl do not support
without_spaces() {
    local _co_name
    for _co_name in "$@"; do
        [[ "${!_co_name}" != *[[:space:]]* ]] ||
            refuse_option "${_co_name}" "a path without spaces"
    done
}

# check_quantizer_options: refuse bad values of the quantizer options that mvq.sh and
# asr_mvq.sh share; empty options are not passed on
check_quantizer_options() {
    whole_number 1 ${num_codebooks:+num_codebooks} ${max_frames:+max_frames}
    if [ -n "${quantizer_hours}" ] && [ "${quantizer_hours}" != inf ]; then
        [[ "${quantizer_hours}" =~ ^[0-9.]*[1-9] ]] ||
            refuse_option quantizer_hours "a number above 0"
        number quantizer_hours
    fi
    [ -z "${on_error}" ] || one_of on_error stop skip
}

# --- commands

# options NAME...: set the array opts to "--NAME VALUE" of all options with a value; the
# command's own defaults apply to the others
options() {
    local _co_name
    opts=()
    for _co_name in "$@"; do
        [ -z "${!_co_name}" ] || opts+=("--${_co_name}" "${!_co_name}")
    done
}

# check_python ADVICE: set the array py to the words of --python; end the script if this
# Python does not have espnet_mvq
check_python() {
    # --python is a command of several words, or a path that may have spaces.
    read -ra py <<<"${python}"
    [ ! -x "${python}" ] || py=("${python}")
    "${py[@]}" -c "import espnet_mvq" 2>/dev/null ||
        refuse "espnet_mvq is not installed for '${python}': $1"
}

# check_back_end NAME...: end the script if a command of cmd.sh needs a program that is not
# installed
check_back_end() {
    local _co_name _co_program _co_scheduler
    for _co_name in "$@"; do
        read -r _co_program _ <<<"${!_co_name}"
        case ${_co_program##*/} in
            slurm*.pl) _co_scheduler="sbatch" ;;
            queue*.pl | pbs*.pl) _co_scheduler="qsub" ;;
            ssh*.pl) _co_scheduler="ssh" ;;
            *) _co_scheduler= ;;
        esac
        for _co_program in ${_co_program} ${_co_scheduler}; do
            command -v "${_co_program}" >/dev/null || refuse "cmd.sh: ${_co_name} is" \
                "'${!_co_name}', but ${_co_program} is not installed here; install it, add" \
                "its folder to PATH in path.sh, or choose another command in cmd.sh"
        done
    done
}

# --- names

# teacher_tag TEACHER LAYER ["KEY=VALUE ..." [DTYPE]]: folder name of a teacher, with all
# options that change its embeddings
teacher_tag() {
    local tag option options
    tag=$(basename "${1##*:}")_layer$2
    read -ra options <<<"${3-}"
    for option in ${options[@]+"${options[@]}"}; do
        tag+=_${option//[^A-Za-z0-9.=_-]/-}
    done
    [ "${4:-float32}" = float32 ] || tag+=_$4
    echo "${tag}"
}

# experiment_name CONFIG LANG NBPE [TAG]: folder name of a student's experiment
experiment_name() {
    echo "asr_$(basename "$1" .yaml)_raw_$2_bpe$3${4:+_$4}"
}
