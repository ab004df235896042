#!/usr/bin/env bash

# Continual learning: a student trains on one domain after the other, and the script measures
# its forgetting. Method: DeCoR (Jiang et al. 2023, arXiv:2305.18441). The current model turns
# the audio of a new domain into indexes. The next model starts from the weights of the
# current one, trains on the new domain and predicts these indexes in addition to its task.
# Old audio and old models are not needed.
#
# Domains are groups of speakers of train_clean_5, each with its own acoustic condition. Each
# step of each method runs asr_mvq.sh; conf/losses has the configurations of the methods.

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
dumpdir=dump/continual  # Formatted data, codebook indexes, embeddings.
expdir=exp/continual    # Experiments and results.

# Domains
domains="clean telephone fast"  # Conditions of make_domain.py, in order.
shares="2 1 1"      # Shares of the training speech.
num_valid=60        # Validation utterances of each domain.
num_test=60         # Test utterances of each domain (ESPnet decodes one in a second).
nbpe=100            # Size of the token list, from the text of the first domain.

# Models
methods="finetune decor_utterance decor_frame embedding_kd"
asr_config=conf/train_asr_debug.yaml  # Configuration of all trainings.
first_teacher=transformers/openai/whisper-tiny.en  # Of the first model; empty: no teacher.
first_teacher_layer=3
first_teacher_conf=window_s=0
first_args="--max_epoch 8 --batch_bins 500000"  # Options of the first training.
# Options of the other trainings
next_args="--max_epoch 4 --optim_conf lr=0.001 --scheduler_conf warmup_steps=50"
inference_config=conf/decode_asr_debug.yaml  # Configuration of decoding.
layer=-1            # Layer of teacher and student, counted from 1; -1: encoder output.
utterance_codebook_size=64  # Entries of the codebook of decor_utterance.
num_codebooks=4     # Indexes per frame of decor_frame.

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

# configure LOSS DOMAIN LAYER: write the configuration that adds a loss
configure() {
    ${python} pyscripts/merge_yaml.py --base "${asr_config}" \
        --added "conf/losses/$1.yaml" --out "$(config_of "$1" "$2")" \
        --set layer="$3" train="${dumpdir}/raw/$2_train" \
        quantizer="${dumpdir}/mvq/$(basename "${expdir}")_$1_$2/quantizer.safetensors"
}

# exp_of METHOD DOMAIN: the experiment after a domain, as asr_mvq.sh names it
exp_of() {
    echo "${expdir}/asr_$(basename "$(config_of "$1" "$2")" .yaml)_raw_en_bpe${nbpe}_$2"
}

# asr DOMAIN TEST_SETS OPTIONS...: stages of asr_mvq.sh on a domain
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

# targets_of METHOD: options of mvq.sh for its targets
targets_of() {
    case $1 in
        finetune) ;;
        decor_utterance)
            echo "--level utterance --num_codebooks 1 --quantizer_hours inf" \
                "--codebook_size ${utterance_codebook_size}"
            ;;
        decor_frame) echo "--num_codebooks ${num_codebooks} --max_frames 40000" ;;
        embedding_kd) echo "--target embeddings" ;;
        *)
            log "Error: --methods: got '$1', expected finetune, decor_utterance," \
                "decor_frame or embedding_kd" >&2
            return 2
            ;;
    esac
}

for method in ${methods}; do
    targets_of "${method}" >/dev/null
done
if [ "$(wc -w <<<"${domains}")" -ne "$(wc -w <<<"${shares}")" ]; then
    log "Error: --domains and --shares: got '${domains}' and '${shares}', expected a" \
        "share for each domain" >&2
    exit 2
fi
if [ -n "$(tr ' ' '\n' <<<"${domains}" | sort | uniq -d | tr -d '\n')" ]; then
    log "Error: --domains: got '${domains}', expected each once" >&2
    exit 2
fi

if runs 1; then
    log "stage 1: Corpus"
    local/data.sh --python "${python}"
fi

if runs 2; then
    log "stage 2: Domains: ${domains}"
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
    log "stage 3: Token list of ${first}, statistics of all domains"
    for domain in ${domains}; do
        skipped=5
        [ "${domain}" != "${first}" ] || skipped=
        asr "${domain}" "${domain}_test" --stage 4 --stop_stage 10 --skip_stages "${skipped}"
    done
fi

if runs 4; then
    log "stage 4: First model, on ${first}"
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

# learn METHOD DOMAIN PREVIOUS TEST_SETS: one step of a method
learn() {
    local method=$1 domain=$2 previous=$3 test_sets=$4 config mvq_args options=()
    config=$(config_of "${method}" "${domain}")
    if [ "${method}" != finetune ]; then
        configure "${method}" "${domain}" "${layer}"
        mvq_args="$(targets_of "${method}") --index_name ${method}"
        mvq_args+=" --mvq_dir ${dumpdir}/mvq/$(basename "${expdir}")_${method}_${domain}"
        options=(--asr_config "" --mvq_asr_config "${config}" --mvq_args "${mvq_args}"
            --teacher "espnet/${previous}" --layer "${layer}")
    fi
    # Statistics of the features are in the weights; predictors of old targets stay away.
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
                log "stage 5: ${exp} is there already"
            else
                log "stage 5: ${method} learns ${domain}"
                learn "${method}" "${domain}" "${previous}" "${seen}"
                touch "${exp}/.done"
            fi
            previous=${exp}
        done
    done
fi

if runs 6; then
    log "stage 6: Table"
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
