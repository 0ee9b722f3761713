#!/usr/bin/env bash
# How the files of this folder were made, by the release of commit 47e8eff. Kept as a record: a
# later release reads these files and does not write them anew.
#
#   bash make.sh EMPTY_FOLDER    (with that release's `pocketclip` and `python` first in PATH)
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
export OMP_NUM_THREADS=1
cp "$here/train_recipe.yaml" "$here/reinforce_recipe.yaml" .

# Eight pairs: two crops of each photograph in examples/photos, 64 pixels.
python - "$here/../../../examples/photos" <<'PY'
import csv, sys
from pathlib import Path
from PIL import Image

captions = {
    "astronaut": ("a portrait of an astronaut", "an astronaut and a flag"),
    "chelsea": ("my cat chelsea", "the face of a cat"),
    "coffee": ("a cup of coffee", "a cup and a spoon on a table"),
    "rocket": ("a rocket on its launch pad", "a launch pad at dusk"),
}
Path("pairs").mkdir()
with open("pairs/pairs.csv", "w", newline="", encoding="utf-8") as table:
    rows = csv.writer(table)
    rows.writerow(["filepath", "caption", "split"])
    for name, texts in captions.items():
        photo = Image.open(Path(sys.argv[1]) / f"{name}.jpg").convert("RGB")
        side = min(photo.size) // 2
        for number, text in enumerate(texts):
            left = number * (photo.width - side)
            crop = photo.crop((left, side // 2, left + side, side // 2 + side))
            crop.resize((64, 64), Image.Resampling.BICUBIC).save(f"pairs/{name}{number}.jpg", quality=85)
            rows.writerow([f"{name}{number}.jpg", text, "test" if number else "train"])
PY

# Reinforced shards: captions per key in bfloat16 (two teachers, a captioner), the published first
# layout in int8, and jsonl in float32.
pocketclip reinforce pairs/pairs.csv --out named --config reinforce_recipe.yaml --shard-size 4
sed -e 's/layout: named/layout: v1/' -e 's/^captioners:.*//' reinforce_recipe.yaml >v1.yaml
pocketclip reinforce pairs/pairs.csv --out v1 --config v1.yaml --dtype int8
pocketclip reinforce pairs/pairs.csv --out jsonl --config reinforce_recipe.yaml --dtype float32 \
    --format jsonl --augmentations 1 --captions 1
rm v1.yaml

# A run of eight steps, and the same run as it stood after four.
pocketclip train train_recipe.yaml --data named --out whole
mkdir -p run/checkpoints
cp -r whole/checkpoints/step-00000004 run/checkpoints/
cp whole/recipe.yaml whole/run.json run/
head -n 4 whole/log.jsonl >run/log.jsonl
cp whole/log.jsonl log_of_whole.jsonl
cp -r whole/model model

pocketclip export model --format onnx --out onnx
pocketclip export model --format openvino --precision fp16 --preprocessing --normalize --out openvino
xz -9e -k -c onnx/tokenizer.json >tokenizer.json.xz
cmp onnx/tokenizer.json openvino/tokenizer.json
rm -f {onnx,openvino}/tokenizer.json

pocketclip embed pairs --model model --out photos.npy
pocketclip embed pairs --model model --out photos.parquet
pocketclip eval model --data pairs/pairs.csv --label-column split --tasks splits --out results.jsonl \
    --no-cache
pocketclip eval model --data pairs/pairs.csv --caption-column caption --tasks pairs \
    --out results.jsonl --no-cache
python "$here/../../../benchmarks/encode.py" tiny --batch 1 --rounds 3 --threads 1 >latency.log

