#!/bin/sh
# Makes the first model of an empty repository, and puts the histories it learnt from into Redis.
#
# Where a version is published it trains nothing, and users who have a history keep theirs, so it may
# run before every start. Killed, it goes on where it stopped. The version is published last: a
# service that waits for one finds the histories there. A signal goes on to the job that is at work,
# and no other begins.
#
#   /data         the logs to learn from: ml-1m.zip, or events, items, users and schema.toml as in
#                 docs/data.md; empty: a synthetic world of FIRST_USERS users
#   FIT_OPTIONS   more options of `python -m training fit`, such as --set epochs=1
set -eu
# shellcheck source=deploy/job.sh
. "$(dirname "$0")/job.sh"
repository=${DINSERVE_REPOSITORY:-/repository} logs=${LOGS:-/logs} data=${DATA:-/data}
base=$logs/base run=$logs/.first-model

say() {
  echo "first-model: $*" >&2
}

published() {
  for manifest in "$repository"/*/[0-9]*/manifest.json; do
    [ ! -e "$manifest" ] || return 0
  done
  return 1
}

prepare() {
  if ! [ -r "$data" ] || ! [ -x "$data" ]; then
    say "the data folder: user $(id -u) can't read it"
    return 1
  elif [ -e "$data/ml-1m.zip" ]; then
    say "MovieLens-1M from the data folder"
    job python -m training prepare --out "$base" --source movielens-1m --path "$data/ml-1m.zip"
  elif [ -e "$data/schema.toml" ]; then
    say "events, items and users from the data folder"
    job python -m training prepare --out "$base" --source parquet --path "$data" --schema "$data/schema.toml"
  elif [ -z "$(ls "$data" 2>&1)" ]; then
    say "the data folder is empty: a synthetic world of ${FIRST_USERS:-500} users"
    job python -m training prepare --out "$base" --source synthetic --users "${FIRST_USERS:-500}"
  else
    say "the data folder: expected ml-1m.zip, or schema.toml with events, items and users"
    return 1
  fi
}

if published; then
  say "a version is published: nothing to train"
  first=
else
  say "no version is published"
  first=yes
  [ -e "$base/schema.toml" ] || prepare # written last, so with it the logs are whole
  # shellcheck disable=SC2086 # these are several words
  job python -m training fit --data "$base" --out "$run" ${FIT_OPTIONS-}
fi
if [ -e "$base/schema.toml" ]; then
  job python -m service load-histories --data "$base" --schema "$base/schema.toml"
else
  say "no prepared logs beside the collected ones: no histories to load"
fi
if [ -n "$first" ]; then
  job python -m training export --run "$run" --repository "$repository"
  rm -rf "$run"
fi
say "done"
