# For scripts that stand above a job: `job COMMAND ...` runs it, and SIGTERM or SIGINT to the script
# goes on to it as SIGTERM. It ends when the job has ended, with the job's exit code; once the script
# was told to end, in `stopped`, no other job begins (143).
#
# A shell does none of this by itself: as process 1 of a container it ignores the signal, and
# elsewhere it dies of it and leaves its job behind.
stopped='' pid='' again=''
trap 'stopped=yes again=yes; [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || :' TERM INT

job() {
  [ -z "$stopped" ] || return 143
  "$@" &
  pid=$! again=yes
  [ -z "$stopped" ] || kill -TERM "$pid" 2>/dev/null || : # told since, when there was no job
  while [ -n "$again" ]; do
    again='' code=0
    wait "$pid" || code=$? # above 128 where a signal came, with the job still at work
    [ "$code" -gt 128 ] || break
  done
  pid=''
  return "$code"
}
