"""The search page in a browser, against a real library with a hostile name."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from pocketclip.progress import ProgressReporter
from pocketclip.search.indexing.activity import recorded
from pocketclip.search.library import Library
from pocketclip.search.newest import newest_first
from pocketclip.search.records import IndexReport
from pocketclip.serve.settings import Limits
from tests.search.conftest import draw_photo
from tests.serve.conftest import _Starter
from tests.serve.libraries import HOSTILE, ids_of, make_library

REFUSED = "Failed to load resource"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("searched")


@pytest.fixture(scope="module")
def library(folder, encoder):
    """Thirty photographs: one with a hostile name, one there twice, and one that is none."""
    for seed in range(10, 34):
        draw_photo(folder / "Pictures" / f"more/{seed}.jpg", seed)
    draw_photo(folder / "Pictures" / "copy of a.jpg", 0)
    draw_photo(folder / "Pictures" / "larger.jpg", 10, size=(144, 108), quality=95)
    (folder / "Pictures" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no photograph")
    with make_library(folder, encoder) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(library, encoder, on_loop):
    starter = _Starter(encoder, on_loop)
    yield starter(library=library)
    starter.stop()


@pytest.fixture
def searching(page, server):
    """The search page, which shows all photographs."""
    page.on("dialog", lambda dialog: page.errors.append(dialog.message))
    page.goto(f"{server.url}/search.html")
    page.locator(".photo.loaded").first.wait_for()
    return page


def shown(page) -> list[int]:
    """The ids of the photographs, in their order."""
    ids = page.locator(".photo-grid .photo").evaluate_all("all => all.map(one => one.dataset.id)")
    return [int(one) for one in ids]


def search_for(page, text: str) -> None:
    with page.expect_response(lambda answer: answer.url.endswith("/search")):
        page.get_by_label("What is in the photograph").fill(text)
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")


def found(library: Library, *args, **options) -> list[int]:
    return [hit.content for hit in library.search(*args, top=100, **options).hits]


def test_all_photographs_are_there_and_hostile_names_are_texts(searching, library):
    page = searching
    assert shown(page) == newest_first(library.database).tolist()
    ids = ids_of(library)
    hostile = page.locator(f'.photo[data-id="{ids[HOSTILE]}"]')
    expect(hostile.locator("img")).to_have_attribute("alt", re.compile("<img src=x onerror"))
    hostile.click()
    title = page.locator("#details-name")
    expect(title).to_have_text("<img src=x onerror=alert(1)>\\n\"\\xff\ufffd'%0d.jpg")
    expect(page.get_by_text("Pictures/trip")).to_be_visible()
    with page.expect_download() as download:
        page.get_by_text("Download").click()
    data = Path(download.value.path()).read_bytes()
    assert data == (library_root(library) / HOSTILE).read_bytes()
    assert page.locator("img[src='x'], script:not([src]):not(#config)").count() == 0


def library_root(library: Library) -> Path:
    from pocketclip.search.indexing.roots import known_roots

    return known_roots(library.database)[0].path


def test_texts_back_and_reload(searching, library):
    page = searching
    everything = shown(page)
    search_for(page, "a circle")
    assert shown(page) == found(library, "a circle")
    search_for(page, "a circle - 2:a red square")
    assert shown(page) == found(library, "a circle - 2:a red square")
    assert "circle" not in page.url
    page.get_by_role("button", name="Filters").click()
    with page.expect_response(lambda answer: answer.url.endswith("/search")):
        page.get_by_label("Take + and - as they are written").check()
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    assert shown(page) == found(library, "a circle - 2:a red square", literal=True)
    page.reload()
    page.locator(".photo.loaded").first.wait_for()
    expect(page.get_by_label("What is in")).to_have_value("a circle - 2:a red square")
    assert shown(page) == found(library, "a circle - 2:a red square", literal=True)
    page.go_back()
    expect(page.locator("#literal")).not_to_be_checked()
    page.go_back()
    expect(page.get_by_label("What is in")).to_have_value("")
    expect(page.locator("#grid")).to_have_attribute("aria-busy", "false")
    page.wait_for_function(
        "n => document.querySelectorAll('.photo').length === n", arg=len(everything)
    )
    assert shown(page) == everything
    page.get_by_label("What is in").fill("beach -people")
    expect(page.get_by_text("put a space after the sign")).to_be_visible()
    page.expected.append(REFUSED)  # 400
    page.get_by_label("What is in").fill("- people")
    expect(page.locator("#query-error")).to_contain_text("Every part is to be avoided")
    expect(page.locator("#query-error")).to_contain_text("Take + and - as they are written")
    page.get_by_label("What is in").fill("./secret.jpg")
    expect(page.locator("#query-error")).to_contain_text("names a file")


def test_photographs_are_dimmed_below_the_error_of_a_query(searching):
    page = searching
    page.expected.append("400")
    search_for(page, "-")
    old = re.compile(r"\bold\b")
    expect(page.locator("#panel-photographs")).to_have_class(old)
    search_for(page, "a circle")
    expect(page.locator("#panel-photographs")).not_to_have_class(old)


def test_everything_by_keyboard(searching):
    page = searching
    order = shown(page)
    page.keyboard.press("/")
    expect(page.get_by_label("What is in the photograph")).to_be_focused()
    page.keyboard.press("ArrowDown")
    expect(page.locator(f'.photo[data-id="{order[0]}"]')).to_be_focused()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    focused = page.locator(f'.photo[data-id="{order[1]}"]')
    expect(focused).to_be_focused()
    expect(page.locator(".photo[tabindex='0']")).to_have_count(1)
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    expect(dialog).to_be_visible()
    expect(page.locator("#details-place")).to_have_text(f"2 of {len(order)}")
    page.keyboard.press("ArrowRight")
    expect(page.locator("#details-place")).to_have_text(f"3 of {len(order)}")
    page.keyboard.press("Escape")
    expect(dialog).not_to_be_visible()
    expect(page.locator(f'.photo[data-id="{order[2]}"]')).to_be_focused()
    page.keyboard.press("Control+End")
    expect(page.locator(f'.photo[data-id="{order[-1]}"]')).to_be_focused()
    page.keyboard.press("Enter")
    expect(dialog).to_be_visible()
    page.go_back()
    expect(dialog).not_to_be_visible()


@pytest.mark.slow
def test_similar_photographs_and_pictures_of_one_s_own(searching, library, tmp_path):
    page = searching
    root, ids = library_root(library), ids_of(library)
    page.locator(f'.photo[data-id="{ids["c.png"]}"]').click()
    with page.expect_response(lambda answer: answer.url.endswith("/search")):
        page.get_by_role("button", name="Similar to this").click()
    expect(page.locator(".photo").first).to_have_attribute("data-id", str(ids["c.png"]))
    assert shown(page) == found(library, like=[root / "c.png"])
    page.locator(f'.photo[data-id="{ids["d.webp"]}"]').click()
    with page.expect_response(lambda answer: answer.url.endswith("/search")):
        page.get_by_role("button", name="Not like this").click()
    expect(page.locator("#pictures li")).to_have_count(2)
    expected = found(library, like=[root / "c.png"], unlike=[root / "d.webp"])
    expect(page.locator(".photo").first).to_have_attribute("data-id", str(expected[0]))
    assert shown(page) == expected
    page.expected.append(REFUSED)  # of what is only avoided
    page.get_by_role("button", name="Remove c.png").click()
    with page.expect_response(lambda answer: answer.url.endswith("/search")):
        page.get_by_role("button", name=re.compile("^Unlike d.webp")).click()
    expect(page.locator(".photo").first).to_have_attribute("data-id", str(ids["d.webp"]))
    page.get_by_role("button", name="Remove d.webp").click()

    picture = draw_photo(tmp_path / "mine <b>.jpg", 77)
    page.get_by_role("button", name="Search by a picture").click()
    page.get_by_label("Choose pictures").set_input_files(picture)
    expect(page.locator(".picture-name")).to_have_text("mine <b>.jpg")
    expected = found(library, image=picture.read_bytes())
    page.wait_for_function(
        "id => document.querySelector('.photo')?.dataset.id === id", arg=str(expected[0])
    )
    assert shown(page) == expected
    page.reload()
    expect(page.locator(".picture-name")).to_have_text("mine <b>.jpg")
    page.locator(".photo.loaded").first.wait_for()
    assert shown(page) == expected
    drop = """([type, bytes]) => {
      const data = new DataTransfer();
      data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
      const options = { bubbles: true, cancelable: true };
      const event = type === "drop" ? new DragEvent(type, { dataTransfer: data, ...options })
        : new ClipboardEvent(type, { clipboardData: data, ...options });
      document.body.dispatchEvent(event);
    }"""
    other = list(draw_photo(tmp_path / "other.png", 78).read_bytes())
    for count, kind in ((2, "drop"), (3, "paste")):
        page.evaluate(drop, [kind, other])
        expect(page.locator("#pictures li:not(.pending)")).to_have_count(count)


@pytest.mark.slow
def test_near_duplicates_are_one_photograph_that_opens(searching, library):
    page = searching
    ids = ids_of(library)
    pair = {ids["larger.jpg"], ids["more/10.jpg"]}
    search_for(page, "a circle")
    [best] = pair & set(shown(page))
    [other] = pair - {best}
    expect(page.locator(f'.photo[data-id="{best}"] .badge')).to_have_text("+1")
    page.locator(f'.photo[data-id="{best}"]').click()
    expect(page.get_by_text("1 near duplicate")).to_be_visible()
    page.locator("#details-similar button").click()
    expect(page.locator("#details-place")).to_have_text("2 of 2")
    name = {ids["larger.jpg"]: "larger.jpg", ids["more/10.jpg"]: "10.jpg"}[other]
    expect(page.locator("#details-name")).to_have_text(name)
    page.keyboard.press("Escape")
    expect(page.locator(f'.photo[data-id="{best}"]')).to_be_focused()


def test_filters(searching, library):
    page = searching
    page.get_by_role("button", name="Filters").click()
    expect(page.locator("#folder-choices option")).not_to_have_count(0)
    assert "trip" in page.locator("#folder-choices option").evaluate_all(
        "all => all.map(o => o.value)"
    )
    page.get_by_label("Folder").fill("trip")
    page.get_by_label("Folder").press("Tab")
    expect(page.locator(".photo")).to_have_count(2)
    page.get_by_label("Since").fill("2030")
    page.get_by_label("Since").press("Tab")
    expect(page.get_by_text("The filters leave no photograph.")).to_be_visible()
    expect(page.get_by_role("button", name="Filters, 2 set")).to_be_visible()
    page.expected.append(REFUSED)
    page.get_by_label("Since").fill("yesterday")
    page.get_by_label("Since").press("Tab")
    expect(page.locator("#query-error")).to_contain_text("This is no date")
    page.locator("#filters-clear").click()
    expect(page.locator(".photo")).to_have_count(len(newest_first(library.database)))


@pytest.mark.slow
def test_a_hundred_thousand_photographs_are_few_elements(open_page, server, library):
    page = open_page(viewport={"width": 320, "height": 640})
    ids = newest_first(library.database).tolist()
    many = (ids * (100_000 // len(ids) + 1))[:100_000]
    page.route("**/browse", lambda route: route.fulfill(json={"ids": many, "total": len(many)}))
    page.goto(f"{server.url}/search.html")
    page.locator(".photo.loaded").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    most = 0
    for place in (0, 0.25, 0.5, 1):
        page.evaluate("part => scrollTo(0, part * document.documentElement.scrollHeight)", place)
        page.locator(".photo.loaded").last.wait_for()
        most = max(most, page.locator(".photo").count())
        expect(page.locator(".photo-row").first).to_be_attached()
    assert 15 < most < 120
    page.locator(".photo").last.focus()
    page.keyboard.press("Control+End")
    expect(page.locator('.photo[data-index="99999"]')).to_be_focused()
    page.keyboard.press("Control+Home")
    expect(page.locator('.photo[data-index="0"]')).to_be_focused()
    assert page.evaluate("scrollY") < 200


@pytest.mark.slow
def test_a_list_goes_on_after_its_first_hits(open_page, server, library):
    page = open_page()
    asked = []

    def cut(route):
        body = json.loads(route.request.post_data)
        asked.append(body["following"])
        body["top"] = 100 if body["following"] == 0 else 3
        answer = route.fetch(post_data=json.dumps({**body, "top": 3})).json()
        answer["hits"] = (answer["hits"] * 40)[:100] if body["following"] == 0 else answer["hits"]
        route.fulfill(body=json.dumps(answer), content_type="application/json")

    page.route("**/search", cut)
    page.goto(f"{server.url}/search.html")
    page.get_by_label("What is in").fill("a circle")
    expected = found(library, "a circle")
    page.wait_for_function(
        "([id, n]) => document.querySelector('.photo').dataset.id === id && "
        "document.querySelectorAll('.photo').length === n",
        arg=[str(expected[0]), len(expected)],
    )
    assert shown(page) == expected
    assert asked == [0, 100_000]


@pytest.mark.slow
def test_nothing_fits_well_and_the_server_is_busy(searching):
    page = searching
    answers = [429]

    def answer(route):
        if answers:
            status = answers.pop()
            route.fulfill(
                status=status,
                headers={"Retry-After": "1"},
                json={"error": {"message": "too many requests wait", "code": "queue_full"}},
            )
            return
        real = route.fetch().json()
        text = json.dumps({**real, "fits": False, "gone": 1})  # as the server, with escapes
        route.fulfill(body=text, content_type="application/json")

    page.expected.append(REFUSED)
    page.route("**/search", answer)
    page.get_by_label("What is in the photograph").fill("a circle")
    expect(page.get_by_text("The server is busy. Trying again")).to_be_visible()
    expect(page.get_by_text("Nothing fits well.")).to_be_visible()
    expect(page.locator("#trouble")).to_be_hidden()
    expect(page.get_by_text("1 better photograph left out")).to_be_visible()


@pytest.mark.slow
def test_what_another_process_indexes_is_seen_live(searching, library):
    page = searching
    report = IndexReport(encoded=7)
    with recorded(library.location, ProgressReporter(), report) as reporter:
        reporter.stage("reading 40 files")
        time.sleep(0.6)
        reporter.progress(10, 40)
        page.evaluate("dispatchEvent(new Event('online'))")  # asks at once
        expect(page.locator("#status-summary")).to_contain_text("25 %")
        time.sleep(0.6)
        reporter.progress(30, 40)
        expect(page.locator("#status-summary")).to_contain_text("75 %")
        page.locator("#status-toggle").click()
        expect(page.locator("#index-text")).to_contain_text("30 of 40 files")
        page.get_by_text("1 file could not be read").click()
        expect(page.locator("#unreadable-list")).to_contain_text("Pictures/broken.jpg")
        expect(page.locator("#unreadable-list")).to_contain_text("cannot be decoded")
        page.keyboard.press("Escape")
        expect(page.locator("#index-text")).to_be_hidden()
        page.locator("#status-toggle").click()
    expect(page.locator("#index-text")).to_contain_text("Last indexed")


@pytest.mark.slow
def test_duplicates(searching):
    page = searching
    page.get_by_role("button", name="Duplicates").click()
    expect(page.locator(".duplicate-group")).to_have_count(1)
    expect(page.locator(".duplicate-group")).to_contain_text("copy of a.jpg")
    expect(page.get_by_text("Nothing is deleted here.")).to_be_visible()
    page.get_by_role("button", name=re.compile("Bursts")).click()
    expect(page.get_by_text("None was found.")).to_be_visible()
    page.get_by_role("button", name=re.compile("Same shot")).click()
    expect(page.locator(".duplicate-group li").first).to_contain_text("best · 144 × 108")
    page.get_by_text("Thresholds").click()
    page.get_by_label("Same shot: cosine, at least").fill("0.5")
    with page.expect_response(lambda answer: answer.url.endswith("/duplicates")) as answer:
        page.get_by_role("button", name="Look again").first.click()
    assert answer.value.json()["limits"]["near_similarity"] == 0.5
    page.get_by_role("button", name=re.compile("Same file")).click()
    expect(page.locator(".duplicate-group")).to_contain_text("copy of a.jpg")
    page.locator(".duplicate-group .photo").last.click()
    expect(page.locator("#details-place")).to_have_text("2 of 2")
    page.keyboard.press("Escape")
    page.reload()
    expect(page.locator(".duplicate-group")).to_have_count(1)


@pytest.mark.slow
def test_states_without_photographs(open_page, running_server, encoder, tmp_path):
    page = open_page()
    page.expected += [REFUSED, "ERR_CONNECTION_REFUSED"]
    without = running_server()
    page.goto(f"{without.url}/search.html")
    expect(page.get_by_text("This server has no library of photographs")).to_be_visible()
    (tmp_path / "Pictures").mkdir()
    with Library.open(tmp_path / "photos.sqlite", create=True) as library:
        library.index([tmp_path / "Pictures"], encoder=encoder)
        server = running_server(library=library, limits=Limits(image_bytes=90_000))
        page.goto(f"{server.url}/search.html")
        expect(page.get_by_text("No photographs yet")).to_be_visible()
        page.get_by_label("What is in").fill("a circle")
        expect(page.locator("#empty code")).to_have_text("pocketclip index ~/Pictures")
        page.get_by_label("What is in").fill("")
        draw_photo(tmp_path / "Pictures" / "first.jpg", 1)
        library.index(encoder=encoder)
        time.sleep(1)  # the server counts once a second
        page.evaluate("dispatchEvent(new Event('online'))")
        expect(page.locator(".photo")).to_have_count(1)
        picture = {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": bytes(90_001)}
        page.get_by_role("button", name="Search by a picture").click()
        page.get_by_label("Choose pictures").set_input_files(picture)
        expect(page.locator("#query-error")).to_contain_text("is larger than 90 kB")
        server.stop()
        page.get_by_label("What is in").fill("a circle")
        expect(page.get_by_text("The server does not answer.")).to_be_visible()
        expect(page.get_by_role("button", name="Try again")).to_be_visible()


@pytest.mark.slow
def test_a_session_that_ended_is_asked_for_again(page, running_server, library):
    key = "a-key-of-some-length"
    server = running_server(library=library, api_key=key)
    page.expected.append(REFUSED)
    page.goto(f"{server.url}/search.html")
    page.get_by_label("Key").fill(key)
    page.get_by_label("Key").press("Enter")
    page.locator(".photo.loaded").first.wait_for()
    search_for(page, "a circle")
    page.context.clear_cookies()
    page.get_by_label("What is in").fill("a circle - red")
    page.get_by_label("Key").fill(key)
    page.get_by_label("Key").press("Enter")
    page.locator(".photo.loaded").first.wait_for()
    expect(page.get_by_label("What is in")).to_have_value("a circle - red")
    assert shown(page) == found(library, "a circle - red")


@pytest.mark.parametrize(
    ("width", "scheme"), [(320, "light"), pytest.param(1280, "dark", marks=pytest.mark.slow)]
)
def test_nothing_keeps_people_out(open_page, server, violations, width, scheme):
    page = open_page(viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.goto(f"{server.url}/search.html")
    page.locator(".photo.loaded").first.wait_for()

    def check():
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert violations(page) == []

    page.get_by_role("button", name="Filters").click()
    search_for(page, "a circle")
    check()
    page.get_by_role("button", name="Filters").click()
    page.locator(".photo").first.click()
    expect(page.locator("#details-facts dt").first).to_be_visible()
    check()
    page.keyboard.press("Escape")
    page.locator("#status-toggle").click()
    check()
    page.locator("#status-toggle").click()
    page.get_by_role("button", name="Duplicates").click()
    page.locator(".duplicate-group").first.wait_for()
    page.get_by_text("Thresholds").click()
    check()
