"""The camera page: a fake camera plays scenes, and a trained model names them in the browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import expect

from pocketclip.quickstart.drawing import render
from pocketclip.quickstart.replay_rng import ReplayRNG
from pocketclip.quickstart.scenes import draw_scene

pytestmark = pytest.mark.usefixtures("vendor")

LABELS = ["blue triangle", "red flower", "blue heart", "white tree"]
# Scenes of one thing, by their index: the last one is none of the labels.
FLOWER, HEART, TREE, FISH = 17, 24, 10, 67
FRAMES = 40  # of a scene, at 30 a second
DOWNLOADS = re.compile(r"model-files/|\.wasm|ort\.")


def picture(index: int, side: int = 240) -> Image.Image:
    scene = draw_scene("test", seed=7, index=index)
    return Image.fromarray(render(scene, side=side, rng=ReplayRNG(7, index)))


def file_of(index: int, format: str = "jpeg") -> bytes:
    buffer = io.BytesIO()
    picture(index).save(buffer, format, quality=92)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the fake camera plays, again and again: JPEGs one after another."""
    path = tmp_path_factory.mktemp("film") / "scenes.mjpeg"
    path.write_bytes(b"".join(file_of(index) * FRAMES for index in (FLOWER, HEART, FISH)))
    return path


@pytest.fixture
def camera(open_page: Callable[..., Any], server: Any, film: Path) -> Callable[..., Any]:
    """Opens the page: `camera(script=..., origin=..., change=..., **options of a context)`.

    `change` maps a path of the site to a function that changes its text.
    """

    def open_camera(
        *, script: str = "", origin: str = server.url,
        change: Mapping[str, Callable[[str], str]] | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        page = open_page(flags=(f"--use-file-for-fake-video-capture={film}",), **options)
        kept = {
            "list": {
                "name": "Scenes", "prefix": "a", "suffix": "", "templates": [],
                "labels": LABELS,
            },
            "base": None, "set": None,
        }  # fmt: skip
        page.add_init_script(
            f"localStorage['pocketclip.labels.current.camera'] ??= {json.dumps(json.dumps(kept))};"
            + script
        )
        for path, changed in (change or {}).items():
            page.route(f"**/{path}", answering(changed))
        page.requests = []
        page.on("request", lambda request: page.requests.append(request.url))
        page.goto(f"{origin}/camera.html")
        page.locator("#cover button").first.wait_for()
        return page

    return open_camera


def answering(changed: Callable[[str], str]) -> Callable[[Any], None]:
    def answer(route: Any) -> None:
        response = route.fetch()
        route.fulfill(response=response, body=changed(response.text()))

    return answer


def configured(**fields: Any) -> Callable[[str], str]:
    """Changes what a page knows of its site."""

    def change(html: str) -> str:
        before, tag, rest = html.partition('id="config">')
        config, end, after = rest.partition("</script>")
        return before + tag + json.dumps(json.loads(config) | fields) + end + after

    return change


def start(page: Any) -> None:
    page.get_by_role("button", name=re.compile("^Start")).click()
    page.locator("#results li").first.wait_for()


def top(page: Any, label: str) -> None:
    """Wait until a label is on top."""
    page.locator("#results li:first-child .name").get_by_text(label, exact=True).wait_for()


def stay(page: Any, seconds: float = 0.6) -> str:
    """Return the list of results, which must not change meanwhile."""
    before = page.locator("#results").inner_text()
    page.wait_for_timeout(1000 * seconds)
    assert page.locator("#results").inner_text() == before
    return str(before)


def figures(page: Any) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in page.evaluate(
            "({...document.getElementById('figures').dataset})"
        ).items()
        if value
    }


def test_it_names_what_the_camera_sees(camera):
    page = camera()
    page.wait_for_load_state("networkidle")
    # What is downloaded and under which licence is said before anything is.
    button = page.get_by_role("button", name="Start: download")
    expect(button).to_have_text(re.compile(r"download \d+\.\d MB$"))
    expect(page.locator(".start-facts")).to_contain_text("Licence: ")
    assert not [url for url in page.requests if DOWNLOADS.search(url)]
    assert not page.locator("#figures").is_visible()
    start(page)
    top(page, "red flower")
    # Of one frame: the camera goes on.
    fitting = page.locator("#results li.result.fits:first-child .name")
    fitting.get_by_text("red flower", exact=True).wait_for()
    top(page, "blue heart")
    spoken = page.wait_for_function("document.getElementById('spoken').textContent")
    assert spoken.json_value() in [*LABELS, "None of these"]
    top(page, "None of these")
    expect(page.locator("#results .fits")).to_have_count(1)
    found = figures(page)
    assert found["frames"] > 10
    assert 0 < found["rate"] <= 1.5 * found["sourceRate"] + 2  # over other spans of time
    assert 0 < found["median"] <= found["p95"]


@pytest.mark.slow
def test_a_camera_is_frozen_hidden_switched_off_and_starts_again(camera):
    page = camera()
    start(page)
    # A frozen frame keeps its result while the camera goes on; other labels name it anew.
    top(page, "red flower")
    page.keyboard.press("Space")
    page.get_by_text("Frozen", exact=True).wait_for()
    counted = -1.0
    while counted != (counted := figures(page)["frames"]):  # until the last frame has its result
        page.wait_for_timeout(1200)  # figures are drawn twice a second
    assert "red flower" in stay(page)
    page.get_by_role("button", name=re.compile("^Remove red flower")).click()
    page.locator("#results").get_by_text("red flower").wait_for(state="detached")
    page.locator("#freeze-button").click()
    page.locator("#stage[data-state=live]").wait_for()

    # A hidden page lets go of the camera, and takes it up again.
    page.evaluate(
        "Object.defineProperty(document, 'hidden', {value: true, configurable: true});"
        "document.dispatchEvent(new Event('visibilitychange'))"
    )
    assert page.evaluate("document.querySelector('video').srcObject.active") is False
    page.wait_for_timeout(700)  # figures are drawn twice a second
    before = figures(page)["frames"]
    page.wait_for_timeout(700)
    assert figures(page)["frames"] == before
    page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
    page.locator("#figures[data-rate]:not([data-rate=''])").wait_for()
    assert page.evaluate("document.querySelector('video').srcObject.active")

    # A pause switches it off too.
    page.keyboard.press("p")
    page.get_by_text("The camera is off.").wait_for()
    assert page.evaluate("document.querySelector('video').srcObject.active") is False
    page.get_by_role("button", name="Continue").first.click()
    page.locator("#results li").first.wait_for()

    # The next visit starts by itself, from what is on the device.
    page.requests.clear()
    page.reload()
    page.locator("#results li").first.wait_for()
    assert not [url for url in page.requests if "model-files/" in url]


ABILITIES = """
    window.wanted = [];
    MediaStreamTrack.prototype.getCapabilities = () => {
        return {torch: true, zoom: {min: 1, max: 5, step: 0.1}};
    };
    MediaStreamTrack.prototype.applyConstraints = async ({advanced}) => {
        window.wanted.push(...advanced);
    };
    const devices = navigator.mediaDevices;
    const list = devices.enumerateDevices.bind(devices);
    const get = devices.getUserMedia.bind(devices);
    devices.enumerateDevices = async () => {
        const [one] = (await list()).filter(({kind}) => kind === "videoinput");
        const more = {kind: "videoinput", deviceId: "other", label: "Other camera"};
        return [{kind: "videoinput", deviceId: one.deviceId, label: "First camera"}, more];
    };
    devices.getUserMedia = ({video}) => {
        window.wanted.push(video.deviceId ?? video.facingMode);
        return get({video: true});
    };
"""


@pytest.mark.slow
def test_what_a_camera_can_do_is_offered(camera):
    page = camera(script=ABILITIES)
    start(page)
    page.locator("#stage.mirrored").wait_for()  # a camera of a laptop looks at people
    page.locator("#mirror-button").click()
    page.locator("#stage:not(.mirrored)").wait_for()
    assert page.locator("#mirror-button").get_attribute("aria-pressed") == "false"
    # Letters do nothing for people who do not want them to.
    page.get_by_role("button", name="Keyboard").click()
    page.get_by_role("switch", name="Use these keys").uncheck()
    page.keyboard.press("Escape")
    page.keyboard.press("m")
    assert page.locator("#mirror-button").get_attribute("aria-pressed") == "false"
    page.get_by_role("button", name="Keyboard").click()
    page.get_by_role("switch", name="Use these keys").check()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Lamp").click()
    page.locator("#torch-button[aria-pressed=true]").wait_for()
    page.keyboard.press("+")
    page.get_by_role("button", name="Choose what is looked at").click()
    page.get_by_role("button", name="First camera").wait_for()
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Other camera").click()
    page.locator("#stage[data-state=live].mirrored").wait_for()
    assert page.evaluate("window.wanted") == [
        {"ideal": "environment"}, {"torch": True}, {"zoom": 1.4}, {"exact": "other"},
    ]  # fmt: skip


@pytest.mark.slow
def test_photographs_are_chosen_dropped_and_pasted(camera):
    page = camera()
    page.locator("#photo-input").set_input_files(
        {"name": "<img src=x>.jpg", "mimeType": "image/jpeg", "buffer": file_of(HEART)}
    )
    # The photograph is there before the model, which asks first.
    page.locator("#model-card").get_by_role("button", name=re.compile("^Start")).click()
    top(page, "blue heart")
    send = """([bytes, event]) => {
        const data = new DataTransfer();
        data.items.add(new File([new Uint8Array(bytes)], "a.png", {type: "image/png"}));
        const init = {bubbles: true, cancelable: true};
        document.getElementById("stage").dispatchEvent(event === "drop"
            ? new DragEvent("drop", {...init, dataTransfer: data})
            : new ClipboardEvent("paste", {...init, clipboardData: data}));
    }"""
    page.evaluate(send, [list(file_of(FLOWER, "png")), "drop"])
    top(page, "red flower")
    page.evaluate(send, [list(file_of(TREE, "png")), "paste"])
    top(page, "white tree")
    # What is no image changes nothing.
    page.evaluate(send, [list(b"not an image"), "drop"])
    page.get_by_text("This file is no photograph that the browser can open.").wait_for()
    assert page.locator("#results li").first.inner_text().startswith("white tree")
    # A photograph that the browser shows, but does not decode, has not the other one's result.
    drawing = b"<svg xmlns='http://www.w3.org/2000/svg' width='90' height='90'/>"
    page.locator("#photo-input").set_input_files(
        {"name": "a.svg", "mimeType": "image/svg+xml", "buffer": drawing}
    )
    page.get_by_text("There is no result for this picture: choose another one.").wait_for()
    page.evaluate(send, [list(file_of(TREE, "png")), "paste"])
    top(page, "white tree")
    with page.expect_download() as waiting:
        page.get_by_role("button", name="Save as CSV").click()
    rows = Path(waiting.value.path()).read_text("utf-8").splitlines()
    assert rows[0] == "label,probability,cosine"
    assert rows[1].startswith("white tree,0.")


PROBLEMS = {
    "NotAllowedError": "The camera is not allowed for this page.",
    "NotFoundError": "There is no camera.",
    "NotReadableError": "Another program uses the camera.",
}


def test_a_camera_that_does_not_start_says_why(camera):
    page = camera(
        script="const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);"
        "navigator.mediaDevices.getUserMedia = async (wanted) => {"
        "  if (window.refuse) throw new DOMException('no', window.refuse); return real(wanted); };"
        "window.refuse = 'NotAllowedError'"
    )
    page.get_by_role("button", name=re.compile("^Start")).click()
    for name, title in PROBLEMS.items():
        page.get_by_role("heading", name=title).wait_for()
        expect(page.get_by_role("button", name="Choose a photograph")).to_be_visible()
        after = {"NotAllowedError": "'NotFoundError'", "NotFoundError": "'NotReadableError'"}
        page.evaluate(f"window.refuse = {after.get(name, 'null')}")
        page.get_by_role("button", name="Try again").click()
    page.locator("#results li").first.wait_for()
    # A camera that is pulled out is said too.
    page.evaluate(
        "document.querySelector('video').srcObject.getTracks()[0].dispatchEvent(new Event('ended'))"
    )
    page.get_by_role("heading", name="The camera is gone.").wait_for()


def test_an_origin_that_is_not_secure_offers_a_photograph(camera, running_server):
    server = running_server(allow_hosts=("phone.test",))
    page = camera(origin=server.url.replace("127.0.0.1", "phone.test"))
    page.expected.append("Cross-Origin-Opener-Policy")  # is for secure origins
    expect(page.locator("#cover")).to_contain_text("https")
    with page.expect_file_chooser() as waiting:
        page.get_by_role("button", name="Choose a photograph").click()
    waiting.value.set_files({"name": "a.jpg", "mimeType": "image/jpeg", "buffer": file_of(HEART)})
    page.locator("#model-card").get_by_role("button", name=re.compile("^Start")).click()
    top(page, "blue heart")


def test_a_model_is_chosen_by_size_and_licence(camera):
    def restricted(text: str) -> str:
        models = json.loads(text)
        licence = {"name": "apple-amlr", "url": "https://example.org/", "restricted": True}
        models["models"][0]["licence"] |= licence
        return json.dumps(models)

    page = camera(change={"models.json": restricted})
    expect(page.locator(".start-facts")).to_contain_text("By starting you accept it.")
    page.get_by_role("button", name="Choose a model").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("radio").first.focus()
    for key in ("ArrowDown", "ArrowUp"):  # to the server's model and back
        page.keyboard.press(key)
        page.wait_for_timeout(100)
        assert page.evaluate("document.activeElement.type") == "radio"
    facts = dialog.locator(".model-option").first
    expect(facts).to_contain_text(re.compile(r"Model [\d.]+ MB, runtime [\d.]+ MB"))
    expect(facts).to_contain_text("fp32 on the CPU")
    expect(facts).to_contain_text("apple-amlr")
    expect(
        dialog.get_by_role("switch")
    ).to_be_disabled()  # without WebGPU there is nothing to switch
    assert not [url for url in page.requests if DOWNLOADS.search(url)]
    dialog.get_by_role("button", name="Use it: download").click()
    page.locator("#model-line").get_by_text("fp32 on the CPU").wait_for()
    page.get_by_role("button", name="Choose a model").click()
    dialog.get_by_text("On this device.").first.wait_for()
    dialog.get_by_role("button", name="Remove from this device").click()
    dialog.get_by_text(re.compile("^The files of .* are removed")).wait_for()
    expect(dialog.get_by_text("On this device.")).to_have_count(0)
    page.keyboard.press("Escape")
    # What an earlier model left takes room until it is removed.
    page.evaluate("""async () => (await caches.open("pocketclip-files-1")).put(
        "/pocketclip-files-1/0a", new Response("x", {headers: {"X-Bytes": "14000000"}}))""")
    page.get_by_role("button", name="Choose a model").click()
    dialog.get_by_text("not listed any more take 14.0 MB").wait_for()
    dialog.get_by_role("button", name="Remove them").click()
    dialog.get_by_text("14.0 MB are free again").wait_for()


@pytest.mark.slow
def test_a_download_can_be_given_up(camera):
    page = camera()
    page.route("**/model-files/**", lambda _: None)  # never answered
    page.get_by_role("button", name=re.compile("^Start")).click()
    page.get_by_text("Loading the model: ").wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.locator("#model-card").get_by_role("button", name=re.compile("^Start")).wait_for()
    page.unroute("**/model-files/**")
    page.locator("#model-card").get_by_role("button", name=re.compile("^Start")).click()
    page.locator("#results li").first.wait_for()


@pytest.mark.slow
def test_a_failed_check_is_said_and_the_server_is_asked_only_then(camera):
    def wrong(text: str) -> str:
        models = json.loads(text)
        for variant in models["models"][0]["variants"]:
            variant["check"]["embedding"] = [-x for x in variant["check"]["embedding"]]
        return json.dumps(models)

    page = camera(change={"models.json": wrong})
    sent = []  # pictures; texts are the server's to embed
    page.on("request", lambda r: '"modality":"image"' in (r.post_data or "") and sent.append(r))
    page.get_by_role("button", name=re.compile("^Start")).click()
    page.locator("#notes .notice").wait_for()
    assert not sent
    page.get_by_role("button", name="Send pictures to the server instead").click()
    top(page, "red flower")
    assert sent
    expect(page.locator("#model-line")).to_contain_text("Pictures are sent to it.")


@pytest.mark.slow
def test_a_list_of_models_that_cannot_be_read_is_not_called_empty(camera):
    page = camera(change={"models.json": lambda _: "{"})
    page.get_by_text("The server's answer was cut off. Try again. The server's model").wait_for()


@pytest.mark.slow
def test_without_npm_the_page_says_so_and_uses_the_server(camera):
    page = camera(change={"camera.html": configured(vendor=None)})
    expect(page.locator("#cover")).to_contain_text("built without npm")
    expect(page.locator("#cover")).to_contain_text("pictures are sent to it")
    start(page)
    top(page, "blue heart")
    # That pictures are sent is agreed to in each visit.
    page.reload()
    page.get_by_role("button", name="Start the camera").wait_for()
    sent = []
    page.on("request", lambda r: '"modality":"image"' in (r.post_data or "") and sent.append(r))
    page.wait_for_timeout(700)
    assert not sent
    start(page)
    assert sent


@pytest.mark.slow
def test_a_video_is_named_as_it_plays(camera):
    page = camera()
    start(page)
    # The browser makes it of its own camera.
    page.evaluate(
        """async () => {
        const stream = document.querySelector("video").srcObject;
        const recorder = new MediaRecorder(stream, {mimeType: "video/webm"});
        const chunks = [];
        recorder.ondataavailable = ({data}) => chunks.push(data);
        recorder.start();
        await new Promise((done) => setTimeout(done, 1500));
        await new Promise((done) => { recorder.onstop = done; recorder.stop(); });
        const data = new DataTransfer();
        data.items.add(new File(chunks, "a.webm", {type: "video/webm"}));
        document.dispatchEvent(new DragEvent("drop", {dataTransfer: data, cancelable: true}));
        }"""
    )
    page.locator("#stage[data-source=video][data-state=live]").wait_for()
    page.get_by_text("The end", exact=True).wait_for()
    assert "%" in stay(page)


@pytest.mark.slow
def test_labels_that_need_the_text_tower_ask_first(camera):
    page = camera(change={"camera.html": configured(server=False)})
    page.get_by_role("button", name=re.compile("^Start")).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text(re.compile(r"It has [\d.]+ MB")).wait_for()
    dialog.get_by_role("button", name="Not now").click()
    page.get_by_text("4 labels left out").wait_for()
    page.get_by_label("Add a label").fill("zebra")
    page.get_by_role("button", name="Add", exact=True).click()
    page.get_by_text("5 labels left out").wait_for()  # without another question
    assert page.locator("#results li").count() == 0
    page.get_by_role("button", name="Download it").click()
    dialog.get_by_role("button", name="Download").click()
    top(page, "red flower")
    assert not [url for url in page.requests if url.endswith("/v1/embeddings")]


@pytest.mark.slow
def test_a_label_set_gives_probabilities_only(camera, offering_server):
    kept = {"list": None, "base": None, "set": "fruit"}
    script = f"localStorage['pocketclip.labels.current.camera'] = {json.dumps(json.dumps(kept))};"
    page = camera(origin=offering_server.url, script=script)
    start(page)
    row = page.locator("#results li").filter(has_text="kiwi")
    row.wait_for()
    expect(row.locator(".probability")).to_have_text(re.compile("%$"))
    expect(row.locator(".cosine")).to_have_text("")
