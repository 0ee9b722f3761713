"""The licence of a bundle's weights: what is known of it, and what it asks for.

    license = license_of_bundle(bundle)
    require_accepted(license, accepted=False, doing="serving them to other machines")

Whoever hands weights on, or lets others use them, must be allowed to. Apple's published weights are
for research only.
"""

from __future__ import annotations

from dataclasses import replace

from pocketclip.checkpoint import hub_cache
from pocketclip.checkpoint.resolve import ModelSource
from pocketclip.checkpoint.stored import expected_name, read_stored
from pocketclip.checkpoint.weight_license import license_of_hub_file, published_license
from pocketclip.errors import ChangedBundleError, ConfigError
from pocketclip.infer.bundle import Bundle, read
from pocketclip.infer.model_cache import find
from pocketclip.infer.ready import KINDS
from pocketclip.license import UNKNOWN, License, clean_name, read_text

ACCEPT = "--accept-licence"
"""The option that says that the licence allows it."""


def license_of_bundle(bundle: Bundle, *, with_text: bool = True) -> License:
    """Return the licence of a bundle's weights, as far as it is known.

    Of earlier bundles, which carry none, the hub's repository says it if they name one.

    Args:
        bundle: whose files are needed only for the text.
        with_text: read the text; otherwise it is empty if there is one.

    Raises:
        ChangedBundleError: the file with the text is missing or was changed.
    """
    if bundle.licence is not None:
        entry = dict(bundle.licence)
        file = entry.pop("file", None)
        if file is None or not with_text:
            return License(**entry, text=None if file is None else "")
        bundle.check(file)
        text = read_text(bundle.folder / file)
        if text is None:
            raise ChangedBundleError(
                f"{bundle.folder / file} is not the text of a licence: export the bundle again"
            )
        return License(**entry, text=text)
    repo = bundle.source.get("repo")
    name = clean_name(bundle.source.get("license"))
    known = UNKNOWN if repo is None else published_license(str(repo))
    return known if name is None else replace(known, name=name)


def license_of_source(source: ModelSource) -> License:
    """Return the licence of a MODEL argument, as far as it is known before anything is fetched.

    Nothing is asked, converted or written. What a repository's card says is known only of weights
    that are here, and of the published ones.

    Raises:
        PocketclipError: what is here is damaged, or does not fit.
    """
    if source.kind == "bundle":
        assert source.path is not None
        return license_of_bundle(read(source.path))
    if source.kind not in KINDS:
        return UNKNOWN
    found = find(source, expected_name(source, None))
    if found is not None:
        return license_of_bundle(found)
    if source.kind != "hub":
        return read_stored(replace(source, note="")).license
    here = (hub_cache.cached(repo, revision=source.revision) for repo in source.repos)
    file = next(filter(None, here), None)
    if file is not None:
        return license_of_hub_file(file)
    return published_license(source.repos[0])


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
    where = " beside the weights" if license.url is None else f" at {license.url}"
    raise ConfigError(
        f"the weights have {called}, which may forbid {doing}: read it{where}, and give {ACCEPT} "
        "if it allows that"
    )
