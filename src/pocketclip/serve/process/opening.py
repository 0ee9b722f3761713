"""Opening what a server answers with: the model as a bundle, the library, and the label sets."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from pocketclip.checkpoint.resolve import ModelSource, resolve_model
from pocketclip.errors import ConfigError, LibraryError
from pocketclip.infer import bundle as bundles
from pocketclip.infer.encoder import Encoder
from pocketclip.infer.license import license_of_bundle, license_of_source, require_accepted
from pocketclip.infer.ready import KINDS, open_ready
from pocketclip.label_set import LabelSet, read_label_set
from pocketclip.pages.web_files import WebFiles, web_files, with_webgpu
from pocketclip.search.library import Library
from pocketclip.search.model import check_space, resolve_lasting
from pocketclip.serve.encoding.engine import Engine
from pocketclip.serve.model_offer import ModelOffer, make_offer, read_web_models
from pocketclip.serve.services import Services
from pocketclip.serve.settings import ServerSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pocketclip.infer.bundle import Bundle


def open_services(
    model: str | os.PathLike[str] | ModelSource | None,
    library: str | os.PathLike[str] | None,
    settings: ServerSettings,
) -> Services:
    """Return the services of a server; its model is not loaded yet.

    Args:
        model: a bundle, or what is converted to one; None for the model of the library.
        library: see `pocketclip.search.Library.open`; None for none.
        settings: of the server.

    Raises:
        ConfigError: neither a model nor a library, or a model that cannot become a bundle.
        LibraryError: there is no such library, or it has another embedding space.
        DataError: a label set has another embedding space.
        BundleError: pages cannot run one of the bundles for them.
        PocketclipError: the model, the library or a label set cannot be read.
    """
    if model is None and library is None:
        raise ConfigError("give a model, or a library, whose model is used then")
    opened = None if library is None else Library.open(library)
    try:
        encoder = open_encoder(model_source(model, opened), settings)
        services = Services(engine=Engine(encoder, settings.limits), settings=settings,
                            library=opened)  # fmt: skip
        services.label_sets.update(_read_label_sets(settings.label_sets))
        check_spaces(encoder, services)
        services.web_bundles = _read_web_bundles(settings)
        services.web = _pages(settings)
        if encoder.bundle is None or encoder.bundle.renew is None:
            _ = services.offer  # what is wrong with a bundle is said now
    except BaseException:
        if opened is not None:
            opened.close()
        raise
    return services


def model_source(
    model: str | os.PathLike[str] | ModelSource | None, library: Library | None
) -> ModelSource:
    """Return the source of the model that is served.

    Raises:
        ConfigError: it cannot become a bundle.
        LibraryError: the library does not say which model it was made with.
        PocketclipError: it means no model, see `pocketclip.checkpoint.resolve`.
    """
    if isinstance(model, ModelSource):
        source = model
    elif model is not None:
        source = resolve_model(model)
    else:
        assert library is not None
        recorded = library.database.fact("model_source")
        if recorded is None:
            raise LibraryError(
                f"the library {library.location.name} does not say which model it was made with: "
                "give the model too"
            )
        source = resolve_lasting(str(recorded))
    if source.kind not in ("bundle", *KINDS):
        raise ConfigError(
            f"{source.text} cannot be served: the server runs bundles, and those it can make "
            "itself, of published models, checkpoints and weight files; write one with "
            f"`pocketclip export {source.text} --format onnx --out DIR`, and serve that"
        )
    return source


def check_license(weights: ModelSource | Bundle, settings: ServerSettings) -> None:
    """Refuse weights that other machines would reach although their licence may forbid it.

    Args:
        weights: the bundle, or before it is made what it will be made of.
        settings: of the server.

    Raises:
        ConfigError: it may, and was not accepted.
    """
    if settings.is_reachable and not settings.accept_license:
        if isinstance(weights, ModelSource):
            license = license_of_source(weights)
        else:
            license = license_of_bundle(weights, with_text=False)
        require_accepted(license, accepted=False, doing="serving them to other machines")


def open_encoder(source: ModelSource, settings: ServerSettings) -> Encoder:
    """Return a model as a bundle, read anew; what is none is converted, with torch and without.

    Raises:
        BundleError: it is damaged, or cannot be run here.
        ConfigError: its licence may forbid to serve it there.
        PocketclipError: it cannot be fetched or converted, see `pocketclip.infer.ready`.
    """
    bundle: Bundle
    if source.kind == "bundle":
        assert source.path is not None
        bundle = bundles.read(source.path)
    else:
        # Before it is fetched, which may take minutes; what is known after that is judged again.
        check_license(source, settings)
        bundle = open_ready(source, offline=settings.offline)
    check_license(bundle, settings)
    # Without the arena, memory stays flat whatever sizes the inputs have.
    return Encoder(bundle, settings.backend, threads=settings.threads, memory_arena=False)


def load_replacement(source: ModelSource, services: Services) -> Encoder:
    """Return the model at its place as it is now, verified; blocks for seconds.

    Raises:
        ChangedBundleError: a file of the bundle is missing or damaged.
        BundleError: it cannot be read, or not be run here.
        LibraryError: it has another embedding space than the library.
        DataError: than a label set.
        ConfigError: than what immich has got so far.
        PocketclipError: it cannot be converted.
    """
    encoder = open_encoder(source, services.settings)
    check_spaces(encoder, services)
    served = services.engine.encoder.space_id
    if services.settings.immich is not None and encoder.space_id != served:
        raise ConfigError(
            f"immich keeps embeddings of {served}, and the bundle has {encoder.space_id} now: to "
            "change over, start the server again, choose another model name in immich's settings "
            "and run Smart Search for all"
        )
    bundle = encoder.bundle
    if bundle is not None and bundle.renew is None:  # else it is verified while it is loaded
        bundle.check()
    encoder.load("image")
    encoder.load("text")
    return encoder


def load_offer(encoder: Encoder, services: Services) -> ModelOffer:
    """Return what pages may run, with the bundles for them as they are now; blocks for seconds.

    Args:
        encoder: the model that will answer.
        services: presets that are known are kept.

    Raises:
        BundleError: a bundle is damaged, or pages cannot run it.
        ConfigError: the licence of a further bundle may forbid to serve it there.
    """
    further = _read_web_bundles(services.settings)
    return make_offer(encoder, further, services.label_sets, services.offer.presets)


def check_spaces(encoder: Encoder, services: Services) -> None:
    """Refuse a model whose embeddings the library or a label set cannot be used with.

    Raises:
        LibraryError: the library has another embedding space.
        DataError: a label set has.
    """
    if services.library is not None:
        check_space(services.library.database, encoder)
    for name, labels in services.label_sets.items():
        labels.check_space(encoder.space_id, f"the label set {name}", embed_dim=encoder.embed_dim)


def _pages(settings: ServerSettings) -> WebFiles:
    """Return the files of the pages.

    Raises:
        ConfigError: the runtime for WebGPU is not the one that they need.
    """
    if settings.webgpu_runtime is None:
        return web_files()
    return with_webgpu(web_files(), settings.webgpu_runtime)


def _read_web_bundles(settings: ServerSettings) -> list[Bundle]:
    """Return the further bundles for pages, whose weights are handed on too."""
    found = read_web_models(settings.web_models)
    for bundle in found:
        check_license(bundle, settings)
    return found


def _read_label_sets(files: Mapping[str, os.PathLike[str]]) -> dict[str, LabelSet]:
    return {name: read_label_set(path) for name, path in files.items()}
