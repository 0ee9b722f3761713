"""A model's files prepared and shown, then uploaded in one commit, all or nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pocketclip import checkpoint
from pocketclip.checkpoint.hub_client import without_xet
from pocketclip.checkpoint.hub_files import CONFIG, WEIGHTS, is_weight_file
from pocketclip.checkpoint.names import written_config
from pocketclip.checkpoint.weight_license import CARD
from pocketclip.errors import ConfigError, HubError
from pocketclip.license import FILE, License, read_text
from pocketclip.nn.clip import CLIP
from pocketclip.progress import ProgressReporter, as_reporter
from pocketclip.publish import open_clip_form
from pocketclip.publish.card import model_card
from pocketclip.publish.facts import Facts, find, gather
from pocketclip.publish.hub_side import HUB, Existing, ask_license, explain, look
from pocketclip.publish.terms import choose
from pocketclip.storage.hub_settings import (
    check_revision,
    download_errors,
    get_endpoint,
    hide_credentials,
    is_hub_id,
    is_offline,
)
from pocketclip.storage.temporary import scratch_folder

OURS = (CARD, CONFIG, WEIGHTS, FILE, open_clip_form.CONFIG, open_clip_form.WEIGHTS)
"""The files that push writes, and removes where a model has none of that name any more."""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What will be uploaded, and to where."""

    repo: str
    folder: Path
    """The prepared files; removed when the plan is left."""
    files: dict[str, int]
    """Names and sizes in bytes, as they will be in the repository."""
    card: str
    license: License
    facts: Facts
    private: bool
    revision: str
    message: str
    existing: Existing | None = None
    """None: the repository will be created."""
    account: str | None = None
    """Whose token is used; None: a dry run without one."""
    notes: list[str] = field(default_factory=list)

    @property
    def visibility(self) -> str:
        """`private` or `public`."""
        return "private" if self.private else "public"

    @property
    def replaced(self) -> list[str]:
        """Files of the repository that will be replaced."""
        return sorted(self.files.keys() & set(self.existing.files if self.existing else ()))

    @property
    def removed(self) -> list[str]:
        """Files of an earlier push that this model has none of, and that will be removed."""
        there = set(self.existing.files if self.existing else ())
        return sorted(there & set(OURS) - self.files.keys() - {CARD})

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON types."""
        return {
            "repository": self.repo,
            "exists": self.existing is not None,
            "visibility": self.visibility,
            "revision": self.revision,
            "account": self.account,
            "license": self.license.name,
            "files": self.files,
            "replaced": self.replaced,
            "removed": self.removed,
            "made_from": [
                {"role": o.role, "name": o.name, "license": o.license.name}
                for o in self.facts.origins
            ],
            "notes": self.notes,
            "card": self.card,
        }


@contextlib.contextmanager
def prepare(
    run: str | os.PathLike[str],
    repo: str,
    *,
    license: str | None = None,
    license_text: str | os.PathLike[str] | None = None,
    accept_license: bool = False,
    public: bool = False,
    results: str | os.PathLike[str] | None = None,
    open_clip: bool = True,
    keep_card: bool = False,
    revision: str = "main",
    message: str | None = None,
    dry_run: bool = False,
    reporter: ProgressReporter | Callable[[str], None] | None = None,
) -> Iterator[Plan]:
    """Prepare what `push` uploads, in a temporary folder, and yield the plan; upload nothing.

    Args:
        run: a training run, a fine-tuning, or a checkpoint folder.
        repo: the repository, `OWNER/NAME`.
        license: the licence to publish under, by the hub's name; None: that of the start.
        license_text: the file with the text of a licence that the hub does not know.
        accept_license: say that the licences of what the model was made from allow it.
        public: let everybody see the repository; otherwise it is private.
        results: a results file of `pocketclip eval`; None: `results.jsonl` in the run's folder.
        open_clip: write open_clip's form too, where the model has one.
        keep_card: leave the `README.md` of an existing repository as it is.
        revision: the branch to commit to; it is created where it is missing.
        message: of the commit.
        dry_run: a token is not needed.
        reporter: receives the steps.

    Raises:
        ConfigError: not a model that can be published, no licence, or one that may forbid it; a
            repository of another visibility.
        CheckpointError: an unfinished run, or damaged weights.
        HubError: no token, or one that may not write; a bad name; the hub cannot be reached.
    """
    report = as_reporter(reporter)
    if not is_hub_id(repo):
        raise HubError(f"{repo!r} is not the name of a repository; write it as OWNER/NAME")
    branch = check_revision(revision)
    text = None if license_text is None else read_text(Path(license_text))
    if license_text is not None and (text is None or license is None):
        raise ConfigError(
            f"{license_text} holds no text of a licence"
            if text is None
            else "--licence-text goes with --licence NAME, the short name of these terms"
        )
    run = os.fspath(run)
    find(run)
    report.stage(f"reading {run}")
    model = checkpoint.load(find(run))
    space_id, _ = model.identify_space()
    offline = is_offline()
    facts = gather(
        run,
        results=None if results is None else os.fspath(results),
        start_license=model.license,
        ask=None if offline else ask_license,
        space_id=space_id,
    )
    chosen = choose(license, text, facts.origins, accepted=accept_license)
    model.license = _public(chosen)
    report.stage(f"asking the hub for {repo}")
    account, existing = look(repo, branch, dry_run=dry_run)
    _check_visibility(repo, existing, public=public)
    with scratch_folder("push") as scratch:
        folder = scratch / "files"  # beside it is the lock of the folder
        folder.mkdir()
        reason = open_clip_form.reason_against(model.config, fused=model.is_fused)
        notes = _notes(facts, reason if open_clip else None, account, existing)
        report.stage("writing the files")
        _write(model, folder, open_clip=open_clip and reason is None)
        card = model_card(
            facts, repo, model.license, config=model.config, space_id=space_id,
            parameters=sum(p.numel() for p in model.parameters()),
            open_clip=open_clip and reason is None,
        )  # fmt: skip
        if not (keep_card and existing is not None and CARD in existing.files):
            (folder / CARD).write_text(card, "utf-8")
        yield Plan(
            repo=repo, folder=folder, card=card, license=model.license, facts=facts,
            files={path.name: path.stat().st_size for path in sorted(folder.iterdir())},
            private=not public, revision=branch,
            message=message or f"{model.config.name}, by pocketclip",
            existing=existing, account=account, notes=notes,
        )  # fmt: skip


def upload(plan: Plan, *, reporter: ProgressReporter | Callable[[str], None] | None = None) -> str:
    """Upload what was prepared, in one commit, and return the commit's address.

    A new repository is created first. If the upload is interrupted, the repository has none of the
    files.

    Raises:
        HubError: the token may not write there, the repository changed meanwhile, or the hub cannot
            be reached.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    report = as_reporter(reporter)
    endpoint = get_endpoint()
    errors: tuple[type[Exception], ...] = (*download_errors(), RuntimeError)
    if is_offline():
        raise HubError("the network is off (HF_HUB_OFFLINE): unset it to upload")
    api = HfApi(endpoint=endpoint, library_name="pocketclip")
    created = False
    total = sum(plan.files.values())
    try:
        with without_xet():
            if plan.existing is None:
                report.stage(f"creating {plan.repo} ({plan.visibility})")
                api.create_repo(plan.repo, private=plan.private)
                created = True
            if plan.revision != "main":
                api.create_branch(plan.repo, branch=plan.revision, exist_ok=True)
            report.stage(f"uploading {len(plan.files)} files, {total / 1e6:,.1f} MB")
            done = api.create_commit(
                plan.repo,
                [
                    *(CommitOperationAdd(name, plan.folder / name) for name in plan.files),
                    *(CommitOperationDelete(name) for name in plan.removed),
                ],
                commit_message=plan.message,
                revision=plan.revision,
                parent_commit=plan.existing.commit if plan.existing else None,
            )
    except errors as error:
        raise explain(error, plan.repo, endpoint, created=created) from error
    return str(done.commit_url)


def push(run: str | os.PathLike[str], repo: str, **options: Any) -> str:
    """Upload a model to the Hugging Face hub, in one commit, and return the commit's address.

    Args:
        run: a training run, a fine-tuning, or a checkpoint folder.
        repo: the repository, `OWNER/NAME`; it is created, private unless `public`, if missing.
        options: see `prepare`.

    Raises:
        PocketclipError: as `prepare` and `upload`.
    """
    with prepare(run, repo, **options) as plan:
        return upload(plan, reporter=options.get("reporter"))


def _public(license: License) -> License:
    """Return a licence whose page is on the public hub, not on the mirror that is used here."""
    url, mirror = license.url, hide_credentials(get_endpoint())
    if url is not None and url.startswith(f"{mirror}/"):
        url = HUB + url.removeprefix(mirror)
    return License(name=license.name, url=url, text=license.text)


def _write(model: CLIP, folder: Path, *, open_clip: bool) -> None:
    checkpoint.write_files(model, folder)
    if open_clip:
        checkpoint.save(model, folder / open_clip_form.WEIGHTS, naming="openclip")
        config = open_clip_form.open_clip_config(written_config(model.config, "openclip"))
        text = json.dumps(config, indent=2) + "\n"
        (folder / open_clip_form.CONFIG).write_text(text, "utf-8")


def _check_visibility(repo: str, existing: Existing | None, *, public: bool) -> None:
    if existing is None or existing.private != public:
        return
    if public:
        raise ConfigError(
            f"{repo} exists and is private; a push never changes that: leave --public out, or make "
            "it public on its settings page"
        )
    raise ConfigError(
        f"{repo} exists and is public, so everybody would see the upload: say --public, or choose "
        "another name"
    )


def _notes(
    facts: Facts, reason: str | None, account: str | None, existing: Existing | None
) -> list[str]:
    notes = []
    if reason is not None:
        notes.append(f"no open_clip form is written: {reason}")
    if not facts.results and facts.selection is None and facts.finetuned is None:
        notes.append(
            "the card has no results: give those of `pocketclip eval RUN -o results.jsonl` with "
            "--results"
        )
    unknown = [str(one) for one in facts.origins if not one.license.is_known]
    if unknown:
        notes.append(f"{'; '.join(unknown)}: read it yourself")
    if account is None:
        notes.append("without a token, whether a private repository of this name exists is unknown")
    others = [
        name for name in (existing.files if existing else ())
        if is_weight_file(name) and name not in OURS
    ]  # fmt: skip
    if others:
        notes.append(f"other weights stay in the repository: {', '.join(sorted(others)[:4])}")
    return notes
