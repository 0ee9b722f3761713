"""Does reinforcement pay? One student, the same steps, three kinds of supervision.

    pip install -c constraints.txt ".[reinforce]"
    python examples/researcher.py [FOLDER]

Runs offline in about a minute. The question is that of MobileCLIP (arXiv 2311.17049, section 4) in
miniature: 300 drawings with alt-texts as bad as the web's, of which one in seven is right. With
your own pairs and `teachers=["vit-l14", ...]` the same lines are an experiment.
"""

# %% [markdown]
# # 1. Pairs, and what is wrong with them

# %%
import csv
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

import pocketclip
from pocketclip import checkpoint, shards
from pocketclip.augment import Augmentation
from pocketclip.evaluate import DataOptions, evaluate, own_task, plan
from pocketclip.images import open_image
from pocketclip.pairs import PairOptions, open_pairs
from pocketclip.quickstart.collection import PAIRS, TESTS, Sizes, read_rows, write_collection
from pocketclip.reinforce import job
from pocketclip.reinforce.recipe import load_recipe as load_reinforce_recipe
from pocketclip.train import load_recipe, train

TEACHERS = Path(pocketclip.__file__).parent / "data" / "quickstart"

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="research-"))
write_collection(folder, Sizes(train=300, unseen=240, retrieval=1), seed=1)
rows = read_rows(folder / PAIRS)
print("alt-texts:", dict(Counter(row["kind"] for row in rows).most_common()))
for row in rows[:4]:
    print(f"  {row['kind']:8} {row['alt_text']!r} for {row['truth']!r}")

# %% [markdown]
# # 2. Reinforce once
#
# Two teachers embed two augmented views of each picture and its alt-text. The views are stored as
# parameters, a few numbers each.

# %%
recipe = load_reinforce_recipe(
    teachers=[str(TEACHERS / "teacher-a"), str(TEACHERS / "teacher-b")],
    augmentations=2,
    image_augmentation={"random_resized_crop": {"size": 64, "scale": [0.5, 1.0]}},
    precision="float32",
    batch_size=64,
)
options = PairOptions(image_column="image", caption_columns=("alt_text",))
summary = job.run(open_pairs(str(folder / PAIRS), options), recipe, str(folder / "dr"), workers=0)
samples = sum(report.samples for report in summary.reports)
print(f"{samples} samples stored, {len(rows) - samples} had no alt-text")

# %% [markdown]
# # 3. Look at what was stored
#
# Replaying a view gives the pixels that the teachers saw, so a teacher that is asked again must
# give the stored embedding. This is what `pocketclip audit DIR --recompute 100` does.

# %%
index = shards.read_index(str(folder / "dr"))
augmentation = Augmentation.from_config(index.augmentation)
sample = next(iter(shards.read(str(folder / "dr"))))
view = augmentation.apply(open_image(sample.image), augmentation.unpack(sample.param_aug[1]))
again = pocketclip.Encoder(str(TEACHERS / "teacher-a")).encode_image([view])[0]
stored = sample.embeddings["image_emb"][1, : again.size]
cosine = float(again @ stored) / float(np.linalg.norm(stored))  # stored in bfloat16
print(f"view {sample.param_aug[1]}: cosine of stored and new embedding {cosine:.5f}")
assert cosine > 0.999

# %% [markdown]
# # 4. Train the same student three times
#
# The same first weights, views, order and number of samples; only the loss differs:
# `w0 * contrastive + w1 * distillation`.

# %%
ARMS = {"CLIP's loss": (1.0, 0.0), "both": (0.25, 0.75), "distillation": (0.0, 1.0)}
settings = [
    f"data.source={folder / 'dr'}", "data.workers=0", "data.captions=truth",
    "steps=80", "batch_size=64", "checkpoint.every_steps=80",
    "schedule.warmup=8", "optimizer.lr=3e-3",
    "model.overrides={image_size: 32, image.depths: [1, 1, 1], image.widths: [16, 32, 64], "
    "text.layers: 1, text.context_length: 24}",
]  # fmt: skip
models = {}
for name, weights in ARMS.items():
    arm = load_recipe("scenes-tiny", [*settings, f"loss.weights=[{weights[0]}, {weights[1]}]"])
    run = train(arm, str(folder / "runs" / name.replace("'", "").replace(" ", "-")))
    models[name] = run.model

# %% [markdown]
# # 5. Compare
#
# Zero-shot on pictures whose pairs of colour and shape are in no training picture: which of ten
# colours is it, and which of the 24 pairs?

# %%
pictures = folder / TESTS / "unseen" / "test.csv"
colours = pictures.with_name("colours.csv")
with colours.open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "label"])
    for row in read_rows(pictures):
        writer.writerow([row["image"], row["label"].split()[1]])  # "a red fish"
about_colours = DataOptions(label_column="label", templates=("something {}", "a {} star", "{}"))
(colour_test,) = plan([own_task(str(colours))], str(colours), about_colours).ready
(pair_test,) = plan(["unseen"], str(folder / TESTS)).ready


def top1(encoder: pocketclip.Encoder) -> tuple[float, float]:
    """Return the share of right colours and of right pairs."""
    results = [evaluate(encoder, *test)[0] for test in (colour_test, pair_test)]
    return results[0].metrics["acc1"], results[1].metrics["acc1"]


encoders = {name: pocketclip.Encoder(checkpoint.load(path, fuse=True)) for name, path in
            models.items()}  # fmt: skip
encoders |= {name: pocketclip.Encoder(str(TEACHERS / name)) for name in ("teacher-a", "teacher-b")}
scores = {"guessing": (1 / 10, 1 / 24)} | {name: top1(one) for name, one in encoders.items()}
print("supervision    colour   pair")
for name, (colour, pair) in scores.items():
    print(f"{name:14} {colour:6.1%} {pair:6.1%}")
error = float(np.sqrt(0.25 / 240))
print(f"the standard error of 240 pictures is at most {error:.1%}; this is one seed")

# %% [markdown]
# # 6. What this shows
#
# In the same 5,120 samples the bad texts teach hardly anything, and the teachers' embeddings of the
# same pictures and the same texts teach the student colours and some of the shapes.
# It does not show how much is gained on photographs, nor at what scale the gap closes:
# docs/internals/learning.md has that experiment on real photographs, with three seeds.

# %%
assert scores["distillation"] > scores["CLIP's loss"]
print(f"\nshards, runs and logs are in {folder}")
