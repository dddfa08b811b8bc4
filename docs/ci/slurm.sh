#!/bin/bash
# sbatch slurm.sh, then: sbatch --dependency=afterok:JOB slurm-join.sh
# A node a shard; the folder is on a file system that all of them see and that has locks.
#SBATCH --job-name=mxfp4-accuracy
#SBATCH --array=1-4
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# Two minutes before the limit the run is told to end: it writes what it has, stops its server and ends with 130.
#SBATCH --signal=TERM@120
PLAN=${PLAN:-dsv4-flash-cutlass-vs-marlin.toml}
OUT=${OUT:-$SLURM_SUBMIT_DIR/mxfp4-runs/$SLURM_ARRAY_JOB_ID}
status=0
srun --ntasks=1 mxfp4-validate run "$PLAN" --out "$OUT" --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" || status=$?
if [ "$status" -eq 5 ] || [ "$status" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID" # goes on where it was cut
fi
exit "$status"
