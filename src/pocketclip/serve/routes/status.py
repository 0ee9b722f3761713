"""Whether the server lives, whether it can answer, with what, and how much it does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from pocketclip._version import __version__
from pocketclip.infer.license import license_of_bundle
from pocketclip.serve.monitoring.exposition import CONTENT_TYPE, metrics_text
from pocketclip.serve.schema import Schema, example
from pocketclip.serve.services import Services, services_of

if TYPE_CHECKING:
    from pocketclip.infer.encoder import Encoder

router = APIRouter(tags=["status"])

With = Annotated[Services, Depends(services_of)]


class Health(Schema):
    """Whether the server is as it should be."""

    model_config = example({"status": "ok"})

    status: Literal["ok", "unavailable"]
    """In a word."""


class License(Schema):
    """Under what licence the weights are, as far as the bundle knows."""

    name: str | None
    """As the hub has it; null if it is not known: then ask whoever made the model."""
    repository: str | None
    """Of the hub, which the weights are from."""
    url: str | None
    """The page with the licence."""
    restricted: bool
    """Whether it may forbid to hand the weights on, or some use of them."""


class Accepted(Schema):
    """What the server accepts."""

    body_bytes: int
    """Of one request."""
    texts: int
    """Per request."""
    text_characters: int
    """Per text. The model reads the first 75 tokens or so."""
    images: int
    """Per request."""
    image_bytes: int
    """Of one image file."""
    image_pixels: int
    """Of one image."""
    deadline: float
    """Seconds from the end of a request's header to its answer."""


class LabelSetFacts(Schema):
    """A label set that `/classify` takes by its name."""

    name: str
    """Which requests use."""
    label_count: int
    """How many labels it has; `/label-sets` lists them."""
    can_be_none: bool
    """Whether it can tell that an image is none of them."""


class LibraryFacts(Schema):
    """The library of photographs that `/search` searches."""

    name: str
    """Of the library."""
    photos: int
    """Different photographs; copies with the same bytes count once."""


_EXAMPLE = {
    "version": "0.1.0",
    "model": "mobileclip2-s0",
    "space_id": "space-1f0c0a6c0d7f2b34",
    "embed_dim": 512,
    "image_size": 256,
    "context_length": 77,
    "logit_scale": 100.0,
    "backend": "onnxruntime",
    "precision": "fp32",
    "variant": "onnx fp32 5b1f7a02",
    "license": {
        "name": "apple-amlr",
        "repository": "apple/MobileCLIP2-S0",
        "url": "https://huggingface.co/apple/MobileCLIP2-S0",
        "restricted": True,
    },
    "limits": {
        "body_bytes": 33554432,
        "texts": 2048,
        "text_characters": 122880,
        "images": 64,
        "image_bytes": 20971520,
        "image_pixels": 100000000,
        "deadline": 60.0,
    },
    "label_sets": [{"name": "fruit", "label_count": 12, "can_be_none": True}],
    "library": {"name": "photos", "photos": 20431},
    "protocols": ["openai", "hugging face", "classify", "search", "clip-retrieval"],
}


class Info(Schema):
    """What the server has and accepts."""

    model_config = example(_EXAMPLE)

    version: str
    """Of pocketclip."""
    model: str
    """The model's name, which answers carry; requests may name any."""
    space_id: str
    """The embedding space: only embeddings with the same one can be compared."""
    embed_dim: int
    """The width of an embedding."""
    image_size: int
    """Pixels per side that the model sees."""
    context_length: int
    """Tokens of a text that the model reads, with a start and an end."""
    logit_scale: float
    """What cosine similarities are multiplied by before a softmax."""
    backend: str
    """The library that runs the model."""
    precision: str
    """Of its weights."""
    variant: str | None
    """Tells bundles of one embedding space apart."""
    license: License
    """Of the weights."""
    limits: Accepted
    label_sets: list[LabelSetFacts]
    """Of `pocketclip fit`, by name."""
    library: LibraryFacts | None
    """null: the server has none, and `/search` does not answer."""
    protocols: list[str]
    """What the server speaks: `openai`, `hugging face`, `classify`, `search`, `clip-retrieval`,
    `immich`."""


@router.get(
    "/livez",
    operation_id="get_livez",
    summary="Whether the process lives",
    response_model=Health,
    response_description="The process lives.",
)
async def livez() -> JSONResponse:
    """Answer 200 as long as the process answers at all, also while it ends or much is waiting.

    Restart the server when this fails.
    """
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz", operation_id="get_readyz", summary="Whether the server can answer",
    response_model=Health, response_description="It can.",
    responses={503: {"model": Health, "description": "It starts, or it ends."}},
)  # fmt: skip
async def readyz(services: With) -> JSONResponse:
    """Answer 200 when both towers have encoded something and the server is not ending.

    Send requests elsewhere while this fails. Much that waits does not matter here: what is too much
    is answered with 429 one by one.
    """
    ready = services.can_answer
    return JSONResponse({"status": "ok" if ready else "unavailable"}, 200 if ready else 503)


@router.get(
    "/info", operation_id="get_info", summary="The model, the limits and what is offered",
    response_model=Info, response_description="What there is.",
)  # fmt: skip
def info(services: With) -> Info:
    """Return the model with its embedding space and licence, the limits, and what is offered."""
    encoder, sets = services.engine.encoder, services.label_sets
    limits = services.settings.limits
    return Info(
        version=__version__,
        model=encoder.config.name,
        space_id=encoder.space_id,
        embed_dim=encoder.embed_dim,
        image_size=encoder.config.image_size,
        context_length=encoder.config.text.context_length,
        logit_scale=encoder.logit_scale,
        backend=encoder.backend.name,
        precision="fp32" if encoder.bundle is None else encoder.bundle.precision,
        variant=encoder.variant,
        license=_license(encoder),
        limits=Accepted.model_validate(
            {name: getattr(limits, name) for name in Accepted.model_fields}
        ),
        label_sets=[
            LabelSetFacts(name=name, label_count=len(one.labels), can_be_none=one.none is not None)
            for name, one in sorted(sets.items())
        ],
        library=_library(services),
        protocols=protocols_of(services),
    )


def protocols_of(services: Services) -> list[str]:
    """Return the tags of the routes that a server offers beside its state."""
    more = [] if services.library is None else ["search", "clip-retrieval"]
    immich = [] if services.settings.immich is None else ["immich"]
    return ["openai", "hugging face", "classify", *more, *immich]


def _license(encoder: Encoder) -> License:
    if encoder.bundle is None:
        return License(name=None, repository=None, url=None, restricted=False)
    repo = encoder.bundle.source.get("repo")
    known = license_of_bundle(encoder.bundle, with_text=False)
    return License(
        name=known.name,
        repository=None if repo is None else str(repo),
        url=known.url,
        restricted=known.restricted,
    )


def _library(services: Services) -> LibraryFacts | None:
    library = services.library
    if library is None:
        return None
    return LibraryFacts(
        name=library.location.name, photos=int(library.database.fact("vectors") or 0)
    )


@router.get(
    "/metrics", operation_id="get_metrics", summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {
            "description": "The figures, in Prometheus's text format.",
            "content": {
                "text/plain": {
                    "schema": {"type": "string"},
                    "example": "# TYPE pocketclip_ready gauge\npocketclip_ready 1.0\n",
                }
            },
        }
    },
)  # fmt: skip
async def metrics(services: With) -> Response:
    """Return counts, times and queues. Labels have fixed values, none from a request.

    Prometheus sends the key with `authorization: {credentials: KEY}` in its scrape configuration.
    """
    return Response(metrics_text(services), media_type=CONTENT_TYPE)
