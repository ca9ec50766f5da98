#!/usr/bin/env bash
# cme-bench on several nodes of a Slurm cluster, a vLLM worker on every GPU:
#
#   sbatch examples/slurm_ray.sh /models/llama --adapter /models/team --data /data --out /results/team
#
# Models, adapters and data must lie on a file system that every node sees. Submitted again, the same command
# goes on where it stopped: after the time limit, a failed node, or scancel.
#SBATCH --job-name=cme-bench
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@120
set -euo pipefail

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Starts ray on every node, waits for all of them, runs the command on the first, and stops ray again.
exec srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" --include-dashboard=False -- \
  cme-bench run "$@" --engine ray --worker vllm --address auto
