"""The queue of the text tower: texts of several jobs are encoded together.

Shapes: B inputs, T tokens, D embedding.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketclip.errors import EmbeddingError
from pocketclip.infer.backends import count_tokens
from pocketclip.infer.text_cache import CachedText
from pocketclip.serve.encoding.tower_queue import TowerQueue, settle
from pocketclip.serve.settings import Limits
from pocketclip.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

_TEXTS_PER_CALL = 32
_TOKENS_PER_CALL = 160
"""The longest text times the number of texts: two of 77 tokens. Measured on the text tower of a
ViT-B and two cores, per text of 77 tokens: 43 ms in calls of one, 40 of two, 38 of four, 37 of
eight; of 7 tokens: 9.7, 6.4, 4.7, 4.1, and 3.7 in calls of sixteen."""
_TEXTS_READ = 64
_CHARACTERS_READ = 1 << 15
"""Of one job that are tokenised before it is another's turn."""


class _Tokenised(NamedTuple):
    length: int
    text: str
    ids: NDArray[np.int64]
    """(T,), padded."""


@dataclass(slots=True, eq=False)
class _Job:
    encoder: Encoder
    positions: Mapping[str, int]
    """Of the texts, for messages."""
    unread: deque[str]
    """Texts that are not tokenised."""
    waiting: int
    future: asyncio.Future[dict[str, CachedText]]
    tokenised: list[_Tokenised] = field(default_factory=list)
    """The shortest last."""
    found: dict[str, CachedText] = field(default_factory=dict)
    wanted: int = field(init=False)

    def __post_init__(self) -> None:
        self.wanted = len(self.unread)

    def find(self, text: str, known: CachedText | Exception) -> None:
        """Note what was found out about a text."""
        if isinstance(known, Exception):
            if isinstance(known, EmbeddingError):  # it must not show the text
                position = self.positions[text]
                name = f"text {position} (counted from 0)"
                known = EmbeddingError(name, known.reason, position)
            settle(self, error=known)
            return
        self.found[text] = known
        if len(self.found) == self.wanted:
            settle(self, self.found)


class TextQueue(TowerQueue):
    """Jobs that wait for the text tower."""

    plural = "texts"

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits.waiting_texts)
        self._tokenising = ThreadPoolExecutor(1, thread_name_prefix="tokenise")
        self._is_tokenising = False
        self._askers: dict[tuple[Encoder, str], list[_Job]] = {}  # of texts that are encoded now
        self._to_read: deque[_Job] = deque()  # jobs with texts that are not tokenised, in turn

    async def embed(
        self, encoder: Encoder, positions: Mapping[str, int], *, wait: bool
    ) -> Mapping[str, CachedText]:
        """Return what the tower makes of texts, which are given with their positions."""
        future = asyncio.get_running_loop().create_future()
        job = _Job(encoder, positions, deque(positions), len(positions), future)
        found: dict[str, CachedText] = await self._finish(job, wait=wait)
        return found

    def _add(self, job: _Job) -> None:
        super()._add(job)
        self._to_read.append(job)

    def _drop(self, job: _Job) -> None:
        super()._drop(job)
        if job in self._to_read:
            self._to_read.remove(job)

    def _start(self) -> None:
        if not self._is_tokenising and self._to_read:
            job = self._to_read.popleft()
            self._is_tokenising = True
            self._spawn(self._read(job, _first_texts(job.unread)))
        while not self.running and (lead := self._next_job()) is not None:
            if batch := self._gather(lead):
                self._call(
                    lead, len(batch),
                    functools.partial(_encode_batch, lead.encoder, batch),
                    functools.partial(self._answer, lead.encoder, batch),
                )  # fmt: skip

    async def _read(self, job: _Job, texts: list[str]) -> None:
        """Tokenise texts."""
        context = job.encoder.config.text.context_length
        try:
            ids = await asyncio.get_running_loop().run_in_executor(
                self._tokenising, _tokenise, texts, context
            )
        except Exception as error:
            settle(job, error=error)
        else:
            lengths = count_tokens(ids).tolist()
            job.tokenised += map(_Tokenised, lengths, texts, ids)
            job.tokenised.sort(key=lambda one: -one.length)
        finally:
            self._is_tokenising = False
            if job.unread and not job.future.done():
                self._to_read.append(job)
            self._start()

    def _next_job(self) -> _Job | None:
        """Return the job whose turn it is."""
        for job in self._jobs:
            if job.tokenised and not job.future.done():
                return job
        return None

    def _gather(self, lead: _Job) -> list[_Tokenised]:
        """Return texts for one call: the shortest of a job, and others that are no longer.

        Jobs give one text after the other. What is encoded for another job, or was, is not encoded
        again.
        """
        encoder, longest = lead.encoder, lead.tokenised[-1].length
        most = min(_TEXTS_PER_CALL, max(1, _TOKENS_PER_CALL // longest))
        batch: list[_Tokenised] = []
        givers = [job for job in self._jobs if job.encoder is encoder and not job.future.done()]
        givers.remove(lead)
        givers.insert(0, lead)
        while givers and len(batch) < most:
            for job in list(givers):
                if not job.tokenised or job.tokenised[-1].length > longest:
                    givers.remove(job)
                    continue
                if len(batch) == most:
                    break
                one = job.tokenised.pop()
                self._leave(job, 1)
                if (encoder, one.text) in self._askers:
                    self._askers[encoder, one.text].append(job)
                elif known := encoder.text_cache.lookup([one.text], count=False):
                    job.find(one.text, known[one.text])
                else:
                    self._askers[encoder, one.text] = [job]
                    batch.append(one)
        return batch

    def _answer(
        self,
        encoder: Encoder,
        batch: list[_Tokenised],
        found: Sequence[CachedText | EmbeddingError] | Exception,
    ) -> None:
        every = [found] * len(batch) if isinstance(found, Exception) else found
        for one, known in zip(batch, every, strict=True):
            for job in self._askers.pop((encoder, one.text)):
                job.find(one.text, known)

    def close(self) -> None:
        """End, see `TowerQueue.close`."""
        super().close()
        self._tokenising.shutdown(wait=False, cancel_futures=True)


def _first_texts(unread: deque[str]) -> list[str]:
    """Take the texts that are tokenised in one turn."""
    texts = [unread.popleft()]
    characters = len(texts[0])
    while unread and len(texts) < _TEXTS_READ:
        characters += len(unread[0])
        if characters > _CHARACTERS_READ:
            break
        texts.append(unread.popleft())
    return texts


def _tokenise(texts: list[str], context: int) -> NDArray[np.int64]:
    return Tokenizer(warn=False)(texts, context)  # all share one vocabulary


def _encode_batch(
    encoder: Encoder, batch: Sequence[_Tokenised]
) -> list[CachedText | EmbeddingError]:
    """Return what the tower makes of texts, and cache it."""
    try:
        rows = encoder.encode_ids(np.stack([one.ids for one in batch]), normalize=False)
    except EmbeddingError as error:
        if len(batch) == 1:
            return [error]
        return [known for one in batch for known in _encode_batch(encoder, [one])]
    found = [CachedText(row, one.length) for row, one in zip(rows, batch, strict=True)]
    if encoder.bundle is not None:  # the weights of a model in torch may change
        encoder.text_cache.store({one.text: known for one, known in zip(batch, found, strict=True)})
    return list(found)
