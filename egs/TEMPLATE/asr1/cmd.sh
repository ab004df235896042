# shellcheck shell=bash
# Commands that run jobs, in the same variables as in ESPnet's recipes. These commands run
# local processes. On a cluster, use the back ends of an ESPnet checkout, for example
#   export train_cmd="slurm.pl"; export cuda_cmd="slurm.pl"

# No more parallel jobs than cores
_local="python3 -m espnet_mvq.bin.run_jobs --max-jobs-run $(getconf _NPROCESSORS_ONLN)"
export train_cmd="${_local}"
export cuda_cmd="${_local}"
