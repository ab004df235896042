#!/usr/bin/env bash

# MVQ distillation in an unmodified recipe of an ESPnet checkout, in place of its run.sh:
# run.sh up to stage 5 (data), then mvq.sh (codebook indexes), then the recipe's training
# configuration with the MVQ loss, then run.sh from stage 6 on.

set -euo pipefail

scripts=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
# shellcheck source=espnet_mvq/scripts/common.sh
. "${scripts}/common.sh"

stage=1             # First stage to run; 6: data exist; 7: codebook indexes exist, too.
stop_stage=10000    # Last stage to run.
python=${MVQ_PYTHON:-python3}  # Python with espnet_mvq and ESPnet.
teacher=            # Teacher, as of mvq.sh (required).
teacher_conf=       # Options of the teacher's back end.
layer=-1            # Teacher layer, counted from 1; -1: the last.
num_codebooks=      # Bytes per teacher frame.
use_gpu=true        # Extraction on GPUs.
mvq_nj=1            # Parallel jobs of the extraction; with GPUs, one GPU each.
mvq_args=           # More options of mvq.sh.
asr_config=         # The baseline's configuration; empty: that of run.sh.
student_layer=      # Student layer; empty: see make_config.
weight=             # Weight of the MVQ loss.
train_set=          # Training set; empty: that of run.sh, with _sp if it perturbs the speed.

help_message="Usage: run_mvq.sh --teacher NAME [options] [options of run.sh]
  In the folder of an ESPnet recipe. Defaults in brackets.
  --stage N --stop_stage N [${stage} to the last]   those of run.sh; mvq.sh runs before
     stage 6; from --stage 7 on the codebook indexes exist
  --teacher NAME --teacher_conf \"KEY=VALUE ...\" --layer N [${layer}] --num_codebooks N [16]
  --use_gpu true|false [${use_gpu}] --mvq_nj N [${mvq_nj}] --mvq_args \"OPTIONS OF MVQ.SH\"
  --asr_config YAML [that of run.sh] --student_layer N --weight W
  --train_set NAME [that of run.sh, with _sp if it perturbs the speed]
  Other options go to all calls of run.sh."

own_options=" stage stop_stage python teacher teacher_conf layer num_codebooks use_gpu mvq_nj "
own_options+="mvq_args asr_config student_layer weight train_set "
recipe_opts=()
while [ $# -gt 0 ]; do
    name=${1#--}
    name=${name//-/_}
    if [ "$1" = --help ] || [ "$1" = -h ]; then
        echo "${help_message}"
        exit 0
    elif [[ "$1" != --* ]] || [ $# -lt 2 ]; then
        refuse "got '$1', expected options with values, --NAME VALUE"
    elif [[ "${own_options}" == *" ${name} "* ]]; then
        printf -v "${name}" %s "$2"
    else
        recipe_opts+=("$1" "$2")
    fi
    shift 2
done

stages
whole_number 1 mvq_nj ${num_codebooks:+num_codebooks}
one_of use_gpu true false
number ${weight:+weight}
for file in run.sh path.sh; do
    [ -f "${file}" ] || refuse "${PWD}: got no ${file}, expected the folder of an ESPnet" \
        "recipe, such as egs2/librispeech_100/asr1; change to it"
done
required "BACKEND/NAME, such as s3prl/wavlm_large (required)" teacher

# of_run_sh NAME: value of an option or variable in run.sh; empty if there is none
of_run_sh() {
    sed -n -E -e "s/^ *(--)?$1[= ]\"([^\"\$]+)\".*/\2/p;t" \
        -e "s/^ *(--)?$1[= ]([^\"\$ ]+).*/\2/p" run.sh | head -n 1
}

asr_config=${asr_config:-$(of_run_sh asr_config)}
[ -f "${asr_config}" ] || refuse "--asr_config: got '${asr_config}', expected the yaml of a" \
    "training"
data_set=${train_set:-$(of_run_sh train_set)}
[ -n "${data_set}" ] || refuse "--train_set: got none, and run.sh names none; give its name"
factors=$(of_run_sh speed_perturb_factors)
for ((i = 0; i < ${#recipe_opts[@]}; i += 2)); do
    [[ "${recipe_opts[i]}" != --speed[-_]perturb[-_]factors ]] || factors=${recipe_opts[i + 1]}
done
[ -z "${train_set}" ] || recipe_opts+=(--train_set "${train_set}")
[ -z "${factors}" ] || data_set+=_sp

set +u  # ESPnet's path.sh reads variables that may be unset
# shellcheck source=/dev/null
. ./path.sh
set -u
check_python "run 'pip install' there, or choose another Python with --python"

# ESPnet resumes an experiment of the same name, so the name includes the teacher.
tag=$(basename "${asr_config}" .yaml)_mvq_$(teacher_tag "${teacher}" "${layer}" "${teacher_conf}")
config=exp/${tag}.yaml

if [ "${stage}" -le 5 ]; then
    ./run.sh ${recipe_opts[@]+"${recipe_opts[@]}"} --stage "${stage}" \
        --stop_stage "$(min "${stop_stage}" 5)"
fi
[ "${stop_stage}" -gt 5 ] || exit 0
if [ "${stage}" -le 6 ]; then
    options teacher teacher_conf layer num_codebooks use_gpu python
    # shellcheck disable=SC2086
    bash "${scripts}/mvq.sh" --train_set "${data_set}" --nj "${mvq_nj}" "${opts[@]}" ${mvq_args}
fi
rm -f "${config}"
layer=${student_layer}
options layer weight
train_opts=$("${py[@]}" -m espnet_mvq.bin.make_config --asr_config "${asr_config}" \
    --set "dump/raw/${data_set}" --output "${config}" ${opts[@]+"${opts[@]}"})
# shellcheck disable=SC2086
./run.sh --python "${py[*]} -m espnet_mvq.run" ${train_opts} --asr_tag "${tag}" \
    ${recipe_opts[@]+"${recipe_opts[@]}"} \
    --stage "$((stage > 6 ? stage : 6))" --stop_stage "${stop_stage}"
