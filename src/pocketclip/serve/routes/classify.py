"""Classification of our own: by labels in words, or by a label set of `pocketclip fit`.

curl -F image=@photo.jpg -F labels="a cat" -F labels="a dog" http://127.0.0.1:8080/classify
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from pydantic import Field

from pocketclip.errors import ParseError
from pocketclip.formats.json_text import load_json
from pocketclip.serve.encoding.classification import Ranked, check_labels, classify, classify_by_set
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.bodies import check_is_json, json_answer, read_json, validated
from pocketclip.serve.inputs.image_inputs import check_count
from pocketclip.serve.inputs.multipart import Form, is_multipart, read_multipart
from pocketclip.serve.schema import EXAMPLE_IMAGE, Schema, StrictSchema, errors, example
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["classify"])

With = Annotated[Services, Depends(services_of)]

MAX_ANSWERS = 1 << 17
"""Images x labels of an answer."""
_PARTS = ("image", "labels", "templates", "label_set", "top")


class ClassifyOptions(StrictSchema):
    """Which labels an image may have; either `labels` or `label_set`."""

    labels: list[str] | None = None
    """In words, each once."""
    templates: list[str] | str | None = None
    """Texts with `{}` for the label, whose embeddings are averaged; null for the label itself."""
    label_set: str | None = None
    """The name of a label set, see `/label-sets`."""
    top: int | None = Field(None, ge=1)
    """How many labels to return per image, the most probable ones; null for all."""


class ClassifyRequest(ClassifyOptions):
    """Images and labels; either `image` or `images`, and either `labels` or `label_set`."""

    model_config = example(
        {"image": EXAMPLE_IMAGE, "labels": ["a cat", "a dog"]},
        {
            "images": [EXAMPLE_IMAGE, EXAMPLE_IMAGE],
            "labels": ["cat", "dog"],
            "templates": ["a photo of a {}.", "a drawing of a {}."],
        },
        {"image": EXAMPLE_IMAGE, "labels": ["apple", "pear", "plum"], "top": 1},
    )

    image: str | None = None
    """A data URI, base64, or an https URL of a host that the server allows."""
    images: list[str] | None = None
    """Several of them."""


class LabelAnswer(Schema):
    """A label of an image."""

    label: str
    """The label."""
    probability: float
    """Those of all labels sum to 1."""
    cosine: float | None
    """The cosine similarity of image and label; null for a label set, whose labels are no texts."""


class ImageAnswer(Schema):
    """The labels of one image."""

    labels: list[LabelAnswer]
    """The most probable first."""
    is_none: bool | None
    """Whether the image is none of the labels. Only label sets can tell, so null for others."""


class ClassifyAnswer(Schema):
    """The labels of the images, in their order."""

    model_config = example(
        {
            "model": "mobileclip2-s0",
            "space_id": "space-1f0c0a6c0d7f2b34",
            "results": [
                {
                    "labels": [
                        {"label": "a cat", "probability": 0.93, "cosine": 0.27},
                        {"label": "a dog", "probability": 0.07, "cosine": 0.24},
                    ],
                    "is_none": None,
                }
            ],
        }
    )

    model: str
    """What answered."""
    space_id: str
    """Its embedding space."""
    results: list[ImageAnswer]
    """One per image."""


class LabelSetAnswer(Schema):
    """A label set, which `pocketclip fit` made."""

    name: str
    """What `label_set` of a request says."""
    labels: list[str]
    """Its labels."""
    can_be_none: bool
    """Whether it can tell that an image is none of them."""
    digest: str
    """The identity of all that decides its answers."""


class LabelSetsAnswer(Schema):
    """The label sets that the server has."""

    model_config = example(
        {
            "label_sets": [
                {
                    "name": "fruit",
                    "labels": ["apple", "pear"],
                    "can_be_none": True,
                    "digest": "3f1c6d0b5b0f4a6e",
                }
            ]
        }
    )

    label_sets: list[LabelSetAnswer]
    """By name."""


_FORM = {
    "type": "object",
    "required": ["image"],
    "properties": {
        "image": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "format": "binary", "contentMediaType": "image/*"},
            "description": "One part per image file.",
        },
        "labels": {
            "type": "array", "items": {"type": "string"}, "example": ["a cat", "a dog"],
            "description": "One part per label, or one part with a JSON list.",
        },
        "templates": {
            "type": "array", "items": {"type": "string"},
            "description": "As `labels`: texts with `{}` for the label.",
        },
        "label_set": {"type": "string", "description": "The name of a label set."},
        "top": {
            "type": "integer", "minimum": 1,
            "description": "How many labels to return per image.",
        },
    },
}  # fmt: skip
_BODY = {
    "required": True,
    "content": {
        "application/json": {"schema": ClassifyRequest.model_json_schema()},
        "multipart/form-data": {"schema": _FORM},
    },
}


@router.post(
    "/classify", response_model=ClassifyAnswer, responses=errors(400, 404, 415, 422, 429),
    operation_id="classify_images", summary="Classify images by labels or a label set",
    response_description="The labels of each image, the most probable first.",
    openapi_extra={"requestBody": _BODY},
)  # fmt: skip
async def classify_images(request: Request, services: With) -> Response:
    """Return the labels of images with their probabilities.

    Send JSON, or a form with a file per image. Labels in words answer as `pocketclip classify`; all
    labels x templates count as texts of the request.
    """
    images, options = await _read(request, services)
    check_count(len(images), services.settings.limits)
    encoder = services.engine.encoder
    if options.label_set is not None:
        label_set = services.label_sets.get(options.label_set)
        if options.labels is not None or options.templates is not None:
            raise RequestError(
                400, "a label set has its own labels: leave out labels and templates",
                param="label_set",
            )  # fmt: skip
        if label_set is None:
            raise RequestError(
                404, "there is no label set of that name: GET /label-sets lists them",
                param="label_set", code="unknown_label_set",
            )  # fmt: skip
        _check_size(len(images), len(label_set.labels), options.top)
        ranked = await classify_by_set(images, label_set, services, encoder, top=options.top)
    else:
        if options.labels is None:
            raise RequestError(400, "either labels or label_set must be given", param="labels")
        templates = ["{}"] if options.templates is None else options.templates
        labels, templates = check_labels(
            options.labels, [templates] if isinstance(templates, str) else templates,
            services.settings.limits,
        )  # fmt: skip
        _check_size(len(images), len(labels), options.top)
        ranked = await classify(images, labels, templates, services, encoder, top=options.top)
    about = {"model": encoder.config.name, "space_id": encoder.space_id}
    values = 3 * sum(len(one.probabilities) for one in ranked)
    return await json_answer(about, "results", map(_written, ranked), values=values)


@router.get(
    "/label-sets", response_model=LabelSetsAnswer, operation_id="list_label_sets",
    summary="List the label sets", response_description="The label sets by name.",
)  # fmt: skip
async def list_label_sets(services: With) -> Response:
    """Return the label sets that `/classify` takes by name."""
    label_sets = sorted(services.label_sets.items())
    items = (
        {
            "name": name,
            "labels": list(one.labels),
            "can_be_none": one.none is not None,
            "digest": one.digest,
        }
        for name, one in label_sets
    )
    # The digest is of all weights.
    values = sum(one.weights.size for _, one in label_sets)
    return await json_answer({}, "label_sets", items, values=values)


def _written(ranked: Ranked) -> dict[str, Any]:
    cosines: Mapping[str, float] = ranked.cosines or {}
    return {
        "labels": [
            {"label": label, "probability": probability, "cosine": cosines.get(label)}
            for label, probability in ranked.probabilities.items()
        ],
        "is_none": ranked.is_none,
    }


def _check_size(images: int, labels: int, top: int | None) -> None:
    if images * min(labels, top or labels) > MAX_ANSWERS:
        raise RequestError(
            400, f"{images:,} images x {labels:,} labels are too much for one answer: ask for the "
            "first few by `top`", param="top",
        )  # fmt: skip


async def _read(
    request: Request, services: Services
) -> tuple[dict[str, str | bytes], ClassifyOptions]:
    """Return the images by the names of their fields, and the options."""
    limits = services.settings.limits
    if is_multipart(request):
        form = await read_multipart(request, max_parts=limits.images + 2 * limits.texts)
        files = form.files("image")
        if not files:
            raise RequestError(400, "the form has no part with the name image", param="image")
        return {f"image[{n}]": data for n, data in enumerate(files)}, _form_options(form)
    check_is_json(request)
    body = validated(ClassifyRequest, await read_json(request))
    if (body.image is None) == (body.images is None):
        raise RequestError(400, "either image or images must be given", param="image")
    if body.image is not None:
        return {"image": body.image}, body
    if not body.images:
        raise RequestError(400, "images is an empty list: give at least one", param="images")
    return {f"images[{n}]": image for n, image in enumerate(body.images)}, body


def _form_options(form: Form) -> ClassifyOptions:
    form.check_names(*_PARTS)
    values: dict[str, Any] = {}
    for name in ("labels", "templates"):
        texts = form.texts(name)
        if texts:
            values[name] = _list_of(name, texts)
    for name in ("label_set", "top"):
        texts = form.texts(name)
        if len(texts) > 1:
            raise RequestError(400, f"{name} is given {len(texts)} times", param=name)
        if texts:
            values[name] = texts[0]
    return validated(ClassifyOptions, values)


def _list_of(name: str, texts: Sequence[str]) -> Any:
    """Return the list that parts of one name stand for: one text each, or one JSON list."""
    if len(texts) > 1:
        return list(texts)
    if texts[0].lstrip().startswith("["):
        try:
            return load_json(texts[0], what=name)
        except ParseError as error:
            raise RequestError(400, str(error), param=name) from None
    if name == "labels" and "," in texts[0]:
        raise RequestError(
            400, "labels has one part with a comma: send one part per label, or a JSON list",
            param=name,
        )  # fmt: skip
    return list(texts)
