#!/usr/bin/env bash
# Stages of an overlay's run_mvq.sh in an unmodified recipe of an ESPnet checkout: run.sh up
# to stage 5, then mvq.sh, then run.sh from stage 6 on.

_scripts=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=espnet_mvq/scripts/common.sh
. "${_scripts}/common.sh"

# run_overlay "$@": run the stages with the options of the command line
#
# --stage and --stop_stage override ${stage} and ${stop_stage}. The array mvq_opts has the
# options of mvq.sh, train_opts those of run.sh from stage 6 on, and recipe_opts those of
# run.sh in all stages. Other options of the command line are added to recipe_opts.
run_overlay() {
    while [ $# -gt 0 ]; do
        case $1 in
            --help | -h) sed -n "s/^# //p" "$0" && exec ./run.sh --help ;;
            --stage) stage=${2-} ;;
            --stop[-_]stage) stop_stage=${2-} ;;
            *) recipe_opts+=("${@:1:2}") ;;
        esac
        shift $(($# > 1 ? 2 : 1))
    done
    stages
    [ "${stage}" -gt 5 ] || ./run.sh ${recipe_opts[@]+"${recipe_opts[@]}"} \
        --stage "${stage}" --stop_stage "$(min "${stop_stage}" 5)"
    [ "${stop_stage}" -gt 5 ] || return 0
    [ "${stage}" -gt 6 ] || bash "${_scripts}/mvq.sh" "${mvq_opts[@]}"
    ./run.sh --python "python3 -m espnet_mvq.run" "${train_opts[@]}" \
        ${recipe_opts[@]+"${recipe_opts[@]}"} \
        --stage "$((stage > 6 ? stage : 6))" --stop_stage "${stop_stage}"
}
