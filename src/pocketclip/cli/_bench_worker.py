"""The process in which `pocketclip bench` measures one model.

    python -m pocketclip.cli._bench_worker JOB RESULT

JOB is JSON; RESULT is the file to write the figures to, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from pocketclip.cli.output import note, set_up


def main() -> None:
    """Measure one model; an error is written to the result file too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent reports the interruption
    set_up()
    job, result = json.loads(sys.argv[1]), Path(sys.argv[2])
    from pocketclip.errors import PocketclipError

    try:
        figures = measure_model(job)
    except (PocketclipError, OSError) as error:
        figures = {"error": str(error)}
    result.write_text(json.dumps(figures), "utf-8")
    # A tower may still be loading in a thread, and a normal exit would abort the process.
    sys.stderr.flush()
    os._exit(0)


def measure_model(job: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of one model.

    Args:
        job: `source`, `begun` (the time when the process was started), `seconds` per figure, the
            options of `load_encoder`, and in `labelled` those of `labelled_accuracy`.
    """
    from pocketclip.checkpoint.resolve import resolve_model
    from pocketclip.cli._inputs import load_encoder
    from pocketclip.infer.measure import disk_bytes, first_answer, measure
    from pocketclip.infer.open_model import is_converted

    source = job["source"]
    resolved = resolve_model(source, revision=job["revision"])
    is_bundle = resolved.kind == "bundle" or is_converted(resolved)
    encoder = load_encoder(
        source, job["model_name"], backend=job["backend"] if is_bundle else "auto",
        device="auto" if is_bundle else job["device"], threads=job["threads"],
        revision=job["revision"], offline=job["offline"],
    )  # fmt: skip
    first_answer(encoder)
    startup = time.time() - job["begun"]

    def report(text: str) -> None:
        note(f"{source}: {text}")

    figures = {
        "model": encoder.config.name,
        "space_id": encoder.space_id,
        "target": encoder.bundle.target if encoder.bundle else "torch",
        "precision": encoder.bundle.precision if encoder.bundle else "fp32",
        "backend": encoder.backend.name,
        "threads": encoder.threads,
        "startup_s": startup,
        **measure(encoder, seconds=job["seconds"], reporter=report),
        "disk_bytes": disk_bytes(resolved, encoder),
    }
    if job["labelled"] is not None:
        # Last, because it takes additional memory.
        from pocketclip.cli._options import labelled_accuracy

        report("accuracy")
        accuracy = labelled_accuracy(**job["labelled"])
        assert accuracy is not None
        figures["top1"] = accuracy(encoder)
    return figures


if __name__ == "__main__":
    main()
