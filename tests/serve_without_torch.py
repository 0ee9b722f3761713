"""A server in an install without torch: it starts, answers as the library does, and ends.

    python tests/serve_without_torch.py BUNDLE PHOTOS EMBEDDINGS

EMBEDDINGS is the file that `pocketclip embed PHOTOS` wrote.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np

from pocketclip.storage.photos import find_photographs


def ask(url: str, value: object) -> dict:
    """Return the answer to a request with a JSON body."""
    body = json.dumps(value).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def main() -> None:
    """Run a server, and compare its answers."""
    bundle, photos, embeddings = sys.argv[1:]
    assert importlib.util.find_spec("torch") is None, "torch came with the extra"
    command = [sys.executable, "-m", "pocketclip", "serve", bundle, "--port", "0", "--json"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        started = json.loads(server.stdout.readline())
        files = find_photographs([photos]).paths
        data = [base64.b64encode(Path(file).read_bytes()).decode() for file in files]
        answer = ask(
            f"{started['urls'][0]}/v1/embeddings",
            {"input": data, "modality": "image", "encoding_format": "base64"},
        )
        rows = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
        assert np.array_equal(np.stack(rows), np.load(embeddings))
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(60)
    assert code == 0, code


if __name__ == "__main__":
    main()
