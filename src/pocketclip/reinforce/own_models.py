"""Teachers and captioners of the user's own: `python:package.module:factory`.

    teacher = load_teacher("python:acme.models:teacher")  # imports acme.models, calls teacher()

The module is imported by its name, also from the working directory, and the factory is called
without arguments; this runs the user's code. A teacher is any `pocketclip.types.Encoder`. A
captioner is any `CaptionModel`. What they return is checked, so that a mistake is an error that
names the model and never a wrong embedding in a set.

Shapes: B images or texts, n captions per image, S side of a view in pixels, D embedding.
"""

from __future__ import annotations

import importlib
import math
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.embeddings import image_name, text_name, unit_length
from pocketclip.errors import ConfigError, PocketclipError, one_line
from pocketclip.images import ImageSource, open_image
from pocketclip.reinforce.sampling import caption_key
from pocketclip.reinforce.teacher_preprocess import AsItIs
from pocketclip.types import Embeddings

IMAGES, TEXTS = 32, 256
"""Images and texts that are given to an encoder at a time."""
_LONGEST_IDENTITY = 500
_WIDEST = 1 << 20
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+|<[^<>]* object[^<>]*>")
_T = TypeVar("_T")


class CaptionModel(Protocol):
    """A captioner of the user's own."""

    @property
    def identity(self) -> str:
        """A text that names the model and changes with whatever affects its captions."""
        ...

    def caption(
        self, images: Sequence[Image.Image], count: int, seeds: Sequence[int]
    ) -> Sequence[Sequence[str]]:
        """Return B lists of at most n captions.

        Args:
            images: B upright RGB images, of any size.
            count: n, the number of captions per image.
            seeds: B numbers from 0 to 2**63 - 1, to seed what is random. A seed depends only on
                the job's seed and the image's uid, so that captions are the same in every run.
        """
        ...


class OwnTeacher:
    """An encoder of the user's own as a teacher; satisfies `pocketclip.types.Encoder`.

    Attributes:
        name: a short name for display.
        transform: leaves views as they are; the encoder has its own preprocessing.
        dtype: `own`, as the encoder decides.
        embed_dim, logit_scale, logit_bias, space_id: the encoder's.

    Args:
        encoder: a `pocketclip.types.Encoder`; an attribute `logit_bias` is optional.
        name: for display.
        spec: the MODEL argument, for messages.

    Raises:
        ConfigError: the object is no encoder, or one of its attributes is missing or invalid.
    """

    dtype = "own"

    def __init__(self, encoder: Any, *, name: str, spec: str) -> None:
        self.name, self.transform = name, AsItIs()
        self._encoder, self._spec = encoder, spec
        for method in ("encode_image", "encode_text"):
            if not callable(getattr(encoder, method, None)):
                _refuse(spec, encoder, f"has no method {method}(...): a teacher is an Encoder")
        self.space_id = _identity(spec, encoder, "space_id")
        width = _attribute(spec, encoder, "embed_dim")
        if isinstance(width, bool) or not isinstance(width, (int, np.integer)):
            _refuse(spec, encoder, f"has embed_dim {width!r}, which is no whole number")
        if not 1 <= width <= _WIDEST:
            _refuse(spec, encoder, f"has embed_dim {width}; it must be from 1 to {_WIDEST:,}")
        self.embed_dim = int(width)
        self.logit_scale = _number(spec, encoder, "logit_scale", least=0)
        has_bias = getattr(encoder, "logit_bias", None) is not None
        self.logit_bias = _number(spec, encoder, "logit_bias") if has_bias else 0.0

    def __repr__(self) -> str:
        return f"OwnTeacher({self.name!r}, {self.embed_dim}, {self.space_id!r})"

    def encode_image(self, images: Sequence[ImageSource]) -> Embeddings:
        """Return unit embeddings (B, D) of images, which the encoder gets in RGB as PIL images.

        Raises:
            ImageError: an image cannot be opened.
            EmbeddingError: an embedding is not finite, or zero; names the image.
            PocketclipError: the encoder raised an error, or returned something else.
        """
        return self._encode(
            "encode_image", images, IMAGES, open_image, lambda row: image_name(images[row], row)
        )

    def encode_squares(
        self,
        squares: NDArray[np.uint8],
        name_of: Callable[[int], str] = lambda row: image_name(None, row),
    ) -> Embeddings:
        """Return unit embeddings (B, D) of views (B, S, S, 3).

        Raises:
            EmbeddingError: an embedding is not finite, or zero; `name_of` names the view.
            PocketclipError: as `encode_image`.
        """
        return self._encode("encode_image", list(squares), IMAGES, Image.fromarray, name_of)

    def encode_text(self, texts: Sequence[str]) -> Embeddings:
        """Return unit embeddings (B, D) of texts.

        Raises:
            EmbeddingError, PocketclipError: as `encode_image`; names the text.
        """
        return self._encode("encode_text", texts, TEXTS, str, lambda row: text_name(texts[row]))

    def over_length(self, texts: Sequence[str]) -> list[bool]:
        """Return for each text whether it is truncated, which is not known: False."""
        return [False for _ in texts]

    def _encode(
        self,
        method: str,
        items: Sequence[Any],
        at_a_time: int,
        prepare: Callable[[Any], Any],
        name_of: Callable[[int], str],
    ) -> Embeddings:
        out = np.empty((len(items), self.embed_dim), np.float32)
        for start in range(0, len(items), at_a_time):
            part = [prepare(item) for item in items[start : start + at_a_time]]
            rows = _call(self._spec, method, getattr(self._encoder, method), part)
            out[start : start + len(part)] = self._checked(rows, method, len(part))
        return unit_length(out, name_of, f"{self._spec} is at fault")

    def _checked(self, rows: Any, method: str, count: int) -> NDArray[np.float32]:
        """Return what the encoder returned as float32 (B, D).

        Raises:
            PocketclipError: it has another shape or type.
        """
        if hasattr(rows, "detach"):  # a tensor of torch, perhaps on another device
            rows = rows.detach().cpu().float().numpy()
        try:
            array = np.asarray(rows, np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise PocketclipError(
                f"{self._spec}: {method} returned {type(rows).__name__}, which is no array of "
                f"numbers ({one_line(error)})"
            ) from error
        if array.shape != (count, self.embed_dim):
            raise PocketclipError(
                f"{self._spec}: {method} returned an array of shape {array.shape} for {count} "
                f"inputs; with its embed_dim {self.embed_dim} it must be "
                f"({count}, {self.embed_dim})"
            )
        return array


class OwnCaptioner:
    """A captioner of the user's own.

    Attributes:
        name: distinguishes it from other captioners of the dataset.
        key: the key of its captions in a sample, see `caption_key`.
        identity: what identifies it, as JSON types.

    Raises:
        ConfigError: the object is no `CaptionModel`, or its identity is missing or invalid.
    """

    def __init__(self, model: Any, *, name: str, spec: str, target: str) -> None:
        if not callable(getattr(model, "caption", None)):
            _refuse(spec, model, "has no method caption(images, count, seeds)")
        self.name, self.key = name, caption_key(name)
        self.identity: dict[str, Any] = {
            "name": name,
            "kind": "python",
            "model": target,
            "identity": _identity(spec, model, "identity"),
        }
        self._model, self._spec = model, spec

    def __repr__(self) -> str:
        return f"OwnCaptioner({self.name!r}, {self.identity['identity']!r})"

    def caption_images(
        self, images: Sequence[ImageSource], seeds: Sequence[int], count: int
    ) -> list[list[str]]:
        """Return B lists of captions, without surplus spaces and empty ones.

        Args:
            images: B images.
            seeds: one per image.
            count: captions per image.

        Raises:
            ImageError: an image cannot be opened.
            PocketclipError: the captioner raised an error, or returned something else.
        """
        opened = [open_image(image) for image in images]
        call = self._model.caption
        lists = _call(self._spec, "caption", call, opened, count, list(seeds))
        if isinstance(lists, str) or not isinstance(lists, Sequence) or len(lists) != len(opened):
            size = f" of {len(lists)}" if isinstance(lists, (list, tuple)) else ""
            raise PocketclipError(
                f"{self._spec}: caption returned {type(lists).__name__}{size} for "
                f"{len(opened)} images; it must be a list with a list of captions for each"
            )
        return [self._checked(texts, count) for texts in lists]

    def _checked(self, texts: Any, count: int) -> list[str]:
        is_list = isinstance(texts, Sequence) and not isinstance(texts, str)
        if not is_list or not all(isinstance(text, str) for text in texts):
            raise PocketclipError(
                f"{self._spec}: caption returned {one_line(repr(texts), 60)} for an image; it must "
                "be a list of texts"
            )
        if len(texts) > count:
            raise PocketclipError(
                f"{self._spec}: caption returned {len(texts)} captions for an image, but at most "
                f"{count} were asked for"
            )
        return [text for text in (" ".join(text.split()) for text in texts) if text]


def load_own(source: ModelSource) -> Any:
    """Import the module of a `python:` source, and return what its factory makes.

    Raises:
        ConfigError: the module cannot be imported, has no such factory, or the factory raises.
    """
    name, _, factory_name = source.target.partition(":")
    add_search_path(str(Path.cwd()))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name == missing or name.startswith(f"{missing}."):
            raise ConfigError(
                f"{source.text}: there is no module {missing!r}: install its package, or give the "
                "command in the folder that holds it"
            ) from error
        raise ConfigError(
            f"{source.text}: {name} imports {missing!r}, which is not installed"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{source.text}: importing {name} raised {_said(error)}") from error
    made: Any = module
    for part in factory_name.split("."):
        if not hasattr(made, part):
            raise ConfigError(
                f"{source.text}: {name} has no {factory_name!r}: name a function or class of it"
            )
        made = getattr(made, part)
    if not callable(made):
        raise ConfigError(
            f"{source.text}: {factory_name} is {type(made).__name__}, not a function or class "
            "that makes the model"
        )
    try:
        return made()
    except PocketclipError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{source.text}: {factory_name}() raised {_said(error)}") from error


def add_search_path(folder: str) -> None:
    """Let modules be imported from a folder too, after all installed ones."""
    if folder not in sys.path:
        sys.path.append(folder)


def _call(spec: str, method: str, function: Callable[..., _T], *arguments: Any) -> _T:
    try:
        return function(*arguments)
    except PocketclipError:
        raise
    except Exception as error:
        raise PocketclipError(f"{spec}: {method} raised {_said(error)}") from error


def _said(error: BaseException) -> str:
    """Return an error's type and message, and where the user's code raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename != __file__ and frame.filename[:1] != "<"]
    where = f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
    name = type(error).__name__
    said = one_line(error)
    return f"{name}{'' if said == name else f': {said}'}{where}"


def _refuse(spec: str, made: Any, why: str) -> NoReturn:
    raise ConfigError(f"{spec} made an object of type {type(made).__name__} that {why}")


def _attribute(spec: str, made: Any, name: str, advice: str = "") -> Any:
    try:
        return getattr(made, name)
    except AttributeError:
        _refuse(spec, made, f"has no {name}{advice}")
    except Exception as error:
        raise ConfigError(f"{spec}: its {name} raised {_said(error)}") from error


def _identity(spec: str, made: Any, name: str) -> str:
    """Return the text that identifies a model.

    Raises:
        ConfigError: it is missing, no text, empty, or differs from object to object.
    """
    advice = (
        "give it a text that names the model and changes with its weights, such as 'acme-clip 3'"
    )
    value = _attribute(spec, made, name, f": {advice}")
    if not isinstance(value, str) or not value.strip():
        _refuse(spec, made, f"has the {name} {value!r}, which is no text: {advice}")
    if len(value) > _LONGEST_IDENTITY or not value.isprintable():
        _refuse(
            spec, made,
            f"has a {name} that is not one printable line of at most {_LONGEST_IDENTITY} "
            f"characters: {advice}",
        )  # fmt: skip
    if _attribute(spec, made, name) != value or _ADDRESS.search(value):
        _refuse(spec, made, f"has the {name} {value!r}, which is another one each time: {advice}")
    return value


def _number(spec: str, made: Any, name: str, least: float = -math.inf) -> float:
    value = _attribute(spec, made, name)
    try:
        number = float(value)
    except (TypeError, ValueError):
        _refuse(spec, made, f"has {name} {value!r}, which is no number")
    if not math.isfinite(number) or number <= least:
        limit = "" if math.isinf(least) else f" above {least:g}"
        _refuse(spec, made, f"has {name} {number}; it must be a finite number{limit}")
    return number
