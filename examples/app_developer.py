"""An app that finds pictures by words: export a model, index a folder, search it, measure it.

    pip install -c constraints.txt ".[train]"
    python examples/app_developer.py [FOLDER]

Runs offline in under a minute. The model is one of those that come with the package, and knows
drawn shapes in ten colours; with `MODEL = "mobileclip2-s0"` and a folder of your own photographs
the same lines search your photographs.
"""

# %% [markdown]
# # 1. A model and a folder of pictures
#
# Ninety-six drawings stand in for the user's photographs. Their file names say nothing. What they
# show is in a table that the app never sees, so that we can check its answers.

# %%
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import pocketclip
from pocketclip import checkpoint
from pocketclip.export.job import export
from pocketclip.quickstart.collection import TESTS, Sizes, read_rows, write_collection

MODEL = Path(pocketclip.__file__).parent / "data" / "quickstart" / "teacher-a"

folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp(prefix="app-"))
write_collection(folder, Sizes(train=1, unseen=96, retrieval=1), seed=3)
table = folder / TESTS / "unseen" / "test.csv"
rows = read_rows(table)
paths = [str(table.parent / row["image"]) for row in rows]
shown = [row["label"] for row in rows]
print(f"{len(paths)} pictures in {table.parent}, of {len(set(shown))} kinds of thing")

# %% [markdown]
# # 2. Export
#
# `export` runs photographs and captions through the model and through what it wrote, and refuses
# to leave a bundle whose embeddings differ by more than the precision allows.

# %%
model = checkpoint.load(MODEL)
bundles = {"fp32": folder / "app", "int8": folder / "app-int8"}
export(model, bundles["fp32"], target="onnx")
# int8 is calibrated with pictures like those that the app will see, here the first 48.
export(model, bundles["int8"], target="onnx", precision="int8", calibration=paths[:48])

# %% [markdown]
# # 3. Index
#
# From here on nothing needs torch: `Encoder` runs the bundle on ONNX Runtime, which is in the base
# install. The index of a few thousand pictures is one array; a search is one product.

# %%
encoder = pocketclip.Encoder(str(bundles["fp32"]))
index = encoder.encode_image(paths)  # (N, D), unit length
print(f"index: {index.shape[0]} x {index.shape[1]}, {index.nbytes / 1e3:.0f} kB")


def search(words: str, top: int = 4) -> list[tuple[float, int]]:
    """Return the cosine and the row of the best pictures, best first."""
    scores = index @ encoder.encode_text([words])[0]
    return [(float(scores[row]), int(row)) for row in np.argsort(-scores)[:top]]


for words in ("a red fish", "a green house", "something yellow"):
    print(f"\n{words}")
    for score, row in search(words):
        print(f"  {score:.2f}  {Path(paths[row]).name}  shows {shown[row]}")

# %% [markdown]
# # 4. How good is it?
#
# There are four pictures of each kind. For each kind: how many of the first four are right, and is
# the first one? A guess would be right once in 24 times.

# %%
kinds = sorted(set(shown))
hits = {kind: [shown[row] == kind for _, row in search(kind)] for kind in kinds}
first = float(np.mean([hit[0] for hit in hits.values()]))
four = float(np.mean(list(hits.values())))
print(f"first picture right: {first:.0%}; of the first four: {four:.0%}; guessing: {1 / 24:.0%}")
worst = min(hits, key=lambda kind: sum(hits[kind]))
print(f"worst kind: {worst} ({sum(hits[worst])} of 4)")

# %% [markdown]
# # 5. What it costs
#
# Size on disk, time per picture on this computer, and what int8 changes: the same search with the
# small bundle. Both have one embedding space, so that pictures indexed by one are found by the
# other.

# %%
small = pocketclip.Encoder(str(bundles["int8"]))
assert small.space_id == encoder.space_id
for name, runtime in (("fp32", encoder), ("int8", small)):
    towers = [f for f in bundles[name].iterdir() if f.name.startswith(("image.", "text."))]
    size = sum(f.stat().st_size for f in towers)
    pixels = runtime.encode_image(paths[:1])  # loads the tower
    start = time.perf_counter()
    pixels = runtime.encode_image(paths)
    ms = 1e3 * (time.perf_counter() - start) / len(paths)
    agree = float(np.mean(np.sum(pixels * index, axis=1)))
    print(
        f"{name}: {size / 1e6:.1f} MB of towers, {ms:.1f} ms a picture, cosine to fp32 {agree:.4f}"
    )

# %% [markdown]
# # 6. And then
#
# `pocketclip export MODEL --format coreml` (or `executorch`, `litert`) makes the bundle for a
# phone; docs/how-to/devices.md has the Swift, Kotlin and C++ lines that call it. Store
# `encoder.space_id` beside the index: a new model means a new index.

# %%
np.save(folder / "index.npy", index)
print(f"\nindex.npy belongs to {encoder.space_id}")
assert first >= 0.5, "the search should find most kinds"
