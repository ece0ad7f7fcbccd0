#!/bin/sh
# Deploys a function, looks at it, and removes it.
# Usage: functions.sh IMAGE   (an image that `dormouse build` wrote)
set -eu
server=${DORMOUSE_SERVER:-http://127.0.0.1:8080}

# 201 the first time, 200 when the same image and options are deployed already.
curl --fail-with-body -sS -T "$1" "$server/v1/functions/hello?memory=64MiB&timeout_ms=500"
echo

# The options can also be one JSON object.
curl --fail-with-body -sS -T "$1" --url-query 'config={"memory_bytes": 67108864, "timeout_ms": 500}' \
    "$server/v1/functions/hello"
echo

curl --fail-with-body -sS "$server/v1/functions"
echo
curl --fail-with-body -sS "$server/v1/functions/hello"
echo
curl --fail-with-body -sS -X DELETE "$server/v1/functions/hello"
