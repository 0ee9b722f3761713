"""A site's models in a test's page: `models.json` and files of bundles, answered by the test.

    models = SiteModels([bundles.read(folder)])
    models.serve(page)
    models.files["image.onnx"] = b"something else"

The files are damaged by changing `files`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketclip.infer.bundle import TOKENIZER, Bundle
from pocketclip.zoo import to_dict


class SiteModels:
    """Bundles of one space as one model; `files` has what is sent, by its path in the site."""

    def __init__(self, bundles: Sequence[Bundle], *, packed: bool = True) -> None:
        self.packed = packed
        self.files: dict[str, bytes] = {}
        self.requests: list[str] = []
        first = bundles[0]
        self.model: dict[str, Any] = {
            "id": "a-model", "name": first.config.name, "space_id": first.space_id,
            "embed_dim": first.config.embed_dim, "image_size": first.config.image_size,
            "context_length": first.config.text.context_length, "logit_scale": first.logit_scale,
            "preprocess": to_dict(first.config)["preprocess"], "presets": None,
            "licence": {"name": None, "url": None, "text": None, "restricted": False},
            "variants": [self._variant(bundle) for bundle in bundles],
        }  # fmt: skip

    def _variant(self, bundle: Bundle) -> dict[str, Any]:
        def tower(kind: str) -> dict[str, Any]:
            about = bundle.towers[kind]
            names = [about["file"], *(n for n in bundle.files if n == f"{about['file']}.data")]
            return {
                "input": about["input"]["name"], "output": about["output"]["name"],
                "files": [self._file(bundle.folder / name, bundle.precision) for name in names],
            }  # fmt: skip

        frame = bundle.check_frame
        return {
            "precision": bundle.precision, "normalized": bundle.normalized,
            "runtimes": ["wasm"] if bundle.precision == "int8" else ["webgpu", "wasm"],
            "variant": bundle.variant, "text": tower("text"),
            "image": {**tower("image"), "image_input": bundle.image_input},
            "tokenizer": self._file(bundle.folder / TOKENIZER, bundle.precision),
            "check": frame and {
                "pixels": self._file(bundle.folder / frame.pixels, bundle.precision),
                "size": [frame.height, frame.width], "embedding": list(frame.embedding),
            },
        }  # fmt: skip

    def _file(self, path: Path, folder: str) -> dict[str, Any]:
        data = path.read_bytes()
        sent = gzip.compress(data, 1) if self.packed else data
        url = f"model-files/a-model/{folder}/{path.name}{'.gz' if self.packed else ''}"
        self.files[url] = sent
        return {
            "name": path.name, "url": url, "bytes": len(data), "download_bytes": len(sent),
            "sha256": hashlib.sha256(data).hexdigest(), "encoding": "gzip" if self.packed else None,
        }  # fmt: skip

    def serve(self, page: Any) -> None:
        """Answer the page's requests for models."""
        page.route("**/models.json", lambda route: route.fulfill(
            body=json.dumps({"version": 1, "models": [self.model]}),
            content_type="application/json",
        ))  # fmt: skip
        page.route("**/model-files/**", self._answer)

    def _answer(self, route: Any) -> None:
        name = "model-files/" + route.request.url.partition("/model-files/")[2]
        self.requests.append(name)
        if name in self.files:
            route.fulfill(body=self.files[name], content_type="application/octet-stream")
        else:
            route.fulfill(status=404, body="")
