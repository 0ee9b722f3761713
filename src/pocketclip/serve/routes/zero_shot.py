"""Zero-shot classification in Hugging Face's form.

    client = InferenceClient(model="http://127.0.0.1:8080/hf/zero-shot")
    client.zero_shot_image_classification("photo.jpg", ["a cat", "a dog"])

The client sends JSON with the image in base64.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import ConfigDict, RootModel

from pocketclip.serve.encoding.classification import check_labels, classify
from pocketclip.serve.errors import RequestError
from pocketclip.serve.inputs.bodies import JsonRoute
from pocketclip.serve.schema import EXAMPLE_IMAGE, Schema, errors, example
from pocketclip.serve.services import Services, services_of

router = APIRouter(tags=["hugging face"], route_class=JsonRoute)

DEFAULT_TEMPLATE = "This is a photo of {}."
"""The one that transformers has for this task."""


class ZeroShotParameters(Schema):
    """What the image may show."""

    candidate_labels: list[str]
    """The labels, each once."""
    hypothesis_template: str | None = None
    """A text with `{}` for the label; null for `This is a photo of {}.`"""


class ZeroShotRequest(Schema):
    """An image and labels."""

    model_config = example(
        {
            "inputs": EXAMPLE_IMAGE,
            "parameters": {
                "candidate_labels": ["a cat", "a dog"],
                "hypothesis_template": "a photo of {}.",
            },
        }
    )

    inputs: str
    """The image: base64, a data URI, or an https URL of a host that the server allows."""
    parameters: ZeroShotParameters
    """The labels, and how they are put into words."""


class LabelScore(Schema):
    """A label and its probability."""

    label: str
    """As it was sent."""
    score: float
    """Its probability; those of all labels sum to 1."""


class ZeroShotAnswer(RootModel[list[LabelScore]]):
    """The labels, the most probable first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [[{"label": "a cat", "score": 0.93}, {"label": "a dog", "score": 0.07}]]
        }
    )


@router.post(
    "/hf/zero-shot", response_model=ZeroShotAnswer, responses=errors(400, 429),
    operation_id="classify_zero_shot", summary="Classify an image by labels in words",
    response_description="The labels, the most probable first.",
)  # fmt: skip
async def classify_zero_shot(
    body: ZeroShotRequest, services: Annotated[Services, Depends(services_of)]
) -> list[dict[str, Any]]:
    """Return the probability of each label for an image, for `huggingface_hub.InferenceClient`.

    Without a template it is `This is a photo of {}.`, as in transformers.
    """
    template = body.parameters.hypothesis_template
    if template is not None and "{}" not in template and "{c}" not in template:
        raise RequestError(
            400, "hypothesis_template has no {} for the label: write a photo of {}.",
            param="hypothesis_template",
        )  # fmt: skip
    labels, templates = check_labels(
        body.parameters.candidate_labels, [DEFAULT_TEMPLATE if template is None else template],
        services.settings.limits, label_name="candidate_labels",
        template_name="hypothesis_template",
    )  # fmt: skip
    encoder = services.engine.encoder
    [ranked] = await classify({"inputs": body.inputs}, labels, templates, services, encoder)
    return [{"label": label, "score": score} for label, score in ranked.probabilities.items()]
