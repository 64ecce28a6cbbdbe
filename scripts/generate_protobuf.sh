#!/bin/sh
# Regenerates persistence/proto/*_pb2.py and *_pb2.pyi, and *_pb2_grpc of services; with --check, fails if they are
# not fresh. The oldest supported protoc generates: the runtime refuses generated code that is newer than itself.
set -eu
cd "$(dirname "$0")/.."
tools=build/ci/protobuf
if [ ! -x "$tools/bin/protoc-gen-mypy" ]; then
    python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet "grpcio-tools==1.74.0" "mypy-protobuf==3.6.0" "setuptools<81"
fi
output=.
if [ "${1:-}" = --check ]; then
    output=$(mktemp -d)
    trap 'rm -rf "$output"' EXIT
fi
export PATH="$PWD/$tools/bin:$PATH"
python -m grpc_tools.protoc --proto_path=. \
    --python_out="$output" --mypy_out="$output" persistence/proto/*.proto
python -m grpc_tools.protoc --proto_path=. \
    --grpc_python_out="$output" --mypy_grpc_out="$output" persistence/proto/statemachine.proto
if [ "$output" != . ]; then
    for file in persistence/proto/*_pb2.py persistence/proto/*_pb2.pyi persistence/proto/*_pb2_grpc.py*; do
        diff -u "$file" "$output/$file"
    done
fi
