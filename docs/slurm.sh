#!/bin/bash
# Several machines of 8 GPUs under Slurm: sbatch docs/slurm.sh RECIPE TEXT...
#
# One torchrun a machine; they find each other over the first one. Where a process is lost torchrun starts all of them
# again, and they go on with the run from its newest checkpoint that verifies. So does the whole job when Slurm starts
# it again after a machine has failed, or when it is submitted once more with the same RUN.
#
# RUN is a folder on a disk that all machines see. Ten minutes before the time is up Slurm tells the processes, which
# save at the end of the step.

#SBATCH --job-name=tessera
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@600
#SBATCH --requeue

set -eu
RUN=${RUN:-$PWD/runs/slurm-$SLURM_JOB_ID}
FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun torchrun \
    --nnodes="$SLURM_NNODES" --nproc-per-node=8 --max-restarts=10 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$FIRST:29500" \
    -m tessera train -c "$@" --out "$RUN" --or-resume
