"""Pictures of your own: what a model knows of them, wrong labels, copies, examples per class.

    pip install -c constraints.txt ".[train]"
    python examples/own_images.py [TABLE.csv]

Runs offline in under a minute. Without a table it draws 480 labelled pictures; with one of your
own (columns `image`, with paths beside the table, and `label`) it reads that, and MODEL below
should be a published model, such as "mobileclip2-s0".
"""

# %% [markdown]
# # 1. The pictures and their labels
#
# To know what the answers are worth we spoil the table: 24 labels are exchanged for another one,
# and 5 pictures are stored again, smaller and as another file.

# %%
import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import pocketclip
from pocketclip.evaluate import DataOptions, evaluate, own_task, plan
from pocketclip.quickstart.collection import TESTS, Sizes, read_rows, write_collection

MODEL = Path(pocketclip.__file__).parent / "data" / "quickstart" / "teacher-a"
TEMPLATES = ("a picture of {}.", "{}")  # the labels below have their article: "a red fish"

if len(sys.argv) > 1:
    table = Path(sys.argv[1])
else:
    folder = Path(tempfile.mkdtemp(prefix="own-"))
    write_collection(folder, Sizes(train=1, unseen=480, retrieval=1), seed=11)
    table = folder / TESTS / "unseen" / "test.csv"
rows = read_rows(table)
paths = [str(table.parent / row["image"]) for row in rows]
truth = [row["label"] for row in rows]
classes = sorted(set(truth))
print(f"{len(paths)} pictures, {len(classes)} classes")

random = np.random.default_rng(0)
labels = list(truth)
spoiled = set(random.choice(len(labels), 24, replace=False).tolist())
for row in spoiled:
    labels[row] = str(random.choice([name for name in classes if name != truth[row]]))

work = Path(tempfile.mkdtemp(prefix="own-copies-"))
originals = random.choice(len(paths), 5, replace=False).tolist()
for number, row in enumerate(originals):
    picture = Image.open(paths[row]).convert("RGB")
    copy = work / f"copy{number}.png"
    picture.resize((picture.width * 3 // 4, picture.height * 3 // 4)).save(copy)

# %% [markdown]
# # 2. Does the model know these classes?
#
# Zero-shot: each class is a few sentences, each picture gets the nearest class. This is what
# `pocketclip eval MODEL --data TABLE --label-column label` measures.

# %%
encoder = pocketclip.Encoder(str(MODEL))
options = DataOptions(label_column="label", templates=TEMPLATES)
(job,) = plan([own_task(str(table))], str(table), options).ready
result, _ = evaluate(encoder, *job)
print(f"zero-shot top-1: {result.metrics['acc1']:.1%} (guessing: {1 / len(classes):.1%})")

# %% [markdown]
# # 3. Which classes does it confuse?
#
# The same scores by hand: pictures (N, D) times classes (D, K).

# %%
pictures = encoder.encode_image(paths)
prompts = [template.format(name) for name in classes for template in TEMPLATES]
sentences = encoder.encode_text(prompts).reshape(len(classes), len(TEMPLATES), -1)
class_vectors = sentences.mean(axis=1)
class_vectors /= np.linalg.norm(class_vectors, axis=1, keepdims=True)
scores = pictures @ class_vectors.T
best = scores.argmax(axis=1)
taken_for = [(truth[row], classes[best[row]]) for row in range(len(rows))]
wrong = [pair for pair in taken_for if pair[0] != pair[1]]
print("most confused:")
for pair in sorted(set(wrong), key=lambda pair: -wrong.count(pair))[:4]:
    print(f"  {pair[0]} taken for {pair[1]}: {wrong.count(pair)} times")

# %% [markdown]
# # 4. Which labels are wrong?
#
# A label is suspect where another class fits the picture much better. Sorted by that difference,
# the first rows are those to look at; since we spoiled 24 labels ourselves, we can count.

# %%
column_of = {name: number for number, name in enumerate(classes)}
labelled = np.array([scores[row, column_of[labels[row]]] for row in range(len(rows))])
suspicion = scores.max(axis=1) - labelled
order = np.argsort(-suspicion)
print("the most suspect labels:")
for row in order[:5]:
    name = Path(paths[row]).name
    print(f"  {name}: labelled {labels[row]}, looks like {classes[best[row]]}, is {truth[row]}")
caught = len(spoiled & set(order[:48].tolist()))
print(f"looking through 48 of {len(rows)} pictures finds {caught} of the 24 wrong labels "
      f"(by chance {24 * 48 / len(rows):.1f})")  # fmt: skip

# %% [markdown]
# # 5. Which pictures are copies?
#
# Embeddings hardly change when a picture is made smaller or stored in another format. The nearest
# neighbour of each copy should be its original.

# %%
copies = encoder.encode_image(sorted(str(path) for path in work.iterdir()))
nearest = (copies @ pictures.T).argmax(axis=1)
right = sum(int(a) == b for a, b in zip(nearest, originals, strict=True))
print(f"copies whose nearest picture is the original: {right} of {len(originals)}")

# %% [markdown]
# # 6. Four labelled pictures of each class instead of a name
#
# The mean of four pictures is a class vector like that of a sentence. Use it where names say little
# ("shelf 14"). Here the names say everything, and four pictures, which differ in size, place and
# background, say less.

# %%
chosen = {name: [row for row in range(len(rows)) if truth[row] == name][:4] for name in classes}
others = sorted(set(range(len(rows))) - {row for group in chosen.values() for row in group})
examples = np.stack([pictures[group].mean(axis=0) for group in chosen.values()])
examples /= np.linalg.norm(examples, axis=1, keepdims=True)
answers = np.array([column_of[truth[row]] for row in others])
for title, vectors in (
    ("names", class_vectors),
    ("four examples", examples),
    ("both", class_vectors + examples),
):
    accuracy = float(((pictures[others] @ vectors.T).argmax(axis=1) == answers).mean())
    print(f"{title}: {accuracy:.1%} of the {len(others)} other pictures")

# %%
with (work / "suspects.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["image", "label", "looks_like", "difference"])
    for row in order[:48]:
        difference = f"{suspicion[row]:.3f}"
        writer.writerow([rows[row]["image"], labels[row], classes[best[row]], difference])
print(f"\nto look through: {work / 'suspects.csv'}")
assert caught >= 12, "most of the spoiled labels should be among the suspects"
