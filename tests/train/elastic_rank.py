"""`pocketclip train` under torchrun, for `test_elastic`: notes the samples of each step, and waits.

elastic_rank.py FOLDER RECIPE ...   the rest is `pocketclip train`'s

FOLDER/seen/PID.jsonl    {"step", "rank", "world", "uids"} before each step
       hold/WORLD-STEP   a process among WORLD waits before this step while the file exists, or
                         until it is asked to stop
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path

from pocketclip.cli.main import main
from pocketclip.train import loop


def watch(folder):
    seen = folder / "seen" / f"{os.getpid()}.jsonl"
    next_batches, stop_requested = loop._next_batches, loop.stop_requested
    asked_to_stop = []

    def noted(run, batches):
        found = next_batches(run, batches)
        uids = [uid for batch in found for uid in batch.uids]
        about = {"step": run.step, "rank": run.world.rank, "world": run.world.size, "uids": uids}
        with seen.open("a") as stream:
            stream.write(json.dumps(about) + "\n")
        hold = folder / "hold" / f"{run.world.size}-{run.step}"
        while hold.exists() and not asked_to_stop[-1].is_set():
            time.sleep(0.02)
        return found

    @contextlib.contextmanager
    def remembered():
        with stop_requested() as event:
            asked_to_stop.append(event)
            yield event

    loop._next_batches, loop.stop_requested = noted, remembered


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
    sys.argv[1:2] = ["train"]
    main()
