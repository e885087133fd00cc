#!/bin/bash
set -euo pipefail
jq --version > versions
getent passwd ops > /dev/null
