"""Published models in an install without torch, from a hub on 127.0.0.1.

    python -m tests.base_hub FOLDER SLIM

FOLDER holds MobileCLIP2-S0's golden case (`tests.graph.golden_files`), SLIM a weight file of a
very small model (`tests.infer.slim`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

import pocketclip
from pocketclip.infer.backends import onnx_session
from tests.golden_values import fill, relative_error, values
from tests.hub_server import HubServer

APPLE, OPEN_CLIP = "apple/MobileCLIP2-S0", "timm/MobileCLIP2-S0-OpenCLIP"
PHOTOS = Path(__file__).parents[1] / "examples" / "photos"
CAT = str(PHOTOS / "chelsea.jpg")
LABELS = ("--labels", "a cat,a rocket")


class Shell:
    """Runs `pocketclip` in a folder, with a hub and an empty cache."""

    def __init__(self, hub: HubServer, folder: Path) -> None:
        self.folder = folder
        self.models = folder / "cache" / "models"
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(folder / "hf"),
            "POCKETCLIP_CACHE": str(folder / "cache"),
            "HOME": str(folder / "home"),
            "NO_PROXY": "*",
        }
        (folder / "home").mkdir()
        # ONNX Runtime's telemetry keeps an identifier and its unsent events at home.
        for name in ("XDG_CACHE_HOME", "ORT_DISABLE_TELEMETRY"):
            self.environment.pop(name, None)

    def __call__(self, *command: str, code: int = 0, says: str = "") -> str:
        """Run a command; return its output. What it says otherwise must contain `says`."""
        program = Path(sys.executable).with_name("pocketclip")
        done = subprocess.run(
            [program, *command], env=self.environment, cwd=self.folder, capture_output=True,
            text=True, check=False,
        )  # fmt: skip
        shown = f"pocketclip {' '.join(command)}\n{done.stdout}{done.stderr}"
        assert done.returncode == code, f"exit code {done.returncode}, not {code}: {shown}"
        assert says in " ".join(done.stderr.split()), shown
        assert "Traceback" not in done.stderr, shown
        return done.stdout

    def answer(self, *command: str, **expected: Any) -> dict[str, float]:
        """Return the shares of the labels of the first photograph."""
        out = json.loads(self("classify", CAT, *LABELS, "--json", *command, **expected))
        labels: dict[str, float] = out["results"][0]["labels"]
        return labels

    def bundles(self) -> list[Path]:
        """Return the bundles in the cache; nothing may be half there."""
        found = sorted(path.parent for path in self.models.glob("*/*/bundle.json"))
        others = {p for p in self.models.glob("*/*") if p.is_dir()} - set(found)
        assert not others, f"half converted: {others}"
        return found


def main(folder: Path, slim: Path) -> None:
    repos = {
        APPLE: {"mobileclip2_s0.pt": folder / "apple.pt"},
        OPEN_CLIP: {"open_clip_model.safetensors": folder / "openclip.safetensors"},
        "owner/slim": {"open_clip_model.safetensors": slim},
    }
    with tempfile.TemporaryDirectory() as temporary, HubServer(repos) as hub:
        hub.cards[APPLE] = {"license": "apple-amlr"}
        shell = Shell(hub, Path(temporary))
        for check in (published, first_use, precisions, bad_input):
            start = time.perf_counter()
            check(shell, hub)
            print(f"{check.__name__.replace('_', ' ')}: {time.perf_counter() - start:.1f} s")
        at_home = [str(path) for path in (shell.folder / "home").rglob("*")]
        assert not at_home, f"written outside of the caches: {at_home}"


def published(shell: Shell, hub: HubServer) -> None:
    """A published name: pulled, then used without the network."""
    facts = json.loads(shell("pull", "mobileclip2-s0", "--json"))
    source = facts["source"]
    assert (source["license"], source["repo"]) == ("apple-amlr", APPLE), facts
    (bundle,) = shell.bundles()
    case = values("openclip.MobileCLIP2-S0")
    bias = "visual.trunk.head.fc.bias"  # which Apple's file lacks
    image = case.image - fill(bias, case.shapes[bias])
    for kind, rows, expected in (("image", case.pixels, image), ("text", case.ids, case.text)):
        session = onnx_session(str(bundle / f"{kind}.onnx"), 2)
        out = session.run(None, {session.get_inputs()[0].name: rows})[0]
        assert relative_error(out, expected) < 1e-4, kind
    asked = len(hub.requests)
    labels = shell.answer("--model", "mobileclip2-s0")
    assert shell.answer("--model", str(bundle)) == labels
    assert shell.answer("--model", "mobileclip2-s0", "--offline") == labels
    assert len(hub.requests) == asked, "what is ready asks the hub again"
    assert "ready" in shell("models")


def first_use(shell: Shell, hub: HubServer) -> None:
    """A hub id that nobody pulled: converted at the first use, and said so."""
    labels = shell.answer("--model", "owner/slim", says="converting owner/slim")
    assert len(shell.bundles()) == 2
    asked = len(hub.requests)
    assert shell.answer("--model", "owner/slim") == labels
    assert len(hub.requests) == asked


def precisions(shell: Shell, _: HubServer) -> None:
    """Half precision, and int8 with photographs, from the shell and from Python."""
    photos = shell.folder / "photos"
    photos.mkdir()
    with Image.open(CAT) as photo:
        for index in range(16):
            photo.rotate(20 * index).save(photos / f"{index}.png")
    before = shell.answer("--model", "owner/slim")
    for precision, more in (("fp16", ()), ("int8", ("--calibration", "photos"))):
        shell("pull", "owner/slim", "--precision", precision, "--out", precision, *more)
        labels = shell.answer("--model", precision)
        assert labels.keys() == before.keys()
        assert all(abs(labels[name] - before[name]) < 0.05 for name in labels), (labels, before)
        assert pocketclip.Encoder(shell.folder / precision).embed_dim > 0


def bad_input(shell: Shell, hub: HubServer) -> None:
    """What is wrong is said in a sentence, and nothing is kept."""
    there = shell.bundles()
    damaged = shell.folder / "damaged.jpg"
    damaged.write_bytes(Path(CAT).read_bytes()[:300])
    model = ("--model", "owner/slim")
    out = shell(
        "classify", CAT, str(damaged), *LABELS, *model, "--json", code=1, says="damaged.jpg"
    )
    assert len(json.loads(out)["results"]) == 1
    shell("classify", "missing.jpg", *LABELS, *model, code=2, says="missing.jpg")
    shell("classify", CAT, *LABELS, "--model", "mobileclip9-s0", code=2, says="mobileclip9-s0")
    shell("pull", "owner/nothing", code=2, says="owner/nothing was not found")
    shell("pull", "mobileclip2-s2", "--offline", code=2, says="the network is off")
    shell("pull", "owner/slim", "--precision", "int8", code=2, says="--calibration")
    slim = hub.repos["owner/slim"]["open_clip_model.safetensors"]
    whole = slim.read_bytes() if isinstance(slim, Path) else slim
    start = 8 + int.from_bytes(whole[:8], "little")
    for name, content, says in (
        ("cut", whole[:-100], "owner/cut"),
        ("nan", whole[:start] + b"\xff" * (len(whole) - start), "owner/nan"),
        ("page", b"<html>not here</html>", "owner/page"),
    ):
        hub.repos[f"owner/{name}"] = {"open_clip_model.safetensors": content}
        shell("pull", f"owner/{name}", code=2, says=says)
        shell("classify", CAT, *LABELS, "--model", f"owner/{name}", code=2)
    assert shell.bundles() == there


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
