"""A site's models in a test's page: `models.json` and files of bundles, answered by the test.

    models = SiteModels([bundles.read(folder)])
    models.serve(page)
    models.files[models.url("image.onnx")] = b"something else"

The files are damaged by changing `files`, and the list by changing `model`.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pocketclip.infer.bundle import Bundle
from pocketclip.infer.web_models import FOLDER, SiteFile, group_bundles, models_json


class SiteModels:
    """Bundles of one space as one model."""

    def __init__(self, bundles: Sequence[Bundle]) -> None:
        self.files: dict[str, bytes] = {}
        """What is sent, by its path in the site: compressed."""
        self.requests: list[str] = []
        """The names of the files that were asked for, without `.gz`."""
        self._web_model = group_bundles(bundles)[0]
        self.model = self._web_model.entry(stored=self._store)
        """The entry in `models.json`."""

    def _store(self, file: SiteFile) -> SiteFile:
        data = file.source.read_bytes() if isinstance(file.source, Path) else file.source
        sent = gzip.compress(data, 1)
        stored = file.packed(len(sent))
        self.files[stored.url] = sent
        return stored

    def add(self, name: str, content: bytes) -> dict[str, Any]:
        """Add a file of the model, and return what `models.json` says of it."""
        return self._store(self._web_model.file(name, content)).facts()

    def url(self, name: str) -> str:
        """Return the path of a file of the first variant."""
        return next(url for url in self.files if url.endswith(f"/{name}.gz"))

    def serve(self, page: Any) -> None:
        """Answer the page's requests for models."""
        page.route("**/models.json", self._answer_list)
        page.route(f"**/{FOLDER}/**", self._answer)

    def _answer_list(self, route: Any) -> None:
        route.fulfill(body=models_json([self.model]), content_type="application/json")

    def _answer(self, route: Any) -> None:
        name = f"{FOLDER}/" + route.request.url.partition(f"/{FOLDER}/")[2]
        self.requests.append(name.rpartition("/")[2].removesuffix(".gz"))
        if name in self.files:
            route.fulfill(body=self.files[name], content_type="application/octet-stream")
        else:
            route.fulfill(status=404, body="")
