#!/usr/bin/env bash

# An unmodified recipe of an ESPnet checkout with MVQ distillation: the data stages of
# egs2/mini_an4/asr1, mvq.sh through the checkout's own run.pl, ESPnet's statistics,
# training on one and on two ranks, decoding, export, and decoding and packing of the
# exported model by plain ESPnet. Then a transducer up to its export, and the recipes st1
# and s2t1 up to the training.
#
# Usage: tests/integration/espnet_checkout.sh ESPNET_DIR
#
# The recipe is copied, file by file as it is, to egs2/mini_an4/asr1_espnet_mvq, and runs
# there with the python3 of the path, which must have espnet_mvq[s3prl]. No network is
# needed. Where there is no sph2pipe, soundfile stands in for it. The checkout must fit
# the installed ESPnet: its scripts import espnet's modules.

set -euo pipefail

if [ $# -ne 1 ] || [ ! -d "$1/egs2/mini_an4/asr1" ]; then
    echo "Usage: $0 ESPNET_DIR   (a checkout of ESPnet, with egs2/mini_an4)" >&2
    exit 2
fi
root=$(cd "$(dirname "$0")/../.." && pwd)
espnet=$(cd "$1" && pwd)
recipe=${espnet}/egs2/mini_an4/asr1_espnet_mvq
rm -rf "${recipe}"
cp -a "${espnet}/egs2/mini_an4/asr1" "${recipe}"
export PATH=${PATH}:${root}/tests/integration/stand_ins
cd "${recipe}"

# ESPnet's own stages: data, format, token list
./run.sh --stop_stage 5 --use_lm false

# The corpus has a handful of utterances, so the codebooks are small.
teacher=(--teacher "s3prl/hf_hubert_custom:${root}/egs/demo/asr1/teacher" --layer 4
    --mvq_args "--nj 2 --num_codebooks 4 --codebook_size 16")
run_mvq=(bash "$(dirname "$(python3 -m espnet_mvq --mvq_sh)")/run_mvq.sh" "${teacher[@]}"
    --ngpu 0)
config=conf/train_asr_transformer_debug.yaml
train=(--use_lm false --config "${config}" --inference_config conf/decode_asr_debug.yaml)
"${run_mvq[@]}" "${train[@]}" --stage 6 --stop_stage 12

# It was ESPnet's run.pl that ran the jobs: its logs end so.
grep -q "^# Accounting: time=" dump/mvq/*/train_nodev/log/extract.1.log
diff <(cut -d " " -f 1 dump/raw/train_nodev/wav.scp) \
    <(cut -d " " -f 1 dump/raw/train_nodev/codebook_indexes.scp)

exp=exp/asr_train_asr_transformer_debug_mvq_teacher_layer4
grep -q "loss_mvq" "${exp}/train.log"

# The same training on two ranks: the command that ESPnet ran, as its log has it. The
# validation set has one utterance, too few for two ranks.
command=$(sed -n "1s/^# //p" "${exp}/train.log")
command=${command//raw\/train_dev/raw\/train_nodev}
command=${command//\/valid\//\/train\/}
command=${command/--output_dir ${exp}/--output_dir ${exp}_2ranks}
for rank in 0 1; do
    # shellcheck disable=SC2086
    GLOO_SOCKET_IFNAME=lo ${command} --dist_backend gloo --dist_world_size 2 \
        --dist_rank "${rank}" --dist_init_method "file://${PWD}/${exp}_2ranks.init" \
        >"${exp}_2ranks.${rank}.log" 2>&1 &
    ranks[rank]=$!
done
for rank in 0 1; do
    if ! wait "${ranks[rank]}"; then
        tail "${exp}_2ranks.${rank}.log"
        exit 1
    fi
done
grep -q "loss_mvq" "${exp}_2ranks.0.log"

# The exported model needs no plugin: from here on plain python3, the plugin blocked
python3 -m espnet_mvq.bin.export --asr_exp "${exp}" --output_dir "${exp}_exported"
mkdir -p blocked/espnet_mvq
echo "raise ImportError('espnet_mvq is blocked here')" >blocked/espnet_mvq/__init__.py
PYTHONPATH=${PWD}/blocked ./run.sh --stage 12 --stop_stage 12 --use_lm false --ngpu 0 \
    --asr_exp "${exp}_exported" --inference_asr_model valid.acc.ave.pth \
    --inference_config conf/decode_asr_debug.yaml
# Stage 13, scoring, would write it, but needs sclite.
touch "${exp}_exported/RESULTS.md"
PYTHONPATH=${PWD}/blocked ./run.sh --stage 14 --stop_stage 14 --use_lm false \
    --skip_packing false --asr_exp "${exp}_exported" \
    --inference_asr_model valid.acc.ave.pth
# The same words
for text in "${exp}"/decode_*/*/text "${exp}"/decode_*/org/*/text; do
    diff "${text}" "${text/${exp}/${exp}_exported}"
done
ls "${exp}_exported"/*.zip

# A transducer; torchaudio's loss stands in where warp-transducer is not built.
python3 -c "import warprnnt_pytorch" 2>/dev/null ||
    export PYTHONPATH=${root}/tests/integration/stand_ins
"${run_mvq[@]}" --use_lm false --config conf/train_asr_transducer_debug.yaml --stage 7 \
    --stop_stage 12 --inference_config conf/decode_asr_debug.yaml
exp=exp/asr_train_asr_transducer_debug_mvq_teacher_layer4
grep -q "loss_mvq" "${exp}/train.log"
python3 -m espnet_mvq.bin.export --asr_exp "${exp}"
unset PYTHONPATH

diff -rq "${espnet}/egs2/mini_an4/asr1" "${recipe}" | grep -v "^Only in" && exit 1

# Recipes of other tasks, from the data to the training
for task in st s2t; do
    copy=${espnet}/egs2/mini_an4/${task}1_espnet_mvq
    rm -rf "${copy}"
    cp -a "${espnet}/egs2/mini_an4/${task}1" "${copy}"
    cd "${copy}"
    "${run_mvq[@]}" --use_lm false --stop_stage 11 "--${task}_args" "--max_epoch 1"
    grep -q "loss_mvq" exp/*_mvq_*/train.log
done
echo "espnet_checkout.sh: all of it works with ${espnet}"
