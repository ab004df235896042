#!/usr/bin/env bash

# Continual learning with DeCoR (Jiang et al. 2023, arXiv:2305.18441): a student trains on
# one domain after the other, and the recipe measures forgetting. For a new domain, the
# current model turns the domain's audio into indexes. The next model starts from the
# current weights, trains on the new domain alone and predicts those indexes beside its
# task. Training needs neither old audio nor the old model.
#
# Domains are groups of speakers of train_clean_5, each in another condition. Each step of a
# method is a run of asr_mvq.sh. conf/losses contains the options that methods add.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

. utils/common.sh

# General
stage=1             # First stage to run.
stop_stage=6        # Last stage to run.
ngpu=0              # GPUs for teachers and trainings; 0: CPU.
nj=2                # Parallel jobs of extraction, statistics and decoding.
num_threads=        # CPU threads of training and quantizer; empty: all cores.
python=python3      # Python with espnet_mvq.
dumpdir=dump/continual  # Folder of formatted data, codebook indexes and embeddings.
expdir=exp/continual    # Folder of experiments and results.

# Domains
domains="clean telephone fast"  # Conditions of make_domain.py, in order of training.
shares="2 1 1"      # Shares of the training speech.
num_valid=60        # Validation utterances of each domain.
num_test=60         # Test utterances of each domain (ESPnet decodes one per second).
nbpe=100            # Size of the token list, made from the first domain's text.

# Models
methods="finetune decor_utterance decor_frame embedding_kd"
asr_config=conf/train_asr_debug.yaml  # Configuration of all trainings.
first_teacher=transformers/openai/whisper-tiny.en  # Of the first model; empty: none.
first_teacher_layer=3
first_teacher_conf=window_s=0
# Training options of the first model, and of the others
first_args="--max_epoch 8 --batch_bins 500000"
next_args="--max_epoch 4 --optim_conf lr=0.001 --scheduler_conf warmup_steps=50"
inference_config=conf/decode_asr_debug.yaml  # Configuration of decoding.
layer=-1            # Layer of teacher and student, counted from 1; -1: the encoder output.
utterance_codebook_size=64  # decor_utterance: entries of its codebook.
num_codebooks=4     # decor_frame: indexes per frame.

help_message="Usage: $0 [options]   (defaults in brackets)
  --stage N --stop_stage N [${stage} to ${stop_stage}]
     1 corpus, 2 domains, 3 token list and statistics, 4 first model, 5 methods, 6 table
  --methods \"NAME ...\" [${methods}]
  --domains \"NAME ...\" [${domains}] --shares \"N ...\" [${shares}]
  --num_valid N [${num_valid}] --num_test N [${num_test}] --nbpe N [${nbpe}]
  --asr_config YAML [${asr_config}] --inference_config YAML [${inference_config}]
  --first_teacher NAME [${first_teacher}] --first_teacher_layer N [${first_teacher_layer}]
  --first_teacher_conf \"K=V ...\" [${first_teacher_conf}]
  --first_args \"...\" [${first_args}]
  --next_args \"...\" [${next_args}]
  --layer N [${layer}] --num_codebooks N [${num_codebooks}]
  --utterance_codebook_size N [${utterance_codebook_size}]
  --ngpu N [${ngpu}] --nj N [${nj}] --num_threads N [all cores] --python CMD [${python}]
  --dumpdir DIR [${dumpdir}] --expdir DIR [${expdir}]"

log "$0 $*"
. utils/parse_options.sh

stages 1 2 3 4 5 6
whole_number 0 ngpu
whole_number 1 nj ${num_threads:+num_threads} num_valid num_test nbpe num_codebooks
whole_number 2 utterance_codebook_size
whole_number -1 layer first_teacher_layer
required "names of domains" domains
[ ! -x "${python}" ] || without_spaces python
without_spaces dumpdir expdir
. ./path.sh

first=${domains%% *}

# config_of METHOD DOMAIN: the configuration of a method's training on a domain
config_of() {
    local loss=$1
    [ "$2" != "${first}" ] || loss=${first_teacher:+mvq}
    if [ -z "${loss}" ] || [ "${loss}" = finetune ]; then
        echo "${asr_config}"
    else
        echo "${expdir}/conf/$2/$(basename "${asr_config}" .yaml)_${loss}.yaml"
    fi
}

# mvq_dir_of LOSS DOMAIN: the folder of quantizer and arks
mvq_dir_of() {
    echo "${dumpdir}/mvq/$(basename "${expdir}")_$1_$2"
}

# configure LOSS DOMAIN LAYER: write the configuration that adds a loss
configure() {
    ${python} pyscripts/merge_yaml.py --base "${asr_config}" \
        --added "conf/losses/$1.yaml" --out "$(config_of "$1" "$2")" \
        --set layer="$3" train="${dumpdir}/raw/$2_train" \
        quantizer="$(mvq_dir_of "$1" "$2")/quantizer.safetensors"
}

# exp_of METHOD DOMAIN: the experiment folder of a method's training on a domain
exp_of() {
    echo "${expdir}/$(experiment_name "$(config_of "$1" "$2")" en "${nbpe}" "$2")"
}

# asr DOMAIN TEST_SETS OPTIONS...: run stages of asr_mvq.sh on a domain
asr() {
    local domain=$1 test_sets=$2
    shift 2
    ./asr_mvq.sh --train_set "${domain}_train" --valid_set "${domain}_valid" \
        --test_sets "${test_sets}" --nbpe "${nbpe}" --token_list_dir data/continual_tokens \
        --asr_stats_dir "${expdir}/stats_${domain}" --exp_tag "${domain}" \
        --dumpdir "${dumpdir}" --expdir "${expdir}" --asr_config "${asr_config}" \
        --mvq_asr_config "" --inference_config "${inference_config}" --ngpu "${ngpu}" \
        --nj "${nj}" --inference_nj "${nj}" --num_threads "${num_threads}" \
        --python "${python}" "$@"
}

# targets_of METHOD: options of mvq.sh for the method's targets
targets_of() {
    case $1 in
        finetune) ;;
        decor_utterance)
            echo "--level utterance --num_codebooks 1" \
                "--codebook_size ${utterance_codebook_size}"
            ;;
        decor_frame) echo "--num_codebooks ${num_codebooks} --max_frames 40000" ;;
        embedding_kd) echo "--target embeddings" ;;
        *)
            refuse "--methods: got '$1', expected finetune, decor_utterance," \
                "decor_frame or embedding_kd"
            ;;
    esac
}

for method in ${methods}; do
    targets_of "${method}" >/dev/null
done
[ "$(wc -w <<<"${domains}")" -eq "$(wc -w <<<"${shares}")" ] ||
    refuse "--domains and --shares: got '${domains}' and '${shares}', expected one" \
        "share per domain"
[ -z "$(tr ' ' '\n' <<<"${domains}" | sort | uniq -d | tr -d '\n')" ] ||
    refuse_option domains "different domains"

if runs 1; then
    log "stage 1: Prepare the corpus"
    local/data.sh --python "${python}"
fi

if runs 2; then
    log "stage 2: Make the domains ${domains}"
    group=0
    for domain in ${domains}; do
        # shellcheck disable=SC2086
        ${python} local/make_domain.py --data_dir data/train_clean_5 --nj "${nj}" \
            --outdir "data/${domain}_train" --condition "${domain}" \
            --shares ${shares} --group "${group}"
        ${python} local/make_domain.py --data_dir data/dev_clean --nj "${nj}" \
            --outdir "data/${domain}_valid" --condition "${domain}" \
            --max_utterances "${num_valid}"
        ${python} local/make_domain.py --data_dir data/test_clean --nj "${nj}" \
            --outdir "data/${domain}_test" --condition "${domain}" \
            --max_utterances "${num_test}"
        group=$((group + 1))
    done
fi

if runs 3; then
    log "stage 3: Make the token list of ${first} and the statistics of all domains"
    for domain in ${domains}; do
        skipped=5
        [ "${domain}" != "${first}" ] || skipped=
        asr "${domain}" "${domain}_test" --stage 4 --stop_stage 10 --skip_stages "${skipped}"
    done
fi

if runs 4; then
    log "stage 4: Train the first model on ${first}"
    options=()
    if [ -n "${first_teacher}" ]; then
        configure mvq "${first}" "${first_teacher_layer}"
        options=(--asr_config "" --mvq_asr_config "$(config_of mvq "${first}")"
            --teacher "${first_teacher}" --layer "${first_teacher_layer}"
            --teacher_conf "${first_teacher_conf}" --max_frames 40000)
    fi
    asr "${first}" "${first}_test" --stage 6 --stop_stage 13 --skip_stages 10 \
        --asr_args "${first_args}" ${options[@]+"${options[@]}"}
fi

# learn METHOD DOMAIN PREVIOUS TEST_SETS: train on a domain from the previous experiment
learn() {
    local method=$1 domain=$2 previous=$3 test_sets=$4 config mvq_args options=()
    config=$(config_of "${method}" "${domain}")
    if [ "${method}" != finetune ]; then
        configure "${method}" "${domain}" "${layer}"
        mvq_args="$(targets_of "${method}") --index_name ${method}"
        mvq_args+=" --mvq_dir $(mvq_dir_of "${method}" "${domain}")"
        options=(--asr_config "" --mvq_asr_config "${config}" --mvq_args "${mvq_args}"
            --teacher "espnet/${previous}" --layer "${layer}")
    fi
    # The checkpoint includes the statistics of the features. Heads of old targets are not
    # loaded.
    asr "${domain}" "${test_sets}" --stage 6 --stop_stage 13 --skip_stages 10 \
        --asr_args "${next_args} --init_param ${previous}/valid.loss.ave.pth:::mvq." \
        ${options[@]+"${options[@]}"}
}

if runs 5; then
    for method in ${methods}; do
        previous=$(exp_of "${method}" "${first}")
        seen=${first}_test
        for domain in ${domains#"${first}"}; do
            exp=$(exp_of "${method}" "${domain}")
            seen+=" ${domain}_test"
            if [ -f "${exp}/.done" ]; then
                log "stage 5: ${exp} is complete"
            else
                log "stage 5: Train ${method} on ${domain}"
                learn "${method}" "${domain}" "${previous}" "${seen}"
                touch "${exp}/.done"
            fi
            previous=${exp}
        done
    done
fi

if runs 6; then
    log "stage 6: Write ${expdir}/CONTINUAL.md"
    options=()
    for method in ${methods}; do
        options+=(--method "${method}")
        for domain in ${domains}; do
            options+=("$(exp_of "${method}" "${domain}")")
        done
    done
    # shellcheck disable=SC2086
    ${python} local/continual_table.py "${options[@]}" --domains ${domains} \
        --test_sets ${domains// /_test }_test | tee "${expdir}/CONTINUAL.md"
fi

log "Successfully finished. [elapsed=${SECONDS}s]"
