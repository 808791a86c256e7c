# shellcheck shell=bash disable=SC2034
# What the job scripts share; sourced by slurm/*.sbatch in the project's folder on the compute node.

fail() {
    echo "error: $*" >&2
    exit 1
}

# prepare: the site's modules and environment; from here on the last line of the log reports how the task ended.
prepare() {
    local site=${TWO_STREAM_SITE:-slurm/site.env}
    ended="failed before its work began"
    trap 'echo "$SLURM_JOB_NAME, job $(this_task) on ${SLURMD_NODENAME:-$HOSTNAME}: $ended (${SECONDS} s)"' EXIT
    echo "$SLURM_JOB_NAME, job $(this_task) on ${SLURMD_NODENAME:-$HOSTNAME}: begins, restart ${SLURM_RESTART_COUNT:-0}"
    warned=no
    max_restarts=${MAX_RESTARTS:-100} save_seconds=${SAVE_SECONDS:-90}
    # Bash would run what is hidden in a value such as a[$(...)] when it takes it for a number.
    [[ $max_restarts =~ ^[0-9]+$ ]] || fail "MAX_RESTARTS='$max_restarts' is not a number"
    [[ $save_seconds =~ ^[0-9]+$ ]] || fail "SAVE_SECONDS='$save_seconds' is not a number"
    [[ -f $site ]] || fail "no file '$site': TWO_STREAM_SITE names the file with this cluster's settings (default slurm/site.env)"
    # shellcheck source=slurm/site.env
    source "$site"
    prepare_node || fail "prepare_node in '$site' failed"
    cores=${SLURM_CPUS_PER_TASK:-1}
    export PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-$cores}
}

# this_task: the name by which scontrol knows this job or this one task of an array. SLURM_JOB_ID alone will not do: the
# last task of an array has the same number there as the whole array.
this_task() {
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}

# choose_run: `run` holds the options that name the stream, the split and the run of this array task; see
# slurm/array_task.py.
choose_run() {
    local words
    words=$(python -m slurm array-task) || fail "this array task has no stream and split of its own"
    mapfile -t run <<<"$words"
}

# work COMMAND...: run the command; the task ends here unless it succeeds. When SLURM warns that time is up (USR1, see
# `--signal` in the scripts) the command gets the signal: it saves what it has and ends, and the task is requeued.
work() {
    local status interrupted=yes cancelled=no
    if [[ $warned == yes ]]; then # before, while the last command ended by itself: no time for another
        queue_again
        exit 75
    fi
    "$@" &
    local command=$!
    trap 'warned=yes interrupted=yes; save "$command"' USR1
    trap 'cancelled=yes interrupted=yes; kill -s TERM "$command" || true' TERM
    while [[ $interrupted == yes ]]; do
        interrupted=no status=0
        wait "$command" || status=$? # it also returns when a signal came: then wait again
    done
    if [[ $cancelled == yes ]]; then # srun may end with 0 then
        ended="cancelled, preempted or out of time (SIGTERM)"
        exit 143
    elif [[ $warned == yes ]] && ((status != 0 || SECONDS - warned_at >= save_seconds)); then
        queue_again # also after TERM from `save`, when srun may end with 0: resuming finished work costs little
        exit 75
    elif ((status != 0)); then
        ended="failed with exit status $status"
        exit "$status"
    fi
    ended="finished"
}

# save PROCESS: ask the command to save and end; if it has not after SAVE_SECONDS, it has to stop as it is, because SLURM
# kills 120 s after its warning, and the task must be back in the queue by then.
save() {
    echo "SLURM warns that time is up: saving"
    warned_at=$SECONDS
    kill -s USR1 "$1" || true # it may have ended just now
    { sleep "$save_seconds"; kill -s TERM "$1" || true; } &
}

queue_again() {
    trap '' TERM
    if ((${SLURM_RESTART_COUNT:-0} >= max_restarts)); then
        ended="stopped by the time limit after ${SLURM_RESTART_COUNT:-0} restarts (MAX_RESTARTS); submit it again to resume"
    elif scontrol requeue "$(this_task)"; then
        ended="stopped by the time limit and back in the queue, from where it will resume"
    else
        ended="stopped by the time limit and not put back into the queue; submit it again to resume"
    fi
}
