#!/bin/sh
# Retrains every day at RETRAIN_AT (UTC, HH:MM), with the options it is given and RETRAIN_OPTIONS,
# until it is stopped.
# What comes of it is the job's own last line; no outcome ends the loop, the next night is another.
# A signal goes on to the job, which releases its lease; the loop ends after it.
set -u
# shellcheck source=deploy/job.sh
. "$(dirname "$0")/job.sh"

while [ -z "$stopped" ]; do
  now=$(date -u +%s)
  at=$(date -u -d "${RETRAIN_AT:-03:00}" +%s) || exit 2
  [ "$at" -gt "$now" ] || at=$((at + 86400))
  job sleep $((at - now))
  [ -z "$stopped" ] || break
  # shellcheck disable=SC2086 # these are several words
  job python -m training retrain "$@" ${RETRAIN_OPTIONS-}
  echo "retrain: exit code $?" >&2
done
exit 0
