"""Texts become the embeddings that Python gives, from wherever the page has them first."""

from __future__ import annotations

import numpy as np
import pytest

from pocketclip.infer import bundle as bundles
from pocketclip.pages.presets import encode_presets
from tests.web.site_models import SiteModels

PROMPTS = ["a red circle", "a blue star, “large”", "two green squares"]
LONG = "one word and " * 40
_ENCODE = """async (values) => {
  const { assets } = JSON.parse(document.getElementById("config").textContent);
  const load = (name) => import(new URL(`${assets}app/inference/${name}`, document.baseURI).href);
  const { TextEncoder } = await load("text_encoder.js");
  const { listModels } = await load("models.js");
  const [model] = await listModels();
  const encoder = await TextEncoder.open({ ...model, ...values.model }, { server: values.server });
  const asked = [];
  const onConsent = async (bytes) => (asked.push(bytes), values.agree);
  try {
    const { embeddings, cut } = await encoder.encode(values.texts, { onConsent });
    const background = values.labels ? await encoder.background(values.labels) : null;
    return {
      embeddings: embeddings.map((row) => [...row]), cut, asked,
      background: background && background.length,
    };
  } catch (error) {
    return { name: error.name, message: error.message, code: error.code, asked };
  } finally {
    encoder.close();
  }
}"""


@pytest.fixture
def site(bundle):
    """The small model without presets."""
    return SiteModels([bundles.read(bundle)])


@pytest.fixture
def page(open_page):
    """A page whose requests the test sees: those of a service worker are its own."""
    return open_page(service_workers="block")


@pytest.fixture
def run(page, offering_server):
    """Encodes texts in a page whose content security policy is as it is."""
    page.context.set_default_timeout(30_000)

    def encode(site, texts, *, server=False, agree=False, **values):
        if page.url == "about:blank":
            if site is not None:
                site.serve(page)
            page.goto(f"{offering_server.url}/")
            page.wait_for_load_state("networkidle")
        given = {"texts": texts, "server": server, "agree": agree, "model": {}, **values}
        return page.evaluate(_ENCODE, given)

    return encode


def _has_no_worker(page):
    for _ in range(50):  # the browser tells of an end a moment later
        if not page.workers:
            return True
        page.wait_for_timeout(100)
    return False


def _least_cosine(found, expected):
    return float((np.array(found["embeddings"]) * expected).sum(1).min())


def test_the_server_embeds_texts_of_its_own_space(page, run, site, encoder):
    asked = []
    page.on(
        "request", lambda r: asked.append(r.url.rpartition("/")[2]) if r.method == "POST" else 0
    )
    found = run(site, [*PROMPTS, PROMPTS[0]], server=True, labels=["circle"])
    expected = encoder.encode_text([*PROMPTS, PROMPTS[0]])
    assert _least_cosine(found, expected) > 0.999999
    assert found["asked"] == []
    assert found["background"] == 48
    assert asked == ["embeddings", "embeddings"]
    # What is known is not asked for again, in another visit neither.
    page.reload()
    again = run(site, PROMPTS, server=True)
    assert again["embeddings"] == found["embeddings"][:3]
    assert asked == ["embeddings", "embeddings"]


@pytest.mark.slow
def test_a_server_whose_model_was_replaced_is_not_believed(page, run, site):
    page.route("**/v1/embeddings", lambda route: route.fulfill(
        json={**route.fetch().json(), "space_id": "another"}
    ))  # fmt: skip
    assert run(site, PROMPTS, server=True)["code"] == "other_space"


@pytest.mark.slow
def test_a_busy_server_is_asked_again(page, run, site, encoder):
    answers = iter([429, 200])

    def answer(route):
        if next(answers) == 200:
            route.continue_()
        else:
            route.fulfill(status=429, headers={"Retry-After": "1"}, body='{"error": {}}')

    page.expected.append("429")
    page.route("**/v1/embeddings", answer)
    found = run(site, PROMPTS, server=True)
    assert _least_cosine(found, encoder.encode_text(PROMPTS)) > 0.999999


@pytest.mark.filterwarnings("ignore:.*context length")
@pytest.mark.usefixtures("vendor")
def test_the_text_tower_is_downloaded_when_people_agree(page, run, site, encoder):
    refused = run(site, [*PROMPTS, LONG], labels=["circle"])
    assert refused["name"] == "ConsentRefused"
    assert "4 texts" in refused["message"]
    assert not [name for name in site.requests if "text" in name]
    model = site.model["variants"][0]
    travels = [*model["text"]["files"], model["tokenizer"]]
    assert refused["asked"][0] > sum(file["download_bytes"] for file in travels)

    found = run(site, [*PROMPTS, LONG], agree=True, labels=["circle"])
    assert _least_cosine(found, encoder.encode_text([*PROMPTS, LONG])) > 0.99999
    assert found["cut"] == [LONG]
    assert found["background"] is None  # which never downloads anything
    assert _has_no_worker(page)

    # Now it is on the device: nobody is asked, and nothing travels.
    before = len(site.requests)
    more = run(site, ["a yellow ring"])
    assert _least_cosine(more, encoder.encode_text(["a yellow ring"])) > 0.99999
    assert more["asked"] == []
    assert len(site.requests) == before


def test_presets_need_neither_server_nor_text_tower(run, site, encoder):
    rows = encoder.encode_text(PROMPTS)
    content = encode_presets(encoder.space_id, PROMPTS, rows)
    site.model["presets"] = site.add("presets.json", content)
    found = run(site, PROMPTS[::-1])
    assert np.array_equal(np.array(found["embeddings"], np.float32), rows[::-1])


@pytest.mark.slow
def test_presets_of_another_model_are_not_used(run, site, encoder):
    content = encode_presets("space-0000000000000000", PROMPTS, encoder.encode_text(PROMPTS))
    site.model["presets"] = site.add("presets.json", content)
    assert run(site, PROMPTS)["name"] == "ConsentRefused"


@pytest.mark.slow
def test_a_server_of_another_space_is_not_asked(page, run, site):
    posted = []
    page.on("request", lambda r: posted.append(r.url) if r.method == "POST" else 0)
    site.model["space_id"] = "space-0000000000000000"
    assert run(site, PROMPTS, server=True)["name"] == "ConsentRefused"
    assert posted == []


@pytest.mark.slow
def test_without_a_text_tower_the_servers_error_is_told(page, run, site):
    page.expected.append("503")
    page.route("**/v1/embeddings", lambda route: route.fulfill(
        status=503, body='{"error": {"message": "the model is being replaced"}}'
    ))  # fmt: skip
    found = run(site, PROMPTS, server=True, model={"variants": []})
    assert found["message"] == "The model is being replaced."


@pytest.mark.slow
@pytest.mark.usefixtures("vendor")
def test_a_damaged_text_tower_is_an_error_and_leaves_no_worker(page, run, site):
    site.files[site.url("text.onnx")] = b"something else"
    found = run(site, PROMPTS, agree=True)
    assert found["code"] == "damaged"
    assert _has_no_worker(page)


_LEAVE_OPEN = """async (texts) => {
  const { assets } = JSON.parse(document.getElementById("config").textContent);
  const load = (name) => import(new URL(`${assets}app/inference/${name}`, document.baseURI).href);
  const { TextEncoder } = await load("text_encoder.js");
  const [model] = await (await load("models.js")).listModels();
  const encoder = await TextEncoder.open(model, { server: false });
  const controller = new AbortController();
  const onConsent = () => (setTimeout(() => controller.abort(), 10), new Promise(() => {}));
  const left = encoder.encode(texts, { onConsent, signal: controller.signal });
  const next = encoder.encode(["another text"], { onConsent: async () => false });
  return (await Promise.allSettled([left, next])).map(({ reason }) => reason.name);
}"""


@pytest.mark.slow
def test_a_question_that_nobody_needs_an_answer_to_holds_nobody_up(page, site, offering_server):
    site.serve(page)
    page.goto(f"{offering_server.url}/")
    assert page.evaluate(_LEAVE_OPEN, PROMPTS) == ["AbortError", "ConsentRefused"]


_KEEP = """async (count) => {
  const { assets } = JSON.parse(document.getElementById("config").textContent);
  const url = new URL(`${assets}app/inference/text_cache.js`, document.baseURI);
  const { remember, recall, forgetTexts } = await import(url.href);
  const row = Float32Array.of(0.6, 0.8);
  const known = async (text) => (await recall("a space", [text])).has(text);
  if (count === 0) {
    const found = [await known("first"), await known("last"), (await recall("b", ["last"])).size];
    await remember("a space2", new Map([["x", row]]));
    await forgetTexts("a space");
    const others = await recall("a space2", ["x"]);
    return [...found, await known("last"), others.size];
  }
  await remember("a space", new Map([["first", row]]));
  await new Promise((resolve) => setTimeout(resolve, 5));
  const many = Array.from({ length: count }, (_, i) => [`text ${i}`, row]);
  await remember("a space", new Map([...many, ["last", row]]));
}"""


@pytest.mark.slow
def test_the_device_keeps_the_newest_texts(page, offering_server):
    page.goto(f"{offering_server.url}/")
    page.evaluate(_KEEP, 3999)  # and two more: one is too many
    page.reload()  # which empties the memory
    assert page.evaluate(_KEEP, 0) == [False, True, 0, False, 1]
