#!/usr/bin/env bash
# The base install has no torch: show that it imports, that its verbs answer, and that published
# models compute their golden values.
#
#   [PYTHON=python3.13] bash tests/base_install.sh [latest|newest|lowest] [PACKAGE] [GOLDEN...]
#
# `latest` is what constraints.txt allows, `newest` is without it, and `lowest` is on the lowest
# versions that the package accepts, and with the tests that need no torch. PACKAGE is what pip
# installs: a wheel or an sdist; by default this checkout. GOLDEN are the golden cases to compute,
# by default a few small ones, or `none`. The files are written by torch in .venv, which .ci/run makes.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${PYTHON:-python3}
constraints=constraints.txt
versions=${1:-latest}
package=${2:-.}
# Both naming conventions, both kinds of files, half precision; every kind of tower.
golden=("${@:3}")
if [ ${#golden[@]} = 0 ]; then
    golden=(openclip.MobileCLIP2-S0)
    if [ "$versions" = latest ]; then
        golden+=(apple.mobileclip_s0 apple.mobileclip_b openclip.coca_ViT-B-32)
    fi
fi
if [ "$versions" = lowest ]; then
    constraints=$folder/lowest.txt
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    .venv/bin/python tests/lowest.py "$version" >"$constraints"
elif [ "$versions" = newest ]; then
    constraints=/dev/null
fi
"$python" -m venv "$folder/env"
"$folder/env/bin/pip" install -q -c "$constraints" "$package"
run=$PWD
cd "$folder" # so that the installed package is imported, not the sources
env/bin/python - "$run/examples/photos/chelsea.jpg" "$run/tests/golden/shards" <<'PY'
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
sample = next(iter(pocketclip.shards.read(sys.argv[2] + "/v2_float32.tar")))
assert sample.embeddings["image_emb"].shape[0] == len(sample.param_aug) == 4
config = {"random_resized_crop": {"size": 224, "interpolation": "bicubic"}, "rand_augment": {}}
augmentation = pocketclip.augment.Augmentation.from_config(config)
view = augmentation.apply(
    pocketclip.images.open_image(sample.image), augmentation.unpack(sample.param_aug[0])
)
assert view.shape == (224, 224, 3), view.shape
for need in (lambda: pocketclip.create_model("tiny"), lambda: pocketclip.load("random:tiny")):
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
env/bin/pocketclip classify "$run/examples/photos/chelsea.jpg" --labels "a,b" --model random:tiny \
    >out.txt 2>err.txt || code=$?
[ "$code" = 2 ] && [ ! -s out.txt ] && grep -q "pip install .pocketclip\[train\]." err.txt
code=0
env/bin/pocketclip reinforce "$run/examples/photos/pairs.csv" --out dr --teacher random:tiny \
    >out.txt 2>err.txt || code=$?
[ "$code" = 2 ] && grep -q "pip install .pocketclip\[reinforce\]." err.txt && [ ! -e dr ]
code=0
env/bin/pocketclip eval random:tiny --data "$run/examples/photos/pairs.csv" >out.txt 2>err.txt || code=$?
[ "$code" = 2 ] && grep -q "pip install .pocketclip\[train\]." err.txt
code=0
env/bin/pocketclip serve "$run/examples/photos" >out.txt 2>err.txt || code=$?
[ "$code" = 2 ] && grep -q "pip install .pocketclip\[serve\]." err.txt
env/bin/pocketclip compare mobileclip-s0 mobileclip2-s0 --html page.html >compare.txt
grep -q "38-task average" compare.txt && grep -q "<svg" page.html
mkdir set && cp "$run/tests/golden/shards/v2_float32.tar" set/
env/bin/pocketclip audit set --json >audit.json
# A bundle is made where torch is, and used where it is not.
"$run/.venv/bin/pocketclip" export random:tiny --format onnx --out bundle >export.txt 2>&1
env/bin/pocketclip classify "$run/examples/photos/chelsea.jpg" --labels "a cat,a rocket" \
    --model bundle --json >classified.json
"$run/.venv/bin/pocketclip" classify "$run/examples/photos/chelsea.jpg" \
    --labels "a cat,a rocket" --model random:tiny --json >by_model.json 2>/dev/null
env/bin/pocketclip embed "$run/examples/photos" --model bundle --out photos.npy >embedded.txt
env/bin/python - <<'PY'
import json

import numpy as np

bundle, model = (json.load(open(name)) for name in ("classified.json", "by_model.json"))
assert bundle["space_id"] == model["space_id"]
ours, theirs = (x["results"][0]["labels"] for x in (bundle, model))
assert ours.keys() == theirs.keys() and all(abs(ours[k] - theirs[k]) < 1e-3 for k in ours), ours
embeddings = np.load("photos.npy")
assert embeddings.shape == (4, 64) and np.allclose(np.linalg.norm(embeddings, axis=1), 1), embeddings
PY
if [ "$versions" != lowest ]; then
    env/bin/python "$run/tests/base_facts.py" bundle "$run/examples/photos/chelsea.jpg"
    (cd "$run" && "$folder/env/bin/pip" install -q -c "$constraints" "$package[serve]")
    env/bin/python "$run/tests/serve_without_torch.py" bundle "$run/examples/photos" photos.npy
fi
(
    cd "$run" # for the tests' modules; the package is the installed one
    hub=openclip.MobileCLIP2-S0
    .venv/bin/python -m tests.infer.slim "$folder/slim.safetensors"
    for tag in "${golden[@]}"; do
        [ "$tag" != none ] || continue
        half=$([ "$tag" != "$hub" ] || echo --half)
        .venv/bin/python -m tests.graph.golden_files "$tag" "$folder/files" $half
        "$folder/env/bin/python" -m tests.graph.base_golden "$folder/files"
        if [ "$tag" = "$hub" ]; then
            "$folder/env/bin/python" -m tests.base_hub "$folder/files" "$folder/slim.safetensors"
        fi
        rm -r "$folder/files"
    done
)
echo "base install of $package on $versions versions: imports and answers without torch"
[ "$versions" = lowest ] || exit 0

# The tests that need no torch; not those of object stores, nor those that take long.
env/bin/pip install -q -c "$constraints" pytest pytest-xdist hypothesis httpx packaging
cd "$run/tests"
left_out="object_store or a_store or memory or replays_the_same_bytes or what_is_drawn or pth"
"$folder/env/bin/python" -m pytest -n 0 -p no:cacheprovider -k "not ($left_out)" \
    cli/test_output.py evaluate/test_data.py evaluate/test_data_tables.py \
    evaluate/test_metrics.py evaluate/test_report.py evaluate/test_retrieval.py \
    shards/test_index.py shards/test_quantise.py shards/test_tar.py augment/test_augmentation.py \
    formats/test_escaping.py storage/test_local.py checkpoint/test_hub.py test_packaging.py pairs/test_pairs.py formats/test_documents.py \
    test_preprocess.py test_tokenizer.py test_zoo.py
