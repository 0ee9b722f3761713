#!/usr/bin/env bash
# From a table of pairs to classified photographs: a teacher, a reinforced set, a student.
#
#   bash examples/grocery.sh PAIRS.csv OUT
#
# PAIRS.csv is that of the Grocery Store Dataset in docs/how-to/grocery.md: filepath, split, caption,
# class_id, class_name. Nothing is downloaded: the teacher is
# trained on the same photographs first. Every step that is finished is skipped when the script is
# started again.
set -euo pipefail
pairs=${1:?"usage: bash examples/grocery.sh PAIRS.csv OUT"}
out=${2:?"usage: bash examples/grocery.sh PAIRS.csv OUT"}
mkdir -p "$out"

# 1. A teacher, by CLIP's loss on the catalogue titles of the training photographs.
pocketclip train grocery-teacher --data "$pairs" --out "$out/teacher" \
  --set 'data.caption_columns=[caption]' --set data.where.split=train

# 2. What it says of five views of each photograph, and of its title, stored once.
pocketclip reinforce "$pairs" --out "$out/reinforced" --teacher "$out/teacher/model" \
  --caption-column caption --where split=train --augmentations 5

# 3. A student, from these shards alone.
pocketclip train grocery-small --data "$out/reinforced" --out "$out/student"

# 4. How many of the test photographs teacher and student name right, of 81 products.
for run in teacher student; do
  pocketclip eval "$out/$run" --data "$pairs" --tasks grocery --out "$out/$run.jsonl" \
    --label-column caption --where split=test \
    --template '{}' --template 'a photo of {}.' --template '{} in a grocery store.' \
    --template 'a close-up of {} on a shelf.'
done

# 5. Some of them, one by one.
folder=$(dirname "$pairs")
python3 - "$pairs" "$out/labels.txt" <<'PY'
import csv, sys
with open(sys.argv[1], encoding="utf-8", newline="") as table:
    names = dict.fromkeys(row["caption"] for row in csv.DictReader(table))
with open(sys.argv[2], "w", encoding="utf-8") as labels:
    labels.write("\n".join(names) + "\n")
PY
pocketclip classify "$folder/test/Banana" --labels-file "$out/labels.txt" \
  --model "$out/student/model" --template 'a photo of {}.' --top 1
