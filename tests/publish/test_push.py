"""`pocketclip push` against a hub on 127.0.0.1: what is uploaded can be read back."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import pocketclip
from pocketclip import checkpoint, publish, zoo
from pocketclip.checkpoint import hub as hub_reading
from pocketclip.checkpoint.names import written_config
from pocketclip.checkpoint.resolve import resolve_model
from pocketclip.checkpoint.weight_license import name_on_card
from pocketclip.errors import CheckpointError, ConfigError, HubError
from pocketclip.formats.yaml_text import load_yaml
from pocketclip.license import License
from pocketclip.nn.build import random_model
from pocketclip.publish import facts, open_clip_form, terms
from pocketclip.publish.card import model_card
from pocketclip.publish.terms import Origin
from tests.cli.inside import run as run_inside
from tests.hub_uploads import Account

# huggingface_hub hands the file to its HTTP library in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
RECIPE = """about: for grandma
model: {name: tiny, overrides: {image_size: 16}, init: null}
data: {source: [/home/grandma/secret/dr, hf://datasets/owner/set/x.tar], cache_dir: /mnt/big}
evaluation: {data: /home/grandma/shelf, where: {split: private}}
wandb: grandmas-project
steps: 6
batch_size: 8
"""


@pytest.fixture
def account(hub, monkeypatch):
    hub.accounts |= {
        "hf_write": Account("me", "write", ("club",)),
        "hf_read": Account("me", "read"),
        "hf_fine": Account("me", "fineGrained"),
    }
    monkeypatch.setenv("HF_TOKEN", "hf_write")
    return hub


def _save(folder, *, license=None, name="tiny", **overrides):
    model = random_model(name, seed=1, **(overrides or {"image_size": 16}))
    if license is not None:
        model.license = license
    checkpoint.save(model, folder)
    return folder


@pytest.fixture
def run(tmp_path):
    """A finished run, as training leaves it."""
    folder = tmp_path / "runs" / "mine"
    _save(folder / "model")
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    starts = [{"processes": 2, "device": "cpu", "system": "Linux-grandmas-box"}]
    about = {
        "samples": 48,
        "teachers": ["vit-b16", "/home/grandma/teacher"],
        "captioners": ["/home/grandma/captioner"],
        "starts": starts,
    }
    (folder / "run.json").write_text(json.dumps(about), "utf-8")
    return folder


def test_teachers_that_a_run_did_not_use_are_not_named(run):
    recipe = (run / "recipe.yaml").read_text("utf-8")
    (run / "recipe.yaml").write_text(recipe + "loss: {weights: [1.0, 0.0]}\n", "utf-8")
    origins = facts.gather(str(run), space_id="x").origins
    assert "teacher" not in {origin.role for origin in origins}


def test_what_is_pushed_is_read_back(account, run, tmp_path):
    url = publish.push(run, "me/mine", license="mit")
    assert url.startswith(f"{account.url}/me/mine/commit/")
    assert account.repos["me/mine"].keys() == {
        ".gitattributes", "README.md", "config.json", "model.safetensors"
    }  # fmt: skip
    assert "me/mine" in account.private
    (commit,) = account.commits  # everything at once
    assert commit["summary"] == "tiny, by pocketclip"
    here, there = checkpoint.load(run), checkpoint.load("me/mine")
    assert there.space_id == here.space_id
    assert there.license.name == "mit"
    for name, value in here.state_dict().items():
        assert torch.equal(there.state_dict()[name], value)
    assert checkpoint.load("me/mine", offline=True).space_id == here.space_id
    ids = ["a cat", "two dogs"]
    assert np.array_equal(
        pocketclip.load("me/mine").encode_text(ids), pocketclip.load(run).encode_text(ids)
    )
    # A folder that was downloaded by hand.
    for name, content in account.repos["me/mine"].items():
        (tmp_path / name).write_bytes(content)
    assert checkpoint.load(tmp_path).space_id == here.space_id


def test_nothing_local_is_uploaded(account, run):
    publish.push(run, "me/mine", license="mit")
    private = ["grandma", "/home", "/mnt", "secret", str(run), account.url]
    # A short name may stand in the weights by chance.
    private += [name for name in (socket.gethostname(), getpass.getuser()) if len(name) > 4]
    for name, content in account.repos["me/mine"].items():
        for text in private:
            assert text.encode() not in content, (name, text)


def test_the_card(account, run, tmp_path):
    account.repos["datasets/owner/set"] = {"x.tar": b""}
    account.cards["datasets/owner/set"] = {"license": "cc-by-4.0"}
    space = checkpoint.load(run).space_id
    line = {"key": "shelf", "dataset": "a | shelf", "metrics": {"main_metric": 0.5},
            "pocketclip": {"space_id": space, "metric": "acc1", "samples": 40}}  # fmt: skip
    (run / "results.jsonl").write_text(json.dumps(line), "utf-8")
    with publish.prepare(run, "me/mine", license="apache-2.0") as plan:
        card = plan.card
    head = load_yaml(card.split("---\n")[1])
    assert head == {
        "license": "apache-2.0", "library_name": "pocketclip",
        "pipeline_tag": "zero-shot-image-classification", "tags": ["pocketclip", "clip"],
        "datasets": ["owner/set"],
    }  # fmt: skip
    assert r"| a \| shelf | acc1 | 0.5000 | 40 |" in card
    assert "teacher: [vit-b16](https://huggingface.co/laion/" in card
    assert "- data: [hf://datasets/owner/set](https://huggingface.co/datasets/owner/set), " \
        "licence: cc-by-4.0" in card  # fmt: skip
    assert "- data: `dr`, licence: not known" in card
    assert "- captioner: `captioner`, licence: not known" in card
    assert "samples seen | 48 in 6 steps of 8" in card
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(line).replace(space, "space-0"), "utf-8")
    with pytest.raises(ConfigError, match="results of another model"), publish.prepare(
        run, "me/mine", license="mit", results=other
    ):  # fmt: skip
        pass


def test_an_existing_repository_is_replaced_at_once_and_keeps_its_visibility(account, run):
    publish.push(run, "me/mine", license="mit")
    repo = account.repos["me/mine"]
    repo |= {"open_clip_model.safetensors": b"old", "notes.txt": b"kept", "README.md": b"mine"}
    with publish.prepare(run, "me/mine", license="mit", keep_card=True) as plan:
        assert plan.replaced == ["config.json", "model.safetensors"]
        assert plan.removed == ["open_clip_model.safetensors"]
        publish.upload(plan)
    assert (repo["README.md"], repo["notes.txt"]) == (b"mine", b"kept")
    assert "open_clip_model.safetensors" not in repo
    with pytest.raises(ConfigError, match="is private; a push never changes that"):
        publish.push(run, "me/mine", license="mit", public=True)
    account.private.clear()
    with pytest.raises(ConfigError, match="exists and is public, so everybody would see"):
        publish.push(run, "me/mine", license="mit")
    publish.push(run, "me/mine", license="mit", public=True, revision="try", message="a try")
    assert account.commits[-1]["revision"] == "try"
    assert account.commits[-1]["summary"] == "a try"


def test_an_interrupted_upload_leaves_nothing(account, run):
    account.fail("commit", status=400)
    with pytest.raises(HubError, match=r"failed .* the new repository me/mine is empty"):
        publish.push(run, "me/mine", license="mit")
    assert account.repos["me/mine"].keys() == {".gitattributes"}
    account.heal()
    publish.push(run, "me/mine", license="mit")
    assert "model.safetensors" in account.repos["me/mine"]


@pytest.mark.parametrize(
    ("token", "repo", "says"),
    [
        (None, "me/mine", "there is no token for http.* HF_TOKEN"),
        ("hf_wrong", "me/mine", "the token is not valid"),
        ("hf_read", "me/mine", "the token of me may only read"),
        ("hf_write", "you/mine", "would belong to you, .* push to me/mine or club/mine"),
        ("hf_fine", "me/mine", "does not let this token write to me/mine"),
        ("hf_write", "mine", "write it as OWNER/NAME"),
        ("hf_write", "me/mi ne", "write it as OWNER/NAME"),
        ("hf_write", "me/../x", "write it as OWNER/NAME"),
    ],
)
def test_who_may_not_push_is_told_why(account, run, monkeypatch, token, repo, says):
    monkeypatch.delenv("HF_TOKEN")
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=says):
        publish.push(run, repo, license="mit")
    assert not account.repos


def test_what_cannot_be_pushed(account, run, tmp_path, monkeypatch):
    def refused(source, says, kind=ConfigError, **options):
        with pytest.raises(kind, match=says):
            publish.push(source, "me/mine", **{"license": "mit", **options})

    refused(run, "the licence of this model is not known", license=None)
    refused(run, r"did you mean apache-2.0\?", license="apache2")
    refused(run, "names no licence", license="other")
    refused("random:tiny", "random weights")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}", "utf-8")
    refused(tmp_path / "bundle", "is a bundle")
    refused("mobileclip2-s0", "no run or checkpoint")
    refused("owner/name", "no run or checkpoint")
    unfinished = tmp_path / "unfinished"
    saved = _save(unfinished / "checkpoints" / "step-00000003")
    (saved / "checkpoint.json").write_text("{}", "utf-8")
    refused(unfinished, "unfinished run: let it finish", CheckpointError)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(run, "the network is off", HubError)
    assert not [request for request in account.requests if request.method != "GET"]


RESTRICTED = License(name="apple-amlr", url="https://huggingface.co/apple/MobileCLIP2-S0", text="T")


def test_restricted_weights_stay_restricted(account, tmp_path):
    saved = _save(tmp_path / "c", license=RESTRICTED)
    with pytest.raises(ConfigError, match=r"may forbid publishing .* --accept-licence"):
        publish.push(saved, "me/mine")
    with pytest.raises(ConfigError, match="cannot be published as mit; leave --licence out"):
        publish.push(saved, "me/mine", license="mit", accept_license=True)
    publish.push(saved, "me/mine", accept_license=True)
    assert account.repos["me/mine"]["LICENCE.txt"] == b"T"
    back = checkpoint.load("me/mine")
    assert (back.license.name, back.license.text) == ("apple-amlr", "T")
    assert hub_reading.fetch("me/mine").path.name == "model.safetensors"


def _origin(role, license):
    return Origin(role=role, name="x", license=license)


@pytest.mark.parametrize(
    ("wanted", "accepted", "origins", "name"),
    [
        ("MIT", False, [], "mit"),
        (None, False, [("start", License(name="mit"))], "mit"),
        ("apache-2.0", False, [("start", License(name="mit"))], "apache-2.0"),
        ("mit", False, [("start", License(name="gpl-3.0"))], None),
        ("mit", False, [("teacher", License(name="apple-amlr"))], None),
        ("mit", True, [("teacher", License(name="apple-amlr"))], "mit"),
        ("mit", False, [("data", License(name="cc-by-nc-4.0"))], None),
        ("mit", False, [("data", License())], "mit"),
        (None, True, [("data", License(name="mit"))], None),
        (None, True, [("start", License(text="own"))], "own-terms"),
    ],
)
def test_the_licence_that_is_chosen(wanted, accepted, origins, name):
    made_from = [_origin(*one) for one in origins]
    if name is None:
        with pytest.raises(ConfigError):
            terms.choose(wanted, None, made_from, accepted=accepted)
        return
    chosen = terms.choose(wanted, None, made_from, accepted=accepted)
    from pocketclip.publish.card import front_license

    assert (name_on_card(front_license(chosen)) or chosen.name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("/home/ann/runs/x", "x"), ("vit-b16", "vit-b16"), ("owner/name", "owner/name"),
        ("t=/home/ann/x", "x"), ("s3://bucket/x", "an object store"), (str(Path.home()),
        "local files"), ("hf://datasets/o/n@v1/*.tar", "hf://datasets/o/n"),
        ("python:secret.module:make", "own code"), (r"C:\Users\ann\dr", "dr"),
    ],
)  # fmt: skip
def test_names_are_published_without_folders(text, name):
    assert facts.public_name(text) == name


def test_open_clips_form_is_written_where_there_is_one(account, tmp_path):
    """Its values are those of `timm/MobileCLIP2-S0-OpenCLIP`."""
    assert open_clip_form.open_clip_config(zoo.entry("mobileclip2-s0").config) == {
        "model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {
                "timm_model_name": "fastvit_mci0", "timm_model_pretrained": False,
                "timm_pool": "avg", "timm_proj": None, "timm_drop": 0.0, "timm_drop_path": 0.0,
                "image_size": 256,
            },
            "text_cfg": {
                "context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12,
                "mlp_ratio": 4.0, "no_causal_mask": True,
            },
            "custom_text": True,
        },
        "preprocess_cfg": {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0],
                           "interpolation": "bilinear", "resize_mode": "shortest"},
    }  # fmt: skip
    squashed = open_clip_form.open_clip_config(zoo.entry("vit-h14-quickgelu").config)
    assert squashed["preprocess_cfg"]["resize_mode"] == "squash"
    has = {
        name: open_clip_form.reason_against(entry.config, fused=False) is None
        for name, entry in zoo.ZOO.items()
    }
    assert all(has[name] for name in zoo.ZOO if name.startswith("mobileclip2-"))
    assert all(has[name] for name in zoo.ZOO if name.startswith("vit-"))
    assert not any(has[name] for name in zoo.ZOO if name.startswith("coca"))
    assert not any(has[n] for n in ("tiny", "small", "mobileclip-s0", "mobileclip-b"))
    # A plain transformer, small enough to be written here.
    sizes = {"image.width": 64, "image.layers": 1, "image.heads": 2, "text.width": 64,
             "text.layers": 1, "text.heads": 2, "embed_dim": 32, "image_size": 32}  # fmt: skip
    saved = _save(tmp_path / "vit", name="vit-b16", **sizes)
    publish.push(saved, "me/vit", license="mit")
    files = account.repos["me/vit"]
    config = json.loads(files["open_clip_config.json"])["model_cfg"]
    assert config["vision_cfg"] == {
        "image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16
    }  # fmt: skip
    (tmp_path / "open_clip_model.safetensors").write_bytes(files["open_clip_model.safetensors"])
    here = checkpoint.load(saved)
    form = checkpoint.load(tmp_path / "open_clip_model.safetensors")
    assert form.config == written_config(here.config, "openclip")
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(form.eval().encode_image(pixels), here.eval().encode_image(pixels))
    assert checkpoint.load("me/vit").space_id == here.space_id  # ours is preferred


def test_the_verb_asks(account, run):
    push = ("push", str(run), "me/mine", "--licence", "mit")
    done = run_inside(*push)
    assert done.returncode == 2
    assert "nothing was uploaded: there is nobody to ask; give --yes" in done.stderr
    assert "me/mine, private: does not exist yet and will be created" in done.stdout
    assert not account.repos
    shown = json.loads(run_inside(*push, "--dry-run", "--json").stdout)
    assert shown["visibility"] == "private"
    assert shown["commit"] is None
    assert shown["files"].keys() == {"README.md", "config.json", "model.safetensors"}
    assert run_inside(*push, "--json").returncode == 2
    done = run_inside(*push, "--yes", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["commit"].startswith(account.url)
    assert "model.safetensors" in account.repos["me/mine"]


def test_the_card_of_a_sparse_model_says_what_it_is():
    dense = zoo.entry("vit-b16").config
    cards = [
        model_card(
            facts.Facts(source=resolve_model("random:tiny")), "me/b16", License(name="mit"),
            config=config, parameters=436_212_225, space_id="space-1", open_clip=False,
        )
        for config in (zoo.sparse_config(dense, towers=("text",)), dense)
    ]  # fmt: skip
    assert (
        "| text tower, mixtures of experts | 8 experts, 2 per token, in the blocks 1, 3,"
        in (cards[0])
    )
    assert "image tower, mixtures" not in cards[0]
    assert "436.2 million, 162.2 million of the towers active per token" in cards[0]
    assert "expert" not in cards[1]
    assert "active" not in cards[1]


def test_a_sparse_model_has_no_form_for_open_clip():
    sparse = zoo.sparse_config(zoo.entry("vit-b16").config)
    assert "mixtures of experts" in open_clip_form.reason_against(sparse, fused=False)
