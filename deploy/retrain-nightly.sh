#!/bin/sh
# Retrains every day at RETRAIN_AT (UTC, HH:MM), with the options it is given and RETRAIN_OPTIONS,
# until it is stopped.
# What comes of it is the job's own last line; no outcome ends the loop, the next night is another.
# A signal goes on to the job, which releases its lease; the loop ends after it.
set -u
trap 'kill -TERM "${!:-}" 2>/dev/null; wait; exit 0' TERM INT

while :; do
  now=$(date -u +%s)
  at=$(date -u -d "${RETRAIN_AT:-03:00}" +%s) || exit 2
  [ "$at" -gt "$now" ] || at=$((at + 86400))
  sleep $((at - now)) &
  wait $! # unlike a command itself, wait lets a signal through
  # shellcheck disable=SC2086 # these are several words
  python -m training retrain "$@" ${RETRAIN_OPTIONS-} &
  wait $!
  echo "retrain: exit code $?" >&2
done
