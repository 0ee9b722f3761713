"""The model of a library: how it is named, loaded, and kept from being mixed with another.

A library has vectors of one embedding space. Bundles of one model in other precisions are of the
same space, and may share it: `encoders` says which made a vector.
"""

from __future__ import annotations

import os
import sqlite3
from typing import TYPE_CHECKING, Any

from pocketclip.errors import LibraryError, PocketclipError
from pocketclip.search.store.database import Database

if TYPE_CHECKING:
    from pocketclip.checkpoint.resolve import ModelSource
    from pocketclip.infer.encoder import Encoder

DEFAULT_MODEL = "mobileclip2-s0"
"""Of a new library."""


def lasting_name(
    model: str | os.PathLike[str], model_name: str | None = None, revision: str | None = None
) -> str:
    """Return a MODEL argument that means the same from any folder: paths become absolute.

    Raises:
        PocketclipError: it means no model; see `pocketclip.checkpoint.resolve`.
    """
    from pocketclip.checkpoint.resolve import resolve_model

    source = resolve_model(model, revision=revision)
    name = model_name or (source.text.partition("=")[0] if "=" in source.text else None)
    prefix = f"{name.strip()}=" if name else ""
    if source.path is not None:
        path = os.path.abspath(source.path)  # noqa: PTH100 - links stay links
        return f"{prefix}{path}" if source.kind == "file" else path
    if source.kind != "hub":
        return source.text
    if not prefix and source.revision is None and source.target == source.model:
        return source.target  # of the zoo, see `resolve_lasting`
    return f"{prefix}hf-hub:{source.repos[0]}{f'@{source.revision}' if source.revision else ''}"


def resolve_lasting(name: str) -> ModelSource:
    """Return what a name that `lasting_name` returned means; folders here do not matter."""
    from pocketclip import zoo
    from pocketclip.checkpoint.resolve import published_model, resolve_model

    return published_model(name) if zoo.find(name) is not None else resolve_model(name)


def load_recorded(database: Database, *, offline: bool = True, **options: Any) -> Encoder:
    """Return the model that a library was made with.

    Args:
        database: the library's file.
        offline: see `pocketclip.load`.
        options: others of `pocketclip.load`.

    Raises:
        LibraryError: there is none, it cannot be loaded, or it has another embedding space now.
        MissingDependencyError: an extra is missing.
    """
    name, where = database.fact("model_source"), database.location.name
    if name is None:
        raise LibraryError(
            f"the library {where} does not say which model it was made with: give one with --model"
        )
    from pocketclip.infer.encoder import load

    try:
        encoder = load(resolve_lasting(str(name)), offline=offline, **options)
    except ImportError:
        raise  # it names the extra
    except PocketclipError as error:
        raise LibraryError(
            f"the model of the library {where} cannot be loaded: {error}; if it is elsewhere now, "
            "give it with --model"
        ) from error
    check_space(database, encoder)
    return encoder


def count_unencoded(database: Database) -> int:
    """Return how many photographs that are there have no embedding, though nothing is wrong."""
    with database.reading() as connection:
        row = connection.execute(
            "SELECT COUNT(*) FROM contents c WHERE c.vector IS NULL AND c.error IS NULL "
            "AND EXISTS (SELECT 1 FROM files f WHERE f.content = c.id AND f.absent = 0)"
        ).fetchone()
    return int(row[0])


def check_not_empty(database: Database) -> None:
    """Refuse to search in a library without a photograph, whose model would be loaded for nothing.

    Raises:
        LibraryError: it has none.
    """
    if not database.fact("vectors"):
        if count_unencoded(database):
            raise LibraryError(
                f"no photograph of the library {database.location.name} is encoded yet: run "
                "`pocketclip index`, or wait for the one that runs"
            )
        raise LibraryError(
            f"the library {database.location.name} holds no photographs yet: add some with "
            "`pocketclip index FOLDER`"
        )


def check_space(database: Database, encoder: Encoder) -> None:
    """Refuse a model whose embeddings cannot be compared with those of a library.

    Raises:
        LibraryError: it has another embedding space.
    """
    space = database.fact("space_id")
    if space not in (None, encoder.space_id):
        raise LibraryError(
            f"the library {database.location.name} holds vectors of {database.fact('model')} "
            f"({space}), and {encoder.config.name} makes others ({encoder.space_id}): use its own "
            "model, or change the model with `pocketclip index --rebuild --model MODEL`"
        )


def set_model(
    connection: sqlite3.Connection, database: Database, encoder: Encoder, name: str | None
) -> None:
    """Record the model of a library; within a `transaction`.

    Args:
        connection: the transaction's.
        database: the library's file.
        encoder: the model.
        name: what `lasting_name` returned; None keeps the recorded one of the same space.
    """
    if database.fact("space_id") != encoder.space_id:
        # What was derived from the old model's embeddings.
        connection.execute("DELETE FROM facts WHERE name IN ('neutral_texts', 'model_source')")
    database.set_fact("space_id", encoder.space_id)
    database.set_fact("embed_dim", encoder.embed_dim)
    database.set_fact("model", encoder.config.name)
    if name is None and encoder.bundle is not None and database.fact("model_source") is None:
        name = os.path.abspath(encoder.bundle.folder)  # noqa: PTH100
    if name is not None:
        database.set_fact("model_source", name)


def describe_encoder(encoder: Encoder) -> str:
    """Return what makes vectors: the export, the runtime, and the precision it computes in."""
    variant = encoder.variant or "torch"
    precision = getattr(encoder.backend, "precision", None)
    return " ".join(filter(None, (variant, encoder.backend.name, precision)))
