#!/bin/sh
# Invokes functions; -i shows X-Start-Type and Server-Timing.
set -eu
server=${DORMOUSE_SERVER:-http://127.0.0.1:8080}

curl -sSi "$server/v1/functions/hello/invoke"

# Method, sub-path, query, headers and body reach the function.
curl -sSi -X POST -H 'Content-Type: text/plain' -H 'X-Request-Id: order-66' \
    --data-binary 'some text' "$server/v1/functions/echo/invoke/a/b?c=d"

# An error is a problem document; X-Dormouse-Error has its code.
curl -sSi "$server/v1/functions/no-such-function/invoke"
