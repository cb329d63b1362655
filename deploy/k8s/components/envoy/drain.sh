#!/bin/bash
# Before SIGTERM, on which Envoy ends at once: ask clients to go, take nothing new, wait until all have gone.
# The image has no curl; bash can speak to a port.
set -u

ask() {
  exec 3<>/dev/tcp/127.0.0.1/9901 || return 1
  printf '%s %s HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: 0\r\n\r\n' "$1" "$2" >&3
  cat <&3
  exec 3>&-
}

# Its address leaves the endpoints meanwhile.
sleep 5
ask POST '/drain_listeners?graceful&skip_exit' >/dev/null
# A connection is asked to go with the next answer on it: those that are idle have this many looks for one more call.
idle=20
# As long as the longest call; the pod's grace is longer.
for _ in $(seq "$1"); do
  now=$(ask GET '/stats?filter=^http.rest.downstream_(cx|rq)_active$')
  grep -q 'cx_active: 0' <<<"$now" && exit 0
  ((idle-- > 0)) || ! grep -q 'rq_active: 0' <<<"$now" || exit 0
  sleep 1
done
