#!/usr/bin/env bash
# The base install has no torch: show that it imports and that its verbs answer.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c constraints.txt .
run=$PWD
cd "$folder" # so that the installed package is imported, not the sources
env/bin/python - "$run/examples/photos/chelsea.jpg" <<'PY'
import importlib.util
import sys

assert importlib.util.find_spec("torch") is None, "torch came with the base install"
import numpy as np

import pocketclip
from pocketclip import zoo
from pocketclip.errors import MissingDependencyError
from pocketclip.preprocess import Preprocess
from pocketclip.tokenizer import Tokenizer

ids = Tokenizer()(["a photo of a cat"])
assert ids.shape == (1, 77) and ids[0, 0] == 49406, ids
pixels = Preprocess(zoo.entry("mobileclip2-s0").config.preprocess)(sys.argv[1])
assert pixels.shape == (3, 256, 256) and pixels.dtype == np.float32
for need in (lambda: pocketclip.create_model("tiny"), lambda: pocketclip.load("tiny")):
    try:
        need()
    except MissingDependencyError as error:
        assert "pocketclip[train]" in str(error), error
    else:
        raise AssertionError("torch was not missed")
PY
env/bin/pocketclip --help >/dev/null
env/bin/pocketclip models >models.txt && grep -q mobileclip2-s4 models.txt
env/bin/pocketclip embed --help >/dev/null
code=0
env/bin/pocketclip classify "$run/examples/photos/chelsea.jpg" --labels "a,b" --model tiny \
    >out.txt 2>err.txt || code=$?
[ "$code" = 2 ] && [ ! -s out.txt ] && grep -q "pip install 'pocketclip\[train\]'" err.txt
echo "base install: imports and answers without torch"
