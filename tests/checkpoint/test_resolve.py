"""What a MODEL argument means: one table of spellings, on a folder whose files are all empty."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pocketclip.checkpoint import resolve
from pocketclip.checkpoint.resolve import is_path, newest_checkpoint, resolve_model
from pocketclip.errors import CheckpointError, ConfigError, UnknownModelError

CHECKPOINT = ("config.json", "model.safetensors")
STEP = (*CHECKPOINT, "trainer.pt", "checkpoint.json")
SNAPSHOT = "cache/models--laion--CLIP-ViT-B-16-DataComp.XL-s13B-b90K/snapshots/0123"
HERE = {
    # training runs, as `pocketclip train` leaves them
    "small": ("recipe.yaml", "run.json", "log.jsonl"),
    "small/model": CHECKPOINT,
    "small/checkpoints/step-00000002": STEP,
    "unfinished": ("recipe.yaml", "run.json"),
    "unfinished/checkpoints/step-00000009": STEP,
    "unfinished/checkpoints/step-00000010": STEP,
    "unfinished/checkpoints/step-00000012": ("config.json", "trainer.pt"),
    "unfinished/checkpoints/.step-00000014.7.ab.tmp": STEP,
    "begun": ("recipe.yaml", "run.json"),
    # checkpoints and bundles
    "tiny": CHECKPOINT,
    "mobileclip2-s2": CHECKPOINT,
    "clip-0.5": CHECKPOINT,
    "lr=0.1": CHECKPOINT,
    "tiny=x": CHECKPOINT,
    "my@run": CHECKPOINT,
    "with space": CHECKPOINT,
    "naïve-模型": CHECKPOINT,
    "random:tiny": CHECKPOINT,
    "lone-config": ("config.json",),
    "laptop": ("bundle.json", "image.onnx", "text.onnx", "tokenizer.json"),
    # the hub's forms
    "MobileCLIP2-S0": ("config.json", "README.md", "mobileclip2_s0.pt", ".mobileclip2_s0.pt"),
    "MobileCLIP-S1-OpenCLIP": (
        "config.json", "open_clip_config.json", "open_clip_pytorch_model.bin", "tokenizer.json",
    ),
    "both": ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "pytorch_model.bin"),
    "older": ("open_clip_pytorch_model.bin", "model.safetensors"),
    "apples": ("mobileclip_s0.pt", "model.safetensors", "pytorch_model.bin"),
    "twice": ("mobileclip_s0.pt", "mobileclip_s0.safetensors"),
    "mixed": ("mobileclip_s0.pt", "finetuned.safetensors"),
    "apple/MobileCLIP-S0": ("mobileclip_s0.pt",),
    "own/thing": CHECKPOINT,
    "runs/small": CHECKPOINT,
    SNAPSHOT: ("open_clip_model.safetensors",),
    # no models
    "several": ("epoch_1.pt", "epoch_2.pt"),
    "photos": ("a.jpg",),
    "vit-b16": ("results.jsonl",),
    "empty": (),
    "runs/a/model": CHECKPOINT,
}  # fmt: skip
FILES = ("w.pt", "W.BIN", "no-suffix", "coca-tiny", "photo.jpg", "ViT.safetensors", "small.pt")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    root = tmp_path_factory.mktemp("here")
    for folder, names in HERE.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name in names:
            (root / folder / name).touch()
    for name in FILES:
        (root / name).touch()
    os.mkfifo(root / "pipe")
    os.mkfifo(root / "pipe.pt")
    (root / "mobileclip-s0").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "linked").symlink_to("small")
    return root


@pytest.fixture(autouse=True)
def _inside(here, monkeypatch):
    monkeypatch.chdir(here)
    monkeypatch.setenv("HOME", str(here))


# What is written, its kind, and where it is: a path, or what `_place` says of other kinds.
RIGHT = [
    # 1: prefixes, also where something of that name is here
    ("random:tiny", "random", "tiny 0"),
    ("random:TINY:7", "random", "tiny 7"),
    (" random:coca_tiny:0 ", "random", "coca-tiny 0"),
    ("random:mobileclip2-s0:18446744073709551615", "random",
     "mobileclip2-s0 18446744073709551615"),
    ("transformers:google/siglip-base", "transformers", "google/siglip-base"),
    ("transformers:./empty", "transformers", "./empty"),
    ("open_clip:ViT-L-14/openai", "open_clip", "ViT-L-14/openai"),
    ("hf-hub:apple/MobileCLIP-S0", "hub", "apple/MobileCLIP-S0"),
    ("hf-hub:apple/MobileCLIP-S0@refs/pr/1", "hub", "apple/MobileCLIP-S0 @refs/pr/1"),
    ("vit-b16=w.pt", "file", "w.pt"),
    ("ViT-B-16 = w.pt", "file", "w.pt"),
    ("tiny=~/w.pt", "file", "~/w.pt"),
    ("tiny=small", "checkpoint", "small/model"),
    ("tiny=laptop/", "bundle", "laptop"),
    ("vit-b16=some/repo", "hub", "some/repo"),
    ("vit-b16=some/repo@v2", "hub", "some/repo @v2"),
    ("vit-b16=hf-hub:own/thing", "hub", "own/thing"),
    # 2: written as a path
    ("./small", "checkpoint", "small/model"),
    ("small/", "checkpoint", "small/model"),
    ("./small/", "checkpoint", "small/model"),
    ("./runs/../small", "checkpoint", "runs/../small/model"),
    ("~/small", "checkpoint", "~/small/model"),
    ("./tiny=x", "checkpoint", "tiny=x"),
    ("./random:tiny", "checkpoint", "random:tiny"),
    ("./MobileCLIP2-S0/", "file", "MobileCLIP2-S0/mobileclip2_s0.pt"),
    ("apple/MobileCLIP-S0/", "file", "apple/MobileCLIP-S0/mobileclip_s0.pt"),
    ("runs/a/model", "checkpoint", "runs/a/model"),
    ("runs//a", "checkpoint", "runs/a/model"),
    ("small/checkpoints/step-00000002", "checkpoint", "small/checkpoints/step-00000002"),
    ("w.pt", "file", "w.pt"),
    ("W.BIN", "file", "W.BIN"),
    ("ViT.safetensors", "file", "ViT.safetensors"),
    ("small.pt", "file", "small.pt"),
    # 3: what is here
    ("small", "checkpoint", "small/model"),
    ("linked", "checkpoint", "linked/model"),
    ("tiny", "checkpoint", "tiny"),
    (" tiny ", "checkpoint", "tiny"),
    ("mobileclip2-s2", "checkpoint", "mobileclip2-s2"),
    ("unfinished", "checkpoint", "unfinished/checkpoints/step-00000010"),
    ("lone-config", "checkpoint", "lone-config"),
    ("clip-0.5", "checkpoint", "clip-0.5"),
    ("lr=0.1", "checkpoint", "lr=0.1"),
    ("my@run", "checkpoint", "my@run"),
    ("with space", "checkpoint", "with space"),
    ("naïve-模型", "checkpoint", "naïve-模型"),
    ("laptop", "bundle", "laptop"),
    ("MobileCLIP2-S0", "file", "MobileCLIP2-S0/mobileclip2_s0.pt"),
    ("MobileCLIP-S1-OpenCLIP", "file", "MobileCLIP-S1-OpenCLIP/open_clip_pytorch_model.bin"),
    ("both", "file", "both/open_clip_model.safetensors"),
    ("older", "file", "older/open_clip_pytorch_model.bin"),
    ("apples", "file", "apples/mobileclip_s0.pt"),
    ("twice", "file", "twice/mobileclip_s0.safetensors"),
    ("apple/MobileCLIP-S0", "file", "apple/MobileCLIP-S0/mobileclip_s0.pt"),
    ("own/thing", "checkpoint", "own/thing"),
    (SNAPSHOT, "file", f"{SNAPSHOT}/open_clip_model.safetensors"),
    (SNAPSHOT.rpartition("/snapshots")[0], "file", f"{SNAPSHOT}/open_clip_model.safetensors"),
    # 4: the hub
    ("timm/MobileCLIP2-S0-OpenCLIP", "hub", "timm/MobileCLIP2-S0-OpenCLIP"),
    ("apple/MobileCLIP-S0@main", "hub", "apple/MobileCLIP-S0 @main"),
    ("some/where", "hub", "some/where"),
    ("ViT-B/16", "hub", "ViT-B/16"),
    # 5: the zoo
    ("mobileclip2-s4", "hub", "apple/MobileCLIP2-S4 timm/MobileCLIP2-S4-OpenCLIP"),
    ("MobileCLIP2_S4", "hub", "apple/MobileCLIP2-S4 timm/MobileCLIP2-S4-OpenCLIP"),
    ("mobileclip2_s2", "hub", "apple/MobileCLIP2-S2 timm/MobileCLIP2-S2-OpenCLIP"),
    (" VIT b16\n", "hub", "laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
]  # fmt: skip


def _place(source):
    if source.kind == "random":
        return f"{source.model} {source.seed}"
    if source.kind == "hub":
        return " ".join(source.repos) + (f" @{source.revision}" if source.revision else "")
    return source.target


@pytest.mark.parametrize(("text", "kind", "place"), RIGHT)
def test_what_it_means(text, kind, place):
    source = resolve_model(text)
    assert (source.text, source.kind) == (text if Path(text).exists() else text.strip(), kind)
    if source.path is None:
        assert _place(source) == place
    else:
        assert source.path == Path(place).expanduser()
        assert source.path.exists()


# What is written, and the error with a part of its message.
WRONG = [
    ("", UnknownModelError, "no model given"),
    (" \t", UnknownModelError, "no model given"),
    ("tiny\0", UnknownModelError, "null character"),
    # 1
    ("random:", ConfigError, "random:MODEL:SEED"),
    ("random: ", ConfigError, "random:MODEL:SEED"),
    ("random::3", ConfigError, "random:MODEL:SEED"),
    ("random:nope", UnknownModelError, "unknown model 'nope'"),
    ("random:tiny:", ConfigError, "random:MODEL:SEED"),
    ("random:tiny:x", ConfigError, "random:MODEL:SEED"),
    ("random:tiny:-1", ConfigError, "a seed from 0 to"),
    ("random:tiny:1.5", ConfigError, "a seed from 0 to"),
    ("random:tiny:٣", ConfigError, "a seed from 0 to"),
    ("random:tiny:18446744073709551616", ConfigError, "a seed from 0 to"),
    ("random:tiny:" + 5000 * "9", ConfigError, "a seed from 0 to"),
    ("random:./small", ConfigError, "not a path"),
    ("transformers:", ConfigError, "transformers:ID"),
    ("open_clip:", ConfigError, "open_clip:NAME"),
    ("hf-hub:", ConfigError, "hf-hub:OWNER/NAME"),
    ("hf-hub:mobileclip2-s0", ConfigError, "hf-hub:OWNER/NAME"),
    ("hf-hub:a/b/c", ConfigError, "hf-hub:OWNER/NAME"),
    ("tiny=", ConfigError, "the form is NAME=FILE"),
    ("tiny=gone.pt", CheckpointError, "gone.pt: no such file"),
    ("tiny=x", CheckpointError, "that whole name, write ./tiny=x"),
    ("tiny=small2", CheckpointError, "small2: no such file or folder, in NAME=FILE"),
    ("tiny=random:small", CheckpointError, "random:small: no such file"),
    ("nope=w.pt", CheckpointError, "nope=w.pt: no such file"),
    ("nope=w", ConfigError, "or NAME=FILE with a model of the zoo"),
    # 2
    ("./nope", CheckpointError, "./nope: no such file or folder"),
    ("./Tiny", CheckpointError, "no such file or folder; did you mean random:tiny"),
    ("coca_tiny/", CheckpointError, "did you mean random:coca-tiny"),
    ("mobileclip2-s4/", CheckpointError, "the published model is mobileclip2-s4"),
    ("~/nope", CheckpointError, "no such file"),
    ("~nobody-here", CheckpointError, "no such file"),
    ("/nope", CheckpointError, "no such file"),
    (".", CheckpointError, ".: several files could be the weights"),
    ("..", CheckpointError, "."),
    ("...", CheckpointError, "no such file"),
    ("a/b/c", CheckpointError, "no such file"),
    ("gone.pt", CheckpointError, "gone.pt: no such file"),
    ("tiny.safetensors", CheckpointError, "tiny.safetensors: no such file"),
    ("w.pt/", CheckpointError, "w.pt/: no such file or folder (Not a directory)"),
    ("apple/X@refs/pr/1", CheckpointError, "on the hub, write hf-hub:apple/X@refs/pr/1"),
    ("https://huggingface.co/apple/MobileCLIP-S0", CheckpointError, "URLs are not supported"),
    ("s3://bucket/model", CheckpointError, "URLs are not supported"),
    (300 * "x" + "/", CheckpointError, "no such file"),
    ("pipe.pt", CheckpointError, "neither a file nor a folder"),
    # 3
    ("pipe", CheckpointError, "neither a file nor a folder"),
    ("mobileclip-s0", CheckpointError, "is a broken link (nowhere)"),
    ("loop", CheckpointError, "is a bad link (loop)"),
    ("no-suffix", CheckpointError, "no suffix is not a weight file's suffix"),
    ("coca-tiny", CheckpointError, "no suffix is not a weight file's suffix"),
    ("photo.jpg", CheckpointError, ".jpg is not a weight file's suffix"),
    ("laptop/bundle.json", CheckpointError, "name its folder, laptop"),
    ("small/model/config.json", CheckpointError, "name its folder, small/model"),
    ("empty", CheckpointError, "folder without config.json"),
    ("photos", CheckpointError, "there is no model in it"),
    ("vit-b16", CheckpointError, "published model is hf-hub:laion/CLIP-ViT-B-16"),
    ("begun", CheckpointError, "a training run without a checkpoint"),
    ("several", CheckpointError, "several files could be the weights (epoch_1.pt, epoch_2.pt)"),
    ("mixed", CheckpointError, "(finetuned.safetensors, mobileclip_s0.pt); pass the path"),
    # 4
    ("apple/X@", ConfigError, "hf-hub:OWNER/NAME@REVISION"),
    ("a b/c", UnknownModelError, "unknown model 'a b/c'"),
    # 5
    ("Tiny", CheckpointError, "random:tiny to try things out"),
    ("SMALL", CheckpointError, "random:small to try things out"),
    ("coca_tiny", CheckpointError, "random:coca-tiny to try things out"),
    ("mobileclip2-s9", UnknownModelError, "no such file or folder either"),
    ("mobileclip2-s0@main", UnknownModelError, "unknown model"),
    ("ｔｉｎｙ", UnknownModelError, "unknown model"),
    ("-", UnknownModelError, "unknown model"),
]


@pytest.mark.parametrize(("text", "error", "message"), WRONG)
def test_what_it_cannot_mean(text, error, message):
    with pytest.raises(error) as caught:
        resolve_model(text)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("small", "small is the file or folder of that name here; a model of the zoo with "
         "random weights is random:small"),
        ("mobileclip2-s2", "the published model is hf-hub:apple/MobileCLIP2-S2"),
        ("apple/MobileCLIP-S0", "the published model is hf-hub:apple/MobileCLIP-S0"),
        ("unfinished", "an unfinished run: its checkpoint of step 10 is used"),
        ("ViT-B/16", "the zoo's model is written vit-b16"),
        ("./small", ""), ("small/", ""), ("laptop", ""), ("own/thing", ""), ("random:tiny", ""),
        ("runs/small", ""),
        ("mobileclip2_s2", ""), ("timm/MobileCLIP2-S0-OpenCLIP", ""),
    ],
)  # fmt: skip
def test_notes(text, note):
    actual = resolve_model(text).note
    assert note in actual
    assert bool(actual) == bool(note)


@pytest.mark.parametrize(
    ("text", "model", "suggested"),
    [
        ("timm/MobileCLIP2-S0-OpenCLIP", "mobileclip2-s0", None),
        ("LAION/clip-vit-b-16-datacomp.xl-s13b-b90k", "vit-b16", None),
        ("some/where", None, None),
        ("mobileclip2-s4", "mobileclip2-s4", None),
        ("vit-l14=w.pt", "vit-l14", None),
        (SNAPSHOT, None, "vit-b16"),
        (f"{SNAPSHOT}/open_clip_model.safetensors", None, "vit-b16"),
        ("MobileCLIP-S1-OpenCLIP", None, "mobileclip-s1"),
        # A file says itself which model it is, or its own name does.
        ("./MobileCLIP-S1-OpenCLIP/open_clip_pytorch_model.bin", None, None),
        ("both", None, None),
    ],
)
def test_which_model_it_says(text, model, suggested):
    source = resolve_model(text)
    assert (source.model, source.suggested) == (model, suggested)


@pytest.mark.parametrize(
    ("text", "label", "target"),
    [
        ("ours=small", "ours", "small"),
        ("ours=./small/", "ours", "./small/"),
        ("ours=vit-b16=w.pt", "ours", "w.pt"),
        ("ours=mobileclip2_s4", "ours", "mobileclip2_s4"),
        ("lr=0.1", "0.1", "lr=0.1"),  # it is here
        ("vit-b16=w.pt", "vit-b16=w", "w.pt"),
        ("small=random:tiny", "small", "tiny"),
        ("tiny=transformers:google/siglip", "tiny", "google/siglip"),
        ("small/", "small", "small/"),
        (".", None, None),
    ],
)
def test_labels(text, label, target):
    if label is None:
        with pytest.raises(CheckpointError):
            resolve_model(text, labels=True)
        return
    source = resolve_model(text, labels=True)
    assert (source.label, source.target) == (label if "lr" not in text else "lr=0.1", target)


def test_a_label_is_for_teachers_only():
    with pytest.raises(ConfigError, match="or NAME=FILE"):
        resolve_model("ours=small")
    for text in ("a=b=small", "a=" * 5000):
        with pytest.raises((ConfigError, CheckpointError)):
            resolve_model(text, labels=True)


def test_a_path_object_is_a_path():
    assert resolve_model(Path("tiny")).path == Path("tiny")
    for text in ("Tiny", "mobileclip2-s4", "random:small", "timm/MobileCLIP2-S0-OpenCLIP"):
        with pytest.raises(CheckpointError, match="no such file or folder"):
            resolve_model(Path(text))
    assert resolve_model(Path("random:tiny")).kind == "checkpoint"


def test_revisions():
    assert resolve_model("some/where", revision="v1").revision == "v1"
    assert resolve_model("mobileclip2-s4", revision="v1").revision == "v1"
    assert resolve_model("some/where@v1", revision="v1").revision == "v1"
    for text, revision in (("some/where@v1", "v2"), ("some/where", ""), ("some/where", " ")):
        with pytest.raises(ConfigError, match="does not fit"):
            resolve_model(text, revision=revision)
    for text in ("small", "random:tiny", "w.pt", "laptop", "transformers:google/siglip"):
        with pytest.raises(ConfigError, match="is not a repository on the hub"):
            resolve_model(text, revision="main")


@pytest.mark.parametrize(
    ("text", "posix", "windows"),
    [
        ("small", False, False), ("a/b", False, False), ("a/b/c", True, True),
        (r"runs\small", False, True), ("C:model", False, True), (r"C:\m", False, True),
        ("c:/m", False, True), (r"\\host\m", False, True), ("small\\", False, True),
        ("random:tiny", False, False), ("./a", True, True), ("a.PTH", True, True),
        ("a.npz", False, False), ("~", True, True),
    ],
)  # fmt: skip
def test_what_is_written_as_a_path(text, posix, windows):
    assert is_path(text, windows=False) == posix
    assert is_path(text, windows=True) == windows


def test_paths_that_mean_the_same_everywhere(here):
    for text, expected in (
        ("small", f"{here}/small"), ("ours=small", f"ours={here}/small"),
        ("lr=0.1", f"{here}/lr=0.1"), ("a=vit-b16=./w.pt", f"a=vit-b16={here}/w.pt"),
        ("~/w.pt", f"{here}/w.pt"), ("linked", f"{here}/linked"),
        ("t=transformers:empty", f"t=transformers:{here}/empty"),
        ("transformers:google/siglip", "transformers:google/siglip"),
        ("random:tiny", "random:tiny"), ("own/other", "own/other"),
    ):  # fmt: skip
        assert resolve.absolute(text) == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        resolve_model(tmp_path / "closed")


def test_package_resolve_and_hub_need_no_torch():
    code = (
        "import sys\nsys.modules['torch'] = sys.modules['safetensors'] = None\n"
        "import pocketclip.checkpoint, pocketclip.checkpoint.resolve, pocketclip.checkpoint.hub\n"
        "from pocketclip.checkpoint.resolve import resolve_model\n"
        "print(resolve_model(sys.argv[1]).path, resolve_model('mobileclip2-s4').repos[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "small"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["small/model", "apple/MobileCLIP2-S4"]


def test_a_name_that_the_terminal_cannot_show(here):
    name = os.fsdecode(b"caf\xe9")
    (here / name).mkdir()
    (here / name / "config.json").touch()
    assert resolve_model(name).path == Path(name)


def test_the_names_of_a_runs_files_are_those_that_training_writes():
    from pocketclip.train import checkpoints, reporting, run

    assert (checkpoints.FOLDER, run.MODEL_DIR, reporting.RECIPE) == (
        resolve.RUN_CHECKPOINTS, resolve.RUN_MODEL, resolve.RUN_RECIPE
    )  # fmt: skip
    assert checkpoints.checkpoint_dir(Path("small"), 2) == newest_checkpoint(Path("small"))
    assert checkpoints._SEAL == resolve.SEAL


def test_published_models_whatever_is_here():
    source = resolve.published_model("MobileCLIP2_S2")
    assert source.repos == ("apple/MobileCLIP2-S2", "timm/MobileCLIP2-S2-OpenCLIP")
    source = resolve.resolve_model("CoCa-DFN2B-docci_context128")
    assert source.repos == ("apple/mobileclip2_coca_dfn2b_s13b_docci_s12m_context128",)
    assert source.model == "coca-dfn2b-docci-context128"
    assert resolve.resolve_model(source.repos[0]).model == source.model
    assert resolve.resolve_model("random:coca-dfn2b-docci-context128").model == source.model
    with pytest.raises(CheckpointError, match="random:tiny"):
        resolve.published_model("tiny")
