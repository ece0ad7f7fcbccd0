#!/bin/sh
# What load balancers and monitoring ask.
set -eu
server=${DORMOUSE_SERVER:-http://127.0.0.1:8080}

curl -sS "$server/livez"
curl -sS "$server/readyz"
curl -sS "$server/metrics"
