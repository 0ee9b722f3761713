"""Every page opens, runs only what is ours, and asks for the key where there is one."""

from __future__ import annotations

import pytest

from pocketclip.pages.web_files import PAGES, web_files

KEY = "a key of 16 letters".replace(" ", "-")


@pytest.mark.slow
def test_every_page_opens(page, offering_server):
    for name in PAGES:
        page.goto(f"{offering_server.url}/{name}.html")
        page.wait_for_load_state("networkidle")
        assert page.locator("h1").first.is_visible()
        assert page.evaluate("crossOriginIsolated")


@pytest.mark.parametrize("part", ["labels/presets.json", "shared/dom.js"])
def test_a_page_that_cannot_start_says_what_to_do(page, offering_server, part):
    page.route(f"**/app/{part}", lambda route: route.fulfill(status=404))
    page.expected += ["404", "The presets cannot be read"]
    page.goto(f"{offering_server.url}/classify.html")
    page.get_by_role("status").get_by_text("check the connection and reload the page").wait_for()


def test_a_page_asks_for_the_key_once(page, running_server):
    server = running_server(api_key=KEY)
    page.expected.append("401")
    page.goto(f"{server.url}/")
    page.get_by_label("Key").fill("not the key, but long enough")
    page.get_by_role("button", name="Enter").click()
    page.get_by_text("This is not the server's key.").wait_for()
    page.get_by_label("Key").fill(KEY)
    page.get_by_role("button", name="Enter").click()
    page.get_by_text("teacher-a").or_(
        page.get_by_text(server.services.engine.encoder.config.name)
    ).first.wait_for()
    page.reload()
    page.get_by_role("button", name="Leave").click()
    page.get_by_label("Key").wait_for()


def test_a_session_that_ends_costs_no_work(page, running_server):
    server = running_server(api_key=KEY)
    page.expected.append("401")
    page.goto(f"{server.url}/classify.html#token={server.services.sessions.new_token()}")
    page.get_by_role("button", name="Leave").wait_for()
    page.evaluate("globalThis.work = 'kept'")
    page.get_by_label("Add a label").fill("zebra")
    page.get_by_role("button", name="Add", exact=True).click()
    page.wait_for_load_state("networkidle")
    page.context.clear_cookies()
    page.evaluate(
        "async (at) => { await (await import(at)).call('GET', 'info').catch(() => {}) }",
        f"{server.url}/{web_files().assets}app/shared/api.js",
    )
    page.get_by_label("Key", exact=True).fill(KEY)
    page.get_by_role("button", name="Enter").click()
    page.get_by_role("button", name="zebra, rename").wait_for()
    assert page.evaluate("globalThis.work") == "kept"
    assert page.evaluate("fetch('info').then((answer) => answer.status)") == 200


@pytest.mark.slow
def test_a_link_with_a_token_lets_in_and_leaves_no_trace(page, running_server):
    server = running_server(api_key=KEY)
    token = server.services.sessions.new_token()
    page.goto(f"{server.url}/camera.html#token={token}")
    page.get_by_role("button", name="Leave").wait_for()
    assert token not in page.url


@pytest.mark.parametrize("scheme", ["dark", pytest.param("light", marks=pytest.mark.slow)])
def test_nothing_keeps_people_out(open_page, offering_server, violations, scheme):
    page = open_page(viewport={"width": 320, "height": 640}, color_scheme=scheme)
    for name in ("index", "camera", "nothing"):
        if name == "nothing":
            page.expected.append("404")
        page.goto(f"{offering_server.url}/{name}.html")
        page.wait_for_load_state("networkidle")
        assert violations(page) == [], name
        assert page.evaluate("document.documentElement.scrollWidth") == 320, name
    page.goto(f"{offering_server.url}/camera.html")
    page.get_by_role("button", name="Choose a model").click()
    page.get_by_role("radio").first.wait_for()
    assert violations(page) == []
    page.keyboard.press("Escape")
    page.get_by_text("How to read this").click()
    page.get_by_text("Share, import and more").click()
    page.locator("button.prompt").click()
    assert violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == 320
