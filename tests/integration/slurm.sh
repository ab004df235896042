#!/usr/bin/env bash

# mvq.sh on a running Slurm, through slurm.pl of an ESPnet checkout: an array of four jobs with
# a fault in each, the same command again, and a training on two nodes.
#
# Usage: tests/integration/slurm.sh ESPNET_DIR WORK_DIR
#
# ESPNET_DIR: a checkout of ESPnet with slurm.pl in egs2/TEMPLATE/asr1/utils.
# WORK_DIR: a new folder on a file system that all nodes share.
#
# Jobs run in the default partition with the python3 of the path, which must have
# espnet_mvq[s3prl]. No GPU and no network are needed. It takes about 12 minutes, and longer
# where Slurm keeps ended jobs longer (MinJobAge). A node is set down only by a user with
# the right to do so, if no other user has a job there. Set GLOO_SOCKET_IFNAME if the two
# ranks of the training must use a certain network interface.

set -euo pipefail

if [ $# -ne 2 ] || [ ! -d "$1/egs2/TEMPLATE/asr1" ] || [ -e "$2" ]; then
    echo "Usage: $0 ESPNET_DIR WORK_DIR   (a checkout of ESPnet, a new folder)" >&2
    exit 2
fi
utils=$(cd "$1/egs2/TEMPLATE/asr1" && pwd)/utils
conf=${utils%/utils}/conf/slurm.conf
[ -x "${utils}/slurm.pl" ] || utils=${utils}/parallel
if [ ! -x "${utils}/slurm.pl" ] || [ ! -f "${conf}" ]; then
    echo "$0: Error: $1/egs2/TEMPLATE/asr1: no utils/slurm.pl or no conf/slurm.conf" >&2
    exit 2
fi
sinfo >/dev/null || { echo "$0: Error: sinfo finds no running Slurm" >&2; exit 2; }
root=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$2"
work=$(cd "$2" && pwd)
recipe=${work}/egs/demo/asr1

step() { echo "== $(date +%T) slurm.sh: $*"; }
fail() { echo "slurm.sh: Error: $*" >&2; exit 1; }
# wait_for S COMMAND...: wait until the command succeeds, at most S seconds
wait_for() {
    local end=$((SECONDS + $1))
    until "${@:2}"; do
        [ "${SECONDS}" -lt "${end}" ] || fail "waited $1 s in vain for: ${*:2}"
        sleep 1
    done
}

step "data of the demo recipe, with path.sh and cmd.sh for a cluster"
cp -a "${root}/egs" "${work}"
ln -s "${root}/espnet_mvq" "${work}"
cd "${recipe}"
# VIRTUAL_ENV: the python3 of the path is used, not that of `make venv`.
VIRTUAL_ENV=here ./run.sh --stop_stage 4 >data.log 2>&1 || { cat data.log; exit 1; }
mkdir dump/raw/subset
for name in wav.scp text utt2num_samples utt2spk; do
    head -n 160 "dump/raw/train/${name}" >"dump/raw/subset/${name}"
done
rm path.sh cmd.sh
cat >path.sh <<END
export PATH=$(dirname "$(command -v python3)"):${utils}:\${PATH}
export PYTHONPATH=${root}\${PYTHONPATH:+:\${PYTHONPATH}}
export HF_HUB_OFFLINE=1 ${GLOO_SOCKET_IFNAME:+GLOO_SOCKET_IFNAME=${GLOO_SOCKET_IFNAME}}
END
echo 'export train_cmd=slurm.pl cuda_cmd=slurm.pl' >cmd.sh
sed 's/ -p [a-z]*//' "${conf}" >conf/slurm.conf

# The Python of the disturbed jobs. In the first run of a task it stops when it has stored
# some utterances, so that each fault hits a job at work. Task 2 is killed at once.
mkdir held
cat >python.sh <<'END'
#!/usr/bin/env bash
task=${SLURM_ARRAY_TASK_ID:-}
if [ -z "${task}" ] || ! mkdir "held/${task}" 2>/dev/null; then
    exec python3 "$@"
fi
python3 "$@" &
ark=dump/mvq/disturbed/subset/codebook_indexes.${task}.ark.tmp
until [ "$(stat -c %s "${ark}" 2>/dev/null || echo 0)" -gt 4000 ]; do sleep 0.05; done
kill -STOP $!
[ "${task}" != 2 ] || kill -KILL $!
touch "held/${task}/now"
wait $!
END
chmod +x python.sh

mvq() {
    bash "${root}/espnet_mvq/scripts/mvq.sh" --train_set subset --nj 4 --num_threads 2 \
        --teacher s3prl/hf_hubert_custom:teacher --layer 4 --num_codebooks 8 "$@"
}
disturbed() {
    mvq --stop_stage 4 --quantizer dump/mvq/whole/quantizer.safetensors \
        --mvq_dir dump/mvq/disturbed --index_name of_disturbed --python "${PWD}/python.sh"
}

step "quantizer, a job of its own"
mvq --mvq_dir dump/mvq/whole --max_frames 4000 --quantizer_hours 0.05 --stop_stage 2 \
    --quantizer_args "--num_iterations 1" >quantizer.log 2>&1 ||
    { cat quantizer.log; exit 1; }

step "an array: task 1 cancelled, 2 killed, 3 over its time limit, 4 on a node set down"
disturbed >disturbed.log 2>&1 &
first_run=$!
down=
# Slurm may have set the node up itself (ReturnToService).
resume() { [ -z "${down}" ] || scontrol update nodename="${down}" state=resume || true; }
trap 'resume; [ -z "${array-}" ] || scancel "${array}"' EXIT
for task in 1 2 3 4; do
    wait_for 300 test -e "held/${task}/now"
done
array=$(sed -n 's/^Submitted batch job //p' dump/mvq/disturbed/subset/q/extract.log)
scontrol update "jobid=${array}_3" timelimit=1
scancel "${array}_1"
task_is_gone() { [ -z "$(squeue -h -j "$1" 2>/dev/null)" ]; }
wait_for 120 task_is_gone "${array}_1"

step "an undisturbed array meanwhile"
mvq --mvq_dir dump/mvq/whole --stage 3 --stop_stage 4 >whole.log 2>&1 ||
    { cat whole.log; exit 1; }

step "task 3 waits for its time limit"
wait_for 300 task_is_gone "${array}_3"
node=$(squeue -h -j "${array}_4" -o %N)
if squeue -h -w "${node}" -o %u | grep -qvx "$(id -un)"; then
    step "SKIPPED: no node is set down, since other users have jobs on ${node}"
    scancel "${array}_4"
elif ! scontrol update nodename="${node}" state=down reason=slurm.sh 2>/dev/null; then
    step "SKIPPED: no node is set down, since $(id -un) has not the right"
    scancel "${array}_4"
else
    down=${node}
    step "${node} is down; Slurm starts task 4 again on another node in two minutes"
fi

step "training of one epoch, two ranks on two nodes by srun"
python3 - <<'END'
import yaml

texts = [line.split(maxsplit=1)[1].strip() for line in open("dump/raw/subset/text")]
tokens = sorted(set("".join(texts).replace(" ", "")))
block = {"attention_heads": 2, "linear_units": 8, "num_blocks": 1}
data = [["dump/raw/subset/wav.scp", "speech", "sound"]]
data.append(["dump/raw/subset/text", "text", "text"])
ours = ["dump/raw/subset/codebook_indexes.scp", "codebook_indexes", "mvq_ark"]
config = {
    "token_list": ["<blank>", "<unk>", "<space>", *tokens, "<sos/eos>"],
    "token_type": "char",
    "encoder": "transformer",
    "encoder_conf": {**block, "output_size": 8},
    "decoder": "transformer",
    "decoder_conf": block,
    "normalize": None,
    "model": "mvq",
    "model_conf": {"ctc_weight": 0.5, "mvq_conf": {"layer": 1}},
    "batch_type": "unsorted",
    "batch_size": 16,
    "num_workers": 0,
    "max_epoch": 1,
    "optim": "adam",
    "best_model_criterion": [["valid", "loss", "min"]],
    "num_att_plot": 0,
    "use_matplotlib": False,
    "use_tensorboard": False,
    "allow_variable_data_keys": True,
    "train_data_path_and_name_and_type": [*data, ours],
    "valid_data_path_and_name_and_type": data,
    "train_shape_file": ["dump/raw/subset/utt2num_samples"],
    "valid_shape_file": ["dump/raw/subset/utt2num_samples"],
    "output_dir": "exp/two_nodes",
}
yaml.safe_dump(config, open("two_nodes.yaml", "w"))
END
(
    # shellcheck source=/dev/null
    . ./path.sh
    python3 -m espnet_mvq.run -m espnet2.bin.launch --cmd "slurm.pl" --ngpu 0 --num_nodes 2 \
        --log exp/two_nodes/train.log --init_file_prefix exp/two_nodes/.dist_init_ \
        --multiprocessing_distributed true -- \
        python3 -m espnet_mvq.run -m espnet2.bin.asr_train --config two_nodes.yaml
) >launch.log 2>&1 || { tail -n 40 launch.log; fail "the training on two nodes"; }
log=exp/two_nodes/train.log
grep -q "^# SLURM_JOB_NUM_NODES=2" "${log}" || fail "${log}: not on two nodes"
[ "$(grep -c "registered model 'mvq'" "${log}")" = 2 ] || fail "${log}: not two ranks"
grep -o "1epoch results: \[train\].*mvq_frames=[0-9.]*" "${log}" || fail "${log}: no loss_mvq"

step "slurm.pl ends when squeue forgets the array"
if [ -n "${down}" ]; then
    wait_for 300 task_is_gone "${array}_4"
    resume 2>/dev/null
    down=
    grep -q "^# Finished at .* with status 0" dump/mvq/disturbed/subset/log/extract.4.log ||
        fail "task 4 did not run again"
fi
! wait "${first_run}" || fail "the disturbed run ended well, see disturbed.log"
cat disturbed.log
for task in 1 2 3; do
    grep -q "log/extract.${task}.log" disturbed.log || fail "task ${task} is not reported"
done
grep -q "DUE TO TIME LIMIT" disturbed.log || fail "the time limit is not reported"
grep -q "run the same command again" disturbed.log || fail "no advice is reported"

array=
step "the same command again"
disturbed >rerun.log 2>&1 || { cat rerun.log; fail "the same command does not resume"; }
grep -h "are kept\|is done already" dump/mvq/disturbed/subset/log/extract.*.log
for task in 1 2 3 4; do
    cmp dump/mvq/{whole,disturbed}/subset/codebook_indexes."${task}".ark
done
diff <(sed "s:/disturbed/:/whole/:" dump/raw/subset/of_disturbed.scp) \
    dump/raw/subset/codebook_indexes.scp

step "all of it works with ${utils}/slurm.pl and $(sbatch --version)"
