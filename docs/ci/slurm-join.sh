#!/bin/bash
# The verdict on the shards of slurm.sh: PLAN=... OUT=... sbatch --dependency=afterok:JOB slurm-join.sh
#SBATCH --job-name=mxfp4-verdict
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
mxfp4-validate run "$PLAN" --out "$OUT" --join
