#!/bin/bash
#SBATCH --job-name=masks
#SBATCH --array=0-15
#SBATCH --cpus-per-task=4
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x_%A_%a.log

# Masks of a folder by an array of jobs, from the bundle's folder: each takes its share of the images, the last one to
# end writes the whole report.
#   sbatch --array=0-15 scripts/predict_array.sh DATA/images OUT --overlap 0.5
# Jobs may be stopped, requeued and started again, all or some. Two minutes before its time is over a job gets SIGTERM:
# it writes the report, leaves with 143, and is put back into the queue. OUT must be seen by all nodes. With another
# number of jobs than before, or with a few that are started again by hand (sbatch --array=3,7), give the same
# NUM_PROCESSES to all: NUM_PROCESSES=16 sbatch --array=3,7 ...
set -u
images=$1
output=$2
shift 2

OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} python -m monai.bundle run --config_file configs/inference.json \
    --dataset_dir "$images" --output_dir "$output" --rank "$SLURM_ARRAY_TASK_ID" \
    --num_processes "${NUM_PROCESSES:-$((SLURM_ARRAY_TASK_MAX + 1))}" "$@" &
process=$!
trap 'kill -TERM $process' TERM
while kill -0 $process 2> /dev/null; do wait $process; code=$?; done  # the signal ends a wait, not the process

if [ "$code" -eq 143 ]; then
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$code"
