"""The server's page, driven in headless Chromium as a person drives it; answers beside the API's."""

import contextlib
import math
import re
import shutil
import threading
import time

import httpx
import pytest
import uvicorn
from trained import briefly_tuned

from genrec.data_prep import ItemCatalog
from genrec.serving import Recommender
from genrec.serving.server import ServerSettings, create_app

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.model,
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path (apt install chromium)"),
]
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (genrec[dev])")
expect = sync_api.expect

HOSTILE = "<img src=x onerror=document.title='taken'> radio & <b>bold</b>"
SEARCH = "History: search titles"
OPTIONS = "[role=option]:visible"


@pytest.fixture(scope="module")
def runs(tiny_backbone, log, items, tmp_path_factory):
    """Two runs of different start, one of whose items has HTML for a title."""
    root = tmp_path_factory.mktemp("runs")
    titles = {item: items.title(item) for item in items.item_ids} | {"i5": HOSTILE}
    items = ItemCatalog.from_titles(titles)
    return [
        Recommender.from_pretrained(briefly_tuned(tiny_backbone, log, items, root / name, seed))
        for seed, name in enumerate(("one", "two"))
    ]


@contextlib.contextmanager
def served(app):
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until = time.monotonic() + 20
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < until, "the server did not start in 20 s"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def address(runs):
    one, two = runs
    with served(create_app(one, ServerSettings(), "one", (two, "two"))) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        args = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=args)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser):
    """Opens pages; at the end none of them has failed or asked anyone but its server."""
    pages = []

    def opened(address, path="/", **options):
        page = browser.new_page(**options)
        page.set_default_timeout(10_000)
        asked, failed = [], []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on(
            "console",
            lambda said: "Content Security Policy" in said.text and failed.append(said.text),
        )
        page.goto(f"{address}{path}")
        pages.append((page, address, asked, failed))
        return page

    yield opened
    for page, address, asked, failed in pages:
        page.close()
        assert not failed
        assert all(url.startswith((address, "data:")) for url in asked), asked


def choose(page, query, label=SEARCH):
    """Searches and takes the first title found, by keys alone."""
    page.get_by_role("combobox", name=label).focus()
    page.keyboard.type(query)
    option = page.locator(OPTIONS).first
    expect(option).to_be_visible()
    page.keyboard.press("ArrowDown")
    expect(option).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Enter")
    expect(option).to_be_hidden()


def column(page, run):
    return page.get_by_role("region", name=f"Run {run}")


def shows(page, run, address, body):
    """Waits until a column shows what the API answers; returns that."""
    base = f"{address}/compare" if run == "two" else address
    items = httpx.post(f"{base}/recommend", json=body).raise_for_status().json()["items"]
    expect(column(page, run).locator(".list .title")).to_have_text([item["title"] for item in items])
    return items


def test_search_by_keyboard_and_lists_of_both_runs_are_the_apis(new_page, address, runs):
    page = new_page(address)
    expect(page.get_by_text("Runs one and two, 24 items")).to_be_visible()
    choose(page, "blue lamp")
    body = {"history": ["i1"]}
    for run in ("one", "two"):
        items = shows(page, run, address, body)
        said = [f"p {math.exp(item['score']):.4f}" for item in items if math.exp(item["score"]) >= 0.001]
        expect(column(page, run).locator(".list .score")).to_have_text(said)
    offline = runs[0].recommend([["i1"]], k=10)[0]
    expect(column(page, "one").locator(".list .title")).to_have_text([item.title for item in offline])
    expect(page.get_by_role("status")).to_contain_text("one: 10 items, first")
    choose(page, "new chair")
    shows(page, "one", address, {"history": ["i1", "i12"]})
    page.get_by_role("button", name="Remove blue lamp").press("Enter")
    shows(page, "one", address, {"history": ["i12"]})
    expect(page.get_by_role("button", name="Remove new chair")).to_be_focused()
    page.get_by_role("button", name="Remove new chair").press("Enter")
    expect(column(page, "one").locator(".list li")).to_have_count(0)
    expect(page.get_by_role("combobox", name=SEARCH)).to_be_focused()


def test_keys_of_the_search(new_page, address):
    page = new_page(address)
    search = page.get_by_role("combobox", name=SEARCH)
    search.fill("i")
    options = page.locator(OPTIONS)
    expect(options).to_have_count(8)
    expect(search).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("ArrowUp")
    expect(options.last).to_have_attribute("aria-selected", "true")
    expect(search).to_have_attribute("aria-activedescendant", options.last.get_attribute("id"))
    page.keyboard.press("ArrowDown")
    expect(options.first).to_have_attribute("aria-selected", "true")
    page.keyboard.press("Escape")
    expect(options).to_have_count(0)
    expect(search).to_have_value("i")
    page.keyboard.press("Escape")
    expect(search).to_have_value("")
    page.keyboard.press("ArrowDown")  # all items
    expect(page.get_by_text("24 items found, the first 8 shown").first).to_be_visible()
    search.fill("nothing of that name")
    expect(page.get_by_role("status")).to_have_text("No title or id has all these words.")
    search.fill("")
    search.press_sequentially("i12")
    page.get_by_role("option", name="new chair").click()
    expect(page.get_by_role("button", name="Remove new chair")).to_be_visible()


def test_filters_and_decoding_change_the_list(new_page, address):
    page = new_page(address)
    choose(page, "blue lamp")
    first = shows(page, "one", address, {"history": ["i1"]})[0]
    choose(page, first["item_id"], "Items that must not come: search titles")
    body = {"history": ["i1"], "exclude": [first["item_id"]]}
    assert first["item_id"] not in [item["item_id"] for item in shows(page, "one", address, body)]
    page.get_by_label("Leave out items of the history").uncheck()
    page.get_by_label("Items wanted").fill("24")
    page.get_by_label("Beams").fill("40")
    body |= {"exclude_history": False, "k": 24, "beams": 40}
    assert "i1" in [item["item_id"] for item in shows(page, "one", address, body)]
    choose(page, "red chair", "The only items that may come: search titles")
    choose(page, "quiet lamp", "The only items that may come: search titles")
    assert len(shows(page, "one", address, body | {"allow": ["i8", "i7"]})) == 2


def test_the_tree_says_why_an_item_was_possible(new_page, address):
    page = new_page(address)
    choose(page, "blue lamp")
    items = shows(page, "one", address, {"history": ["i1"]})
    one = column(page, "one")
    one.get_by_role("button", name=f"Why {items[2]['title']}", exact=True).press("Enter")
    why = one.locator(".why")
    expect(why).to_contain_text(f"{items[2]['title']} was possible")
    expect(why).to_be_focused()
    expect(why.get_by_role("listitem")).to_have_count(len(items[2]["code"]))
    tree = httpx.post(f"{address}/explain", json={"history": ["i1"]}).json()["tree"]
    expect(one.locator(".levels li")).to_have_count(len(tree["levels"]))
    codes = [branch["code"][-1] for branch in tree["branches"]]
    expect(one.locator(".branches > li > .branch > code")).to_have_text(codes)
    expect(one.locator(".on-path > .branch > code")).to_have_text(items[2]["code"])
    expect(one.locator(".on-path > .branch > .titles").last).to_contain_text(items[2]["title"])
    choose(page, "new chair")  # the open tree goes along with the list
    tree = httpx.post(f"{address}/explain", json={"history": ["i1", "i12"]}).json()["tree"]
    score = f"p {math.exp(tree['branches'][0]['score']):.4f}"
    expect(one.locator(".branches > li > .branch > .score").first).to_have_text(score)
    expect(why).to_be_hidden()


def test_errors_are_said_in_words_and_the_page_goes_on(new_page, address):
    page = new_page(address)
    choose(page, "blue lamp")
    page.get_by_label("Items wanted").fill("500")
    error = column(page, "one").locator("> .error")
    expect(error).to_have_text("Items wanted: Input should be less than or equal to 200")
    expect(column(page, "one").locator(".list li")).to_have_count(0)
    page.get_by_label("Items wanted").fill("2.5")
    expect(error).to_have_text("Items wanted takes a whole number.")
    page.get_by_label("Items wanted").fill("5")
    shows(page, "one", address, {"history": ["i1"], "k": 5})
    expect(error).to_be_hidden()
    page.get_by_label("Method").select_option("grounded")
    answer = httpx.post(f"{address}/recommend", json={"history": ["i1"], "method": "grounded"})
    assert answer.status_code == 422
    expect(error).to_have_text(answer.json()["error"]["message"])
    page.context.set_offline(True)
    page.get_by_label("Method").select_option("")
    expect(error).to_have_text("The server does not answer.")
    page.context.set_offline(False)


def test_titles_with_html_are_text(new_page, address):
    page = new_page(address)
    page.get_by_role("combobox", name=SEARCH).fill("onerror")
    expect(page.locator(OPTIONS)).to_contain_text(HOSTILE)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    choose(page, "blue lamp")
    page.get_by_label("Leave out items of the history").uncheck()
    choose(page, "onerror", "The only items that may come: search titles")
    one = column(page, "one")
    expect(one.locator(".list .title")).to_have_text([HOSTILE])
    one.get_by_role("button", name="Why").click()
    expect(one.locator(".why")).to_contain_text(HOSTILE)
    expect(one.locator(".branches .listed .titles")).to_contain_text(HOSTILE)
    assert page.locator("main img, main b").count() == 0
    assert page.title() == "genrec"


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window_and_every_control_has_a_name(new_page, address, width):
    page = new_page(address, viewport={"width": width, "height": 800})
    choose(page, "blue lamp")
    settings = page.locator("#settings")
    assert (settings.get_attribute("open") is None) == (width == 390)
    if width == 390:
        settings.locator("summary").press("Enter")
    choose(page, "onerror", "Items that must not come: search titles")
    items = shows(page, "one", address, {"history": ["i1"], "exclude": ["i5"]})
    column(page, "one").get_by_role("button", name=f"Why {items[0]['title']}", exact=True).click()
    expect(column(page, "one").locator(".branches li").first).to_be_visible()
    page.get_by_role("combobox", name=SEARCH).fill("radio")
    expect(page.locator(OPTIONS).first).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for role in ("button", "combobox", "textbox", "spinbutton", "checkbox", "listbox", "region", "group"):
        everyone = page.get_by_role(role)
        named = page.get_by_role(role, name=re.compile(r"\S"))
        assert everyone.count() == named.count(), (role, everyone.all_inner_texts())
    assert page.locator("html").get_attribute("lang") == "en"
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((each) => each.id)")
    assert len(ids) == len(set(ids))


def test_a_token_is_asked_for_and_stored_nowhere(new_page, runs):
    with served(create_app(runs[0], ServerSettings(token="sesame"), "one")) as address:
        page = new_page(address)
        page.get_by_role("combobox", name=SEARCH).press_sequentially("blue lamp")
        dialog = page.get_by_role("dialog", name="This server asks for a token")
        dialog.get_by_label("Token").fill("wrong")
        page.keyboard.press("Enter")
        expect(dialog).to_contain_text("does not take this token")
        dialog.get_by_label("Token").fill("sesame")
        page.keyboard.press("Enter")
        page.get_by_role("option", name="blue lamp").click()
        expect(column(page, "one").locator(".list li")).to_have_count(10)
        assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        page.reload()
        page.get_by_role("combobox", name=SEARCH).press_sequentially("blue")
        dialog.press("Escape")  # without a token, the reason stands where titles would
        expect(page.get_by_role("status")).to_contain_text("Send the server's token")
        page.close()


def test_the_page_of_the_api_needs_no_other_server(new_page, address):
    page = new_page(address, "/docs")
    expect(page.get_by_text("The best items for a history or a user").first).to_be_visible()


def test_the_page_is_open_and_strict_and_a_second_run_is_not_there_unasked(runs, address):
    with served(create_app(runs[0], ServerSettings(token="sesame"), "one")) as alone:
        for path, kind in {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"}.items():
            answer = httpx.get(f"{alone}{path}")
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith(kind)
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe" not in policy
            assert "http" not in policy
        assert httpx.get(f"{alone}/ready").json()["compare"] is None
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.get(f"{alone}/compare/items", headers=headers).status_code == 404
        assert httpx.get(f"{alone}/compare/items").status_code == 401
    assert httpx.get(f"{address}/ready").json()["compare"] == "two"
    assert httpx.get(f"{address}/compare/ready").json()["run"] == "two"
    body = {"history": ["i1"], "k": 3}
    two = [item.item_id for item in runs[1].recommend([["i1"]], k=3)[0]]
    found = httpx.post(f"{address}/compare/recommend", json=body).json()["items"]
    assert [item["item_id"] for item in found] == two
