#!/usr/bin/env bash
# Refuse values of options that cannot be meant, before anything runs or is written.
#
# To be sourced after parse_options.sh. The functions take the names of options, read the
# shell variables of these names, and end the script with one line on stderr:
#
#   whole_number 1 nj num_threads
#   one_of on_error stop skip

# refuse_option NAME EXPECTED: end the script
refuse_option() {
    local _co_got=${!1}
    echo "$0: Error: --$1: got '${_co_got//$'\n'/ }', expected $2" >&2
    exit 2
}

# given EXPECTED NAME...: refuse options without a value
given() {
    local _co_name
    for _co_name in "${@:2}"; do
        [ -n "${!_co_name}" ] || refuse_option "${_co_name}" "$1"
    done
}

# whole_number MIN NAME...: refuse all but whole numbers from MIN up
whole_number() {
    local _co_name
    for _co_name in "${@:2}"; do
        # Not more digits than bash can count with
        if ! [[ "${!_co_name}" =~ ^(-?[1-9][0-9]{0,17}|0)$ ]] ||
            [ "${!_co_name}" -lt "$1" ]; then
            refuse_option "${_co_name}" "a whole number from $1 up"
        fi
    done
}

# number NAME...: refuse all but decimal numbers from 0 up
number() {
    local _co_name
    for _co_name in "$@"; do
        [[ "${!_co_name}" =~ ^([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][-+]?[0-9]+)?$ ]] ||
            refuse_option "${_co_name}" "a number from 0 up"
    done
}

# positive_number NAME...: refuse all but decimal numbers above 0
positive_number() {
    local _co_name
    for _co_name in "$@"; do
        [[ "${!_co_name}" =~ ^[0-9.]*[1-9] ]] || refuse_option "${_co_name}" "a number above 0"
    done
    number "$@"
}

# one_of NAME VALUE...: refuse all but these values
one_of() {
    local _co_value
    for _co_value in "${@:2}"; do
        [ "${!1}" != "${_co_value}" ] || return 0
    done
    refuse_option "$1" "one of: ${*:2}"
}

# without_spaces NAME...: refuse folders whose path has white space, with which neither
# lists of folders nor run.pl, slurm.pl and queue.pl, whose logs lie there, can do
without_spaces() {
    local _co_name
    for _co_name in "$@"; do
        [[ "${!_co_name}" != *[[:space:]]* ]] ||
            refuse_option "${_co_name}" "a path without spaces"
    done
}

# stages NUMBER...: refuse --stage and --stop_stage unless one of these stages runs
stages() {
    local _co_stage
    whole_number 1 stage stop_stage
    for _co_stage in "$@"; do
        if [ "${stage}" -le "${_co_stage}" ] && [ "${_co_stage}" -le "${stop_stage}" ]; then
            return 0
        fi
    done
    if [ "${stop_stage}" -lt "${stage}" ]; then
        refuse_option stop_stage "no stage before --stage ${stage}"
    fi
    refuse_option stage "one of the stages: $*"
}

# teacher_tag TEACHER LAYER [KEY=VALUE...]: the name of the folder of a teacher and its options,
# of which each gives other embeddings
teacher_tag() {
    local tag option
    tag=$(basename "${1##*:}")_layer$2
    shift 2
    for option in "$@"; do
        tag+=_${option//[^A-Za-z0-9.=_-]/-}
    done
    echo "${tag}"
}
