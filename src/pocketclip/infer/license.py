"""The licence of a bundle's weights, as far as the bundle knows where they are from."""

from __future__ import annotations

from pocketclip import zoo
from pocketclip.checkpoint.hub_client import get_endpoint, hide_credentials
from pocketclip.infer.bundle import Bundle

APPLE = "Apple's own"
"""Of Apple's published weights; it is for research only."""


def license_name(bundle: Bundle) -> str | None:
    """Return the name of the licence; None if it is not known.

    The hub says it when weights are fetched. A bundle that was exported from a checkpoint does not
    know where the weights are from.
    """
    if "license" in bundle.source:
        return str(bundle.source["license"])
    repo = bundle.source.get("repo")
    apples = (entry.hub for name, entry in zoo.ZOO.items() if name.startswith("mobileclip"))
    return APPLE if any(repo in repos for repos in apples) else None


def license_page(bundle: Bundle) -> str | None:
    """Return the URL of the page with the licence; None if the weights are not from the hub."""
    repo = bundle.source.get("repo")
    return None if repo is None else f"{hide_credentials(get_endpoint())}/{repo}"


def license_of(bundle: Bundle) -> str:
    """Return the licence of a pulled bundle's weights, or where it stands, for people to read."""
    name, page = license_name(bundle), license_page(bundle)
    if page is None:
        return "that of the weight file"
    return f"see {page}" if name is None else f"{name}, see {page}"
