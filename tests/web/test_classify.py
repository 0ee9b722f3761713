"""The classify page in a browser: images in, labels out, by the page's model or the server's."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pocketclip.infer.zero_shot import build_classifier
from tests.search.conftest import draw_photo

EVIL = "<img src=x onerror=alert(1)>.jpg"
FORMULA = "=1+1.png"
TURNED = "a\u202egpj.exe.jpg"
PROMPT = "A photo of {}"
LABELS = ["a red square", "a green circle", "noise <b>"]


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Three images and a file that is none, with names that are not to be trusted."""
    names = [EVIL, FORMULA, TURNED]
    for seed, name in enumerate(names):
        draw_photo(tmp_path / "in" / name, seed)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image at all")
    return [tmp_path / "in" / name for name in (*names, "broken.jpg")]


def open_classify(page, server, labels: list[str]) -> None:
    page.goto(f"{server.url}/classify.html")
    page.get_by_role("group", name="Lists of labels").get_by_role("button", name="Custom").click()
    for label in labels:
        page.get_by_label("Add a label").fill(label)
        page.get_by_label("Add a label").press("Enter")


def add_images(page, paths: list[Path]) -> None:
    page.locator("#file-input").set_input_files([str(path) for path in paths])


def wait_until_done(page, text: str) -> None:
    expect(page.locator("#spoken")).to_have_text(text, timeout=60_000)


def saved(page) -> list[dict[str, str]]:
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    text = download.value.path().read_bytes().decode("utf-8-sig")
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.usefixtures("vendor")
def test_images_are_classified_in_the_page_as_by_python(page, server, images):
    sent: list[str] = []
    page.on("request", lambda one: one.method == "POST" and sent.append(one.post_data or ""))
    open_classify(page, server, LABELS)
    add_images(page, images)
    expect(page.locator("#images tr")).to_have_count(4)
    page.get_by_role("button", name=re.compile("Start")).click()
    wait_until_done(page, "3 images done. 1 image could not be read.")
    expect(page.get_by_text("Pictures stay on this device.")).to_be_visible()
    assert not any("image" in body for body in sent), "no picture is sent"

    rows = {row["file"]: row for row in saved(page)}
    assert list(rows) == [EVIL, f"./{FORMULA}", TURNED, "broken.jpg"]
    assert "cannot open this picture" in rows["broken.jpg"]["error"]
    encoder = server.services.engine.encoder
    ranked = encoder.classify(images[:3], LABELS, PROMPT)
    classifier = build_classifier(encoder.encode_text, LABELS, PROMPT)
    cosines = encoder.encode_image(images[:3]) @ classifier.T
    for path, expected, cosine in zip(images, ranked, cosines, strict=False):
        row = rows[f"./{path.name}" if path.name == FORMULA else path.name]
        best = next(iter(expected))
        assert row["label"] == best
        assert float(row["cosine"]) == pytest.approx(cosine.max(), abs=1e-4)
        shares = [float(row[f"probability of {label}"]) for label in LABELS]
        rest = float(row["none probability"] or 0)
        assert sum(shares) + rest == pytest.approx(1, abs=1e-5)
        for label, share in zip(LABELS, shares, strict=True):
            assert share / (1 - rest) == pytest.approx(expected[label], abs=1e-3)

    # The names are text, and nothing else.
    names = page.locator("#images .name")
    expect(names.nth(0)).to_have_text(EVIL)
    expect(names.nth(2)).to_have_text(TURNED.replace("\u202e", "\ufffd"))

    # Other labels need no picture again: the files are gone.
    for path in images:
        path.unlink()
    page.evaluate(
        """() => {
          window.changes = 0;
          const count = (records) => { window.changes += records.length; };
          const answer = document.querySelector("#images .answer");
          new MutationObserver(count).observe(answer, {childList: true});
        }"""
    )
    page.get_by_label("Add a label").fill("something else")
    page.get_by_label("Add a label").press("Enter")
    expect(page.locator("#images .best")).to_have_count(3)
    assert all(row["probability of something else"] for row in saved(page)[:3])
    assert page.evaluate("window.changes") == 1, "images are scored once the labels are ready"

    # Groups, order, removal.
    page.get_by_role("button", name="Not read 1").click()
    expect(page.locator("#images tr")).to_have_count(1)
    page.get_by_role("button", name="All 4").click()
    page.get_by_label("Order").select_option("name")
    expect(names.nth(3)).to_have_text("broken.jpg")
    page.get_by_role("button", name="Remove broken.jpg").click()
    expect(page.locator("#images tr")).to_have_count(3)
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#results")).to_be_hidden()
    page.get_by_role("button", name="Undo").and_(page.locator("#undo")).click()
    expect(page.locator("#images .best")).to_have_count(3)


def fail_once(page, at: int) -> list[str]:
    """Leave the request with the picture number `at` without an answer; return the requests."""
    sent: list[str] = []

    def answer(route) -> None:
        if '"modality":"image"' in (route.request.post_data or ""):
            sent.append(route.request.url)
            if len(sent) == at:
                page.expected.append("ERR_FAILED")
                route.abort()
                return
        route.continue_()

    page.route("**/v1/embeddings", answer)
    return sent


@pytest.mark.slow
def test_the_server_classifies_where_people_choose_it(page, offering_server, images):
    open_classify(page, offering_server, LABELS)
    sent = fail_once(page, at=3)
    page.get_by_role("button", name="Choose a model").click()
    page.get_by_role("radio", name="on this server").check()
    page.get_by_role("button", name="Use it").click()
    expect(page.get_by_text("Pictures are sent to it.")).to_be_visible()
    page.expected.append("400")
    folder = images[0].parent
    (folder / ".hidden.jpg").write_bytes(b"")
    (folder / "notes.txt").write_text("no image")
    page.locator("#folder-input").set_input_files(str(folder))
    # The server does not answer once: what is there stays, and the rest follows.
    page.get_by_role("button", name="Try again").click()
    wait_until_done(page, "3 images done. 1 image could not be read.")
    expect(page.locator("#told")).to_have_text("1 file left out: no images.")
    assert len(sent) == 5
    encoder = offering_server.services.engine.encoder
    best = {
        f"in/{path.name}": next(iter(row))
        for path, row in zip(images[:3], encoder.classify(images[:3], LABELS, PROMPT), strict=True)
    }
    rows = saved(page)
    assert {row["file"]: row["label"] for row in rows if row["label"]} == best
    # A label set of the server, then nothing at all.
    page.get_by_role("group", name="Lists of labels").get_by_role("button", name="fruit").click()
    expect(page.get_by_label("Add a label")).to_be_hidden()
    expect(page.locator("#images .bars").first).to_contain_text(re.compile("apple|kiwi|fig"))
    sets = {row["label"] for row in saved(page)}
    assert sets <= {"apple", "kiwi", "fig", ""}


@pytest.mark.parametrize(
    ("width", "scheme"), [(320, "dark"), pytest.param(1280, "light", marks=pytest.mark.slow)]
)
def test_nothing_keeps_people_out(open_page, offering_server, images, violations, width, scheme):
    page = open_page(viewport={"width": width, "height": 800}, color_scheme=scheme)
    open_classify(page, offering_server, LABELS)
    page.get_by_role("button", name="Prompt").click()
    page.get_by_text("Several templates").click()
    page.get_by_text("Share, import and more").click()
    assert violations(page) == []
    add_images(page, images)
    page.get_by_role("button", name="Choose a model").click()
    page.get_by_role("radio", name="on this server").check()
    page.get_by_role("button", name="Use it").click()
    page.expected.append("400")
    wait_until_done(page, "3 images done. 1 image could not be read.")
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("button", name="Share…").click()
    expect(page.get_by_label("Link", exact=True)).to_be_visible()
    assert violations(page) == []
