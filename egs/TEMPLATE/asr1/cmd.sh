# shellcheck shell=bash
# Commands that run jobs, with the same variables as in ESPnet's recipes. These commands run
# processes on this machine. On a cluster, inside an ESPnet checkout, use ESPnet's commands:
#   export train_cmd="slurm.pl"; export cuda_cmd="slurm.pl"

# At most one job per core at a time
_local="python3 -m espnet_mvq.bin.run_jobs --max-jobs-run $(getconf _NPROCESSORS_ONLN)"
export train_cmd="${_local}"
export cuda_cmd="${_local}"
