"""The editor of labels in a browser, on the classify page: lists, files, links, label sets."""

from __future__ import annotations

import base64
import json
import zlib

import pytest
from playwright.sync_api import expect

EVIL = "<img src=x onerror=alert(1)>"


def link(value: dict) -> str:
    deflated = zlib.compressobj(wbits=-15)
    data = deflated.compress(json.dumps(value).encode()) + deflated.flush()
    return "#labels=2" + base64.urlsafe_b64encode(data).decode().rstrip("=")


@pytest.fixture
def editor(page, offering_server):
    """The classify page, whose editor is ready."""
    page.goto(f"{offering_server.url}/classify.html")
    page.get_by_label("Add a label").wait_for()
    return page


def expect_labels(page, labels: list[str]) -> None:
    expect(page.locator(".label-chips .chip-name bdi")).to_have_text(labels)


def expect_label(page, position: int, label: str) -> None:
    expect(page.locator(".label-chips .chip-name bdi").nth(position)).to_have_text(label)


def add(page, text: str) -> None:
    page.get_by_label("Add a label").fill(text)
    page.get_by_label("Add a label").press("Enter")


def choose(page, name: str) -> None:
    page.get_by_role("group", name="Lists of labels").get_by_role("button", name=name).click()


def open_more(page) -> None:
    page.get_by_text("Share, import and more").click()


def test_labels_are_added_refused_renamed_sorted_and_removed(editor):
    page = editor
    expect_label(page, 0, "pen")
    expect(page.locator("button.prompt")).to_contain_text("A photo of label")
    choose(page, "Custom")
    expect(page.get_by_text("No labels yet")).to_be_visible()
    add(page, "  red  Pear ")
    add(page, EVIL)
    add(page, "RED pear")
    status = page.locator(".labels-message")
    expect(status).to_have_text("“RED pear” is in the list already, as “red Pear”.")
    expect(page.get_by_label("Add a label")).to_have_value("RED pear")
    page.get_by_label("Add a label").fill("")
    page.evaluate(
        """text => {
          const clipboardData = new DataTransfer();
          clipboardData.setData("text/plain", text);
          document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
        }""",
        "fig\r\n\nApple\nfig\n",
    )
    expect(status).to_have_text("Added 2 labels. “fig” is in the list already.")
    page.get_by_role("button", name="Sort A–Z").click()
    expect_labels(page, [EVIL, "Apple", "fig", "red Pear"])
    page.get_by_role("button", name="fig, rename").click()
    page.get_by_label("Another text for fig").fill("ripe fig")
    page.keyboard.press("Enter")
    expect_labels(page, [EVIL, "Apple", "ripe fig", "red Pear"])
    page.get_by_role("button", name="Remove Apple").click()
    expect(page.get_by_role("button", name="Remove ripe fig")).to_be_focused()
    page.keyboard.press("Delete")
    expect_labels(page, [EVIL, "red Pear"])
    page.get_by_role("button", name="Undo").click()
    expect_labels(page, [EVIL, "ripe fig", "red Pear"])
    page.reload()
    expect(page.locator(".label-chips .chip")).to_have_count(3)


@pytest.mark.slow
def test_own_lists_are_kept_renamed_deleted_and_seen_in_other_tabs(editor, offering_server):
    page = editor
    other = page.context.new_page()
    other.goto(f"{offering_server.url}/classify.html")
    page.bring_to_front()
    lists = other.get_by_role("group", name="Lists of labels")
    add(page, "lamp")
    page.get_by_role("button", name="Save as…").click()
    page.get_by_label("Name", exact=True).fill("Desk items")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_text("There is a list “Desk items” already")).to_be_visible()
    page.get_by_label("Name", exact=True).fill(f"Office {EVIL}")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(lists.get_by_role("button", name=f"Office {EVIL}")).to_be_visible()
    open_more(page)
    page.get_by_role("button", name="Rename this list…").click()
    page.get_by_label("Name", exact=True).fill("Office")
    page.get_by_role("button", name="Rename", exact=True).click()
    choose(page, "Expressions")
    choose(page, "Office")
    expect_label(page, -1, "lamp")
    page.get_by_role("button", name="Delete this list").click()
    expect(lists.get_by_role("button", name="Office")).to_have_count(0)
    page.get_by_role("button", name="Undo").click()
    expect(lists.get_by_role("button", name="Office")).to_be_visible()
    add(page, "plant")
    page.get_by_role("button", name="Reset").click()
    expect_label(page, -1, "lamp")


@pytest.mark.slow
def test_prompts_are_changed_and_templates_need_a_place(editor):
    page = editor
    page.get_by_role("button", name="Prompt").click()
    page.get_by_label("After the label").fill("on a desk")
    page.keyboard.press("Enter")
    expect(page.locator("button.prompt")).to_contain_text("A photo of label on a desk")
    page.get_by_text("Several templates").click()
    page.get_by_label("One template a line").fill("a {c}.\nno place")
    page.get_by_label("One template a line").blur()
    expect(page.get_by_text("has no {} for the label")).to_be_visible()
    page.get_by_label("One template a line").fill("a {c}.\nmany {}")
    page.get_by_label("One template a line").blur()
    expect(page.locator("button.prompt")).to_contain_text("and 1 more template")
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("button.prompt")).to_contain_text("A photo of label on a desk")


def test_files_come_in_and_go_out(editor, tmp_path):
    page = editor
    open_more(page)
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Import…").click()
    places = tmp_path / "places.csv"
    places.write_text('label,n\r\n"beach, sunny",1\r\nforest,2\r\n')
    broken = tmp_path / "broken.json"
    broken.write_text("{")
    chooser.value.set_files([str(places)])
    expect(page.locator(".labels-message")).to_have_text("Imported “places”.")
    expect_labels(page, ["beach, sunny", "forest"])
    with page.expect_download() as download:
        page.get_by_role("button", name="Export this list").click()
    assert download.value.suggested_filename == "places.json"
    exported = json.loads(download.value.path().read_text())
    assert exported["lists"][0]["labels"] == ["beach, sunny", "forest"]
    page.locator("input[type=file]").first.set_input_files([str(broken), str(places)])
    message = page.locator(".labels-message")
    expect(message).to_contain_text("Imported “places (2)”. “broken.json” is damaged")
    page.get_by_role("button", name="Undo").click()
    expect(message).to_have_text("Undone.")


def test_a_link_is_shown_before_it_is_used_and_leaves_the_address(editor, offering_server):
    page = editor
    value = {"n": EVIL, "p": "A photo of", "l": [EVIL, "gnp.\u202efig"]}
    page.goto(f"{offering_server.url}/classify.html{link(value)}")
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_text(EVIL).first).to_be_visible()
    expect(dialog.get_by_text("gnp.fig")).to_be_visible()
    expect(dialog.get_by_text("Invisible characters")).to_be_visible()
    assert "labels=" not in page.url
    dialog.get_by_role("button", name="Discard").click()
    expect_label(page, 0, "pen")
    page.evaluate("hash => { location.hash = hash }", link(value))
    dialog.get_by_role("button", name="Use this list").click()
    expect_labels(page, [EVIL, "gnp.fig"])
    bomb = {"n": "x", "l": ["a" * 3_000_000]}
    page.evaluate("hash => { location.hash = hash }", link(bomb))
    expect(page.locator(".labels-message")).to_contain_text("The link's list of labels is damaged")
    assert "labels=" not in page.url
    open_more(page)
    page.get_by_role("button", name="Share…").click()
    shared = page.get_by_label("Link", exact=True).input_value()
    page.goto("about:blank")
    page.goto(shared)
    expect(page.get_by_role("dialog").get_by_role("listitem").first).to_have_text(EVIL)


@pytest.mark.slow
def test_a_link_and_a_token_come_together(page, running_server):
    server = running_server(api_key="a-key-of-16-letters")
    token = server.services.sessions.new_token()
    page.goto(f"{server.url}/classify.html{link({'n': 'x', 'l': ['only one']})}&token={token}")
    page.get_by_role("button", name="Use this list").click()
    expect_labels(page, ["only one"])
    assert "#" not in page.url


@pytest.mark.slow
def test_a_label_set_is_used_and_kept_and_refused_with_another_model(
    editor, offering_server, tmp_path
):
    page = editor
    # A set that comes late does not replace what was chosen meanwhile.
    held = []
    page.route("**/label-sets/fruit", lambda route: held.append(route))
    choose(page, "fruit")
    choose(page, "Expressions")
    with page.expect_response("**/label-sets/fruit"):
        held[0].continue_()
    page.unroute("**/label-sets/fruit")
    page.wait_for_timeout(200)
    expect(page.locator(".labels-message")).to_have_text("“Expressions” is used.")
    expect(page.get_by_label("Add a label")).to_be_visible()
    choose(page, "fruit")
    about = page.locator(".labels-set")
    expect(about).to_contain_text("apple, kiwi, fig")
    expect(about).to_contain_text("none of them")
    expect(page.get_by_label("Add a label")).to_be_hidden()
    page.reload()
    expect(about).to_contain_text("apple, kiwi, fig")
    choose(page, "Desk items")
    expect(page.locator(".model-line")).to_contain_text("Pictures")  # the model is known
    fruit = offering_server.services.label_sets["fruit"]
    raw = {**fruit.as_json(), "space_id": "space-of-another"}
    (tmp_path / "other.json").write_text(json.dumps(raw))
    page.locator("input[type=file]").first.set_input_files([str(tmp_path / "other.json")])
    expect(page.locator(".labels-message")).to_contain_text("“other” was fitted")
    expect_label(page, 0, "pen")


@pytest.mark.slow
def test_a_full_device_is_told_of_and_nothing_is_lost_before_the_page_is_closed(
    open_page, offering_server
):
    page = open_page()
    page.add_init_script(
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError') }"
    )
    page.goto(f"{offering_server.url}/classify.html")
    page.get_by_label("Add a label").wait_for()
    add(page, "lamp")
    expect(page.locator(".labels-message")).to_contain_text("until the page is closed only")
    page.get_by_role("button", name="Save as…").click()
    page.get_by_role("button", name="Save", exact=True).click()
    choose(page, "Expressions")
    choose(page, "Desk items (2)")
    expect_label(page, -1, "lamp")
