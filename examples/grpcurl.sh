#!/usr/bin/env bash
# Headrace without a client library: grpcurl learns the protocol from the gateway itself, by reflection.
#
#   examples/grpcurl.sh 127.0.0.1:8001 KEY
set -euo pipefail

[ $# -eq 2 ] || { echo "usage: $0 HOST:PORT KEY" >&2; exit 2; }
address=$1 key=$2
service=inference.GRPCInferenceService

echo "# health, for which nobody needs a key"
grpcurl -plaintext "$address" grpc.health.v1.Health/Check

echo "# the methods, for which nobody needs a key either"
grpcurl -plaintext "$address" list "$service"

echo "# the models"
grpcurl -plaintext -H "authorization: Bearer $key" "$address" "$service/RepositoryIndex"

echo "# one call: the text is base64, for JSON has no bytes"
grpcurl -plaintext -H "authorization: Bearer $key" -d @ "$address" "$service/ModelInfer" <<EOF
{
  "model_name": "text_embedding",
  "inputs": [{
    "name": "TEXT", "datatype": "BYTES", "shape": [1, 1],
    "contents": {"bytes_contents": ["$(printf 'water turns the wheel' | base64)"]}
  }]
}
EOF
