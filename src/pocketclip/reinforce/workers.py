"""Worker processes that decode and augment while the model computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pocketclip.reinforce.prepare import Plan, Prepared, prepare
from pocketclip.types import Bad, Pair
from pocketclip.worker_pool import WorkerPool, WorkersDiedError

__all__ = ["Workers", "WorkersDiedError"]


class Workers:
    """A pool of processes that prepare images ahead of the model, in order.

    Args:
        count: number of processes; 0: none, `map` works in this process; None: one per core.
        ahead: number of prepared images that may wait for the model.

    Raises:
        ConfigError: `count` is negative, or above 1,024.
    """

    def __init__(self, count: int | None = None, *, ahead: int = 32) -> None:
        self._pool = WorkerPool(count, ahead=ahead)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    def map(
        self, pairs: Iterable[Pair | Bad], plan: Plan
    ) -> Iterator[tuple[Pair | Bad, Prepared | Bad]]:
        """Yield each pair with its prepared image, or with the reason for having none, in order.

        Raises:
            WorkersDiedError: a worker process died.
        """
        images = ((pair, _image_of(pair)) for pair in pairs)
        calls = (
            ((pair, image), None if isinstance(image, Bad) else (pair.uid, image, plan))
            for pair, image in images
        )
        for (pair, image), prepared in self._pool.map(prepare, calls):
            if isinstance(image, Bad):
                yield pair, image
            else:
                assert prepared is not None
                yield pair, prepared


def _image_of(pair: Pair | Bad) -> bytes | Bad:
    """Return the bytes of a pair's image, or the reason why it has none."""
    if isinstance(pair, Bad):
        return pair
    return Bad(uid=pair.uid, reason="no image") if pair.image is None else pair.image
