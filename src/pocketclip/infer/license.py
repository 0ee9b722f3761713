"""The licence of a bundle's weights: what is known of it, and what it asks for.

    license = license_of_bundle(bundle)
    require_accepted(license, accepted=False, doing="answering other machines with them")

Whoever hands weights on, or lets others use them, must be allowed to. Apple's published weights are
for research only.
"""

from __future__ import annotations

from pocketclip.checkpoint.weight_license import hub_page, published_license_name
from pocketclip.errors import ChangedBundleError, ConfigError
from pocketclip.infer.bundle import Bundle
from pocketclip.license import FILE, License, read_text

ACCEPT = "--accept-licence"
"""The option that says that the licence allows it."""


def license_of_bundle(bundle: Bundle) -> License:
    """Return the licence of a bundle's weights, with its text, as far as it is known.

    Of earlier bundles, which carry none, the hub's repository says it if they name one.

    Raises:
        ChangedBundleError: the file with the text is missing or was changed.
    """
    if bundle.licence is not None:
        entry = dict(bundle.licence)
        file = entry.pop("file", None)
        if file is None:
            return License(**entry)
        bundle.check(file)
        text = read_text(bundle.folder / file)
        if text is None:
            raise ChangedBundleError(
                f"{bundle.folder / file} is not the text of a licence: export the bundle again"
            )
        return License(**entry, text=text)
    repo = bundle.source.get("repo")
    name = bundle.source.get("license")
    if repo is None:
        return License(name=None if name is None else str(name))
    known = published_license_name(str(repo)) if name is None else str(name)
    return License(name=known, url=hub_page(str(repo)))


def require_accepted(license: License, accepted: bool, *, doing: str) -> None:
    """Refuse to do with weights what their licence may forbid, unless it was accepted.

    Args:
        license: of the weights.
        accepted: whether the caller says that it allows what is done.
        doing: what is done, such as `handing them on with a web page`.

    Raises:
        ConfigError: it may forbid it, and was not accepted.
    """
    if accepted or not license.restricted:
        return
    called = "a licence of their own" if license.name is None else f"the licence {license.name}"
    where = f" in {FILE} of the bundle" if license.url is None else f" at {license.url}"
    raise ConfigError(
        f"the weights have {called}, which may forbid {doing}: read it{where}, and give {ACCEPT} "
        "if it allows that"
    )
