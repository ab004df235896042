#!/usr/bin/env bash
# MVQ distillation in an unmodified recipe of an ESPnet checkout: run.sh up to stage 5,
# then mvq.sh, then make_config on the recipe's own yaml, then run.sh from stage 6 on.
# Names of sets and options are those that run.sh gives to asr.sh (s2t.sh, slu.sh, st.sh).

set -euo pipefail

scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=espnet_mvq/scripts/common.sh
. "${scripts}/common.sh"

stage=1             # First stage to run.
stop_stage=10000    # Last stage to run.
teacher=            # As in mvq.sh (required).
layer=-1            # Teacher layer.
config=             # yaml of the baseline; empty: the one that run.sh uses.
mvq_args=           # More options of mvq.sh.
config_args=        # More options of espnet_mvq.bin.make_config.
python=${MVQ_PYTHON:-python3}  # Python with espnet_mvq and ESPnet.

help_message="Usage: run_mvq.sh --teacher NAME [options]   in a recipe's folder
  --teacher NAME --layer N [${layer}]   as in mvq.sh
  --config FILE   yaml of the baseline, which is not changed [the one of run.sh]
  --python CMD [${python}]
  --stage N --stop_stage N   stages of run.sh; mvq.sh runs before stage 6:
     6 if the data exist, 7 if codebook indexes of this teacher exist, too
  --mvq_args \"...\"      more options of mvq.sh, such as \"--use_gpu true --nj 2\"
  --config_args \"...\"   more options of make_config, such as \"--layer 8 --weight 0.5\"
Other options are those of run.sh and apply to all of its stages."

run_args=()
while [ $# -gt 0 ]; do
    name=${1#--}
    name=${name//-/_}
    case ${name} in
        help | h | _h) echo "${help_message}"; exit 0 ;;
        teacher | layer | config | mvq_args | config_args | python | stage | stop_stage)
            printf -v "${name}" %s "${2-}" ;;
        *) run_args+=("${@:1:2}") ;;
    esac
    shift $(($# > 1 ? 2 : 1))
done
stages
required "BACKEND/NAME, such as s3prl/wavlm_large (required)" teacher
[[ "${teacher}${layer}" != *[[:space:]]* ]] || refuse_option teacher "one teacher and layer"
for file in run.sh path.sh; do
    [ -e "${file}" ] || refuse "${PWD}: got no ${file}, expected the folder of an ESPnet" \
        "recipe, such as egs2/librispeech_100/asr1; go there first"
done
[ -z "${config}" ] || [ -f "${config}" ] || refuse_option config "an existing file"
set +u  # ESPnet's path.sh reads variables that may be unset
# shellcheck source=/dev/null
. ./path.sh
set -u
check_python "run 'pip install' there"

# espnet CMD...: run.sh with the options of the command line
espnet() { ./run.sh ${run_args[@]+"${run_args[@]}"} "$@"; }

# recipe_option NAME DEFAULT: value that run.sh gives to an option; empty if it is ""
recipe_option() {
    local rest="$2 "
    [[ "${recipe}" != *" --$1 "* ]] || rest="${recipe##* --"$1" } "
    echo "${rest%% *}"
}

# Without stages, asr.sh only logs its options.
recipe=$(espnet --stage 99999 --stop_stage 99999 2>&1) || {
    tail -n 5 <<<"${recipe}" >&2
    refuse "./run.sh: failed before its first stage, see the lines above"
}
recipe=$(sed -n -E 's/.*\) \.?\/?(.*\/)?((asr|s2t|slu|st)\.sh --.*)/\2/p' <<<"${recipe}" |
    head -n 1)
[ -n "${recipe}" ] || refuse "./run.sh: got no call of asr.sh, s2t.sh, slu.sh or st.sh in" \
    "its log, expected a recipe of one of them"
kind=${recipe%%.sh*}
train_set=$(recipe_option train_set "")
[ -z "$(recipe_option speed_perturb_factors "")" ] || train_set+=_sp
datadir=$(recipe_option dumpdir dump)/$(recipe_option feats_type raw)
config=${config:-$(recipe_option "${kind}_config" "")}
[ -f "${config}" ] || refuse "--config: got '${config}', expected the yaml of the baseline"
# ESPnet resumes an experiment of the same name, so the name includes the teacher and the
# options of make_config: "--layer 8 --weight 0.5" as _layer8_weight0.5.
tag=$(basename "${config}" .yaml)_mvq_$(teacher_tag "${teacher}" "${layer}")
tag+=$(sed -E "s/(^| )--/_/g; s/[^A-Za-z0-9.=_-]//g" <<<"${config_args}")
student=$(recipe_option expdir exp)/${kind}_${tag}.yaml

if [ "${stage}" -le 5 ]; then
    espnet --stage "${stage}" --stop_stage "$(min "${stop_stage}" 5)"
fi
[ "${stop_stage}" -gt 5 ] || exit 0
if [ "${stage}" -le 6 ]; then
    # shellcheck disable=SC2086
    MVQ_PYTHON=${python} bash "${scripts}/mvq.sh" --datadir "${datadir}" \
        --train_set "${train_set}" --dev_set "$(recipe_option valid_set "")" \
        --teacher "${teacher}" --layer "${layer}" ${mvq_args}
fi
rm -f "${student}"
# shellcheck disable=SC2086
command=$("${py[@]}" -m espnet_mvq.bin.make_config --asr_config "${config}" \
    --set "${datadir}/${train_set}" --output "${student}" \
    --task "$(recipe_option "${kind}_task" "${kind}")" ${config_args})
# The options after the yaml: the checkpoint of decoding, and streaming
read -ra decoding <<<"--inference_${command#* --inference_}"
# Options of the command line are the last, and win.
./run.sh --python "${python} -m espnet_mvq.run" "--${kind}_config" "${student}" \
    "--${kind}_tag" "${tag}" "${decoding[@]}" ${run_args[@]+"${run_args[@]}"} \
    --stage "$((stage > 6 ? stage : 6))" --stop_stage "${stop_stage}"
