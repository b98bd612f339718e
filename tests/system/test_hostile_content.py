"""Hostile text from a model, an API, a file or a person is shown in a real browser and does nothing.

The payloads run a script that sets `window.ran`, open a dialog, or call a host that is not the page's.
The API is scripted, so no model is needed.
"""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Route, expect

from tests.support.browsing import DESKTOP, Visit, page_process, scripted_api
from tests.support.system import SCREENSHOTS

RUN = "window.ran=1;alert(1)"
FOREIGN = "https://foreign.example"
SVG = f"<svg xmlns='http://www.w3.org/2000/svg' onload='{RUN}'><script>{RUN}</script></svg>"

TAGS = [
    f"<script>{RUN}</script>",
    f"<script src={FOREIGN}/a.js></script>",
    f"<img src=x onerror={RUN}>",
    f'<IMG """><SCRIPT>{RUN}</SCRIPT>">',
    f"<svg onload={RUN}></svg>",
    f"<svg><script>{RUN}</script></svg>",
    f"<svg><animate onbegin={RUN} attributeName=x dur=1s></svg>",
    f"<svg><a xlink:href='javascript:{RUN}'><text x=20 y=20>svg link</text></a></svg>",
    f"<svg><image href={FOREIGN}/svg.png></image><use href={FOREIGN}/a.svg#x></use></svg>",
    f"<math><a xlink:href='javascript:{RUN}'>math link</a></math>",
    f"<iframe src='javascript:parent.{RUN}'></iframe>",
    f'<iframe srcdoc="<script>parent.{RUN}</script>"></iframe>',
    f"<iframe src={FOREIGN}/frame></iframe>",
    f"<object data='data:text/html,<script>parent.{RUN}</script>'></object><embed src={FOREIGN}/e>",
    f"<style>@import url({FOREIGN}/a.css); body {{ background: url({FOREIGN}/css.png) }}</style>",
    f"<link rel=stylesheet href={FOREIGN}/b.css><link rel=prefetch href={FOREIGN}/p>",
    f"<meta http-equiv=refresh content='0;url={FOREIGN}/refresh'>",
    f"<base href={FOREIGN}/>",
    f"<details open ontoggle={RUN}><summary>s</summary></details>",
    f"<input autofocus onfocus={RUN}><select autofocus onfocus={RUN}></select>",
    f"<video src=x onerror={RUN}></video><audio src={FOREIGN}/a.mp3 autoplay></audio>",
    f"<video poster={FOREIGN}/v.png><source onerror={RUN}></video>",
    f"<body onload={RUN}><marquee onstart={RUN}>m</marquee>",
    f"<div onmouseover={RUN} onclick={RUN}>hover</div>",
    f"<form action='javascript:{RUN}'><button>button</button><input type=submit></form>",
    f"<button formaction='javascript:{RUN}'>button</button>",
    f"<p style='background:url({FOREIGN}/style.png)'>styled</p>",
    f"<table background={FOREIGN}/table.png><tr><td background={FOREIGN}/td.png>cell</table>",
]
COMMENTS = [
    f"<!--><img src=x onerror={RUN}>-->",
    f"<!-- --!><img src=x onerror={RUN}> -->",
    f"<![CDATA[<img src=x onerror={RUN}>]]>",
    f'<noscript><p title="</noscript><img src=x onerror={RUN}>">',
    f'<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror={RUN}&gt;">',
    f'<svg></p><style><a id="</style><img src=1 onerror={RUN}>">',
    f"<template><img src=x onerror={RUN}></template><textarea></textarea><img src=x onerror={RUN}>",
    f"<scr<script>ipt>{RUN}</scr</script>ipt>",
    f"<img src=x\nonerror\n=\n{RUN}>",
    f"<img/src=x/onerror={RUN}>",
]
LINKS = [
    f"[link](javascript:{RUN})",
    f"[link](JaVaScRiPt:{RUN})",
    f"[link](java&#x09;script:{RUN})",
    f"[link](&#106;avascript:{RUN})",
    f"[link](javascript&colon;{RUN})",
    f"[link](<javascript:{RUN}>)",
    f"[link](vbscript:{RUN})",
    f"[link](data:text/html,<script>{RUN}</script>)",
    f"[link][1]\n\n[1]: javascript:{RUN}",
    f'[link](https://page.example "x\\" onmouseover={RUN} ")',
    f'[link](<https://page.example"onmouseover="{RUN}>)',
    f"<javascript:{RUN}>",
    f"<a href='javascript:{RUN}'>link</a>",
    f"<a href=' \x01javascript:{RUN}'>link</a>",
    f"<a href='java\nscript:{RUN}'>link</a>",
    f"<a href='data:text/html,<script>{RUN}</script>'>link</a>",
    f"<a href={FOREIGN}/ping ping={FOREIGN}/ping>link</a>",
    f"<area href='javascript:{RUN}'>",
]
COVERS = [
    f"<a href={FOREIGN} style='position:fixed;inset:0;z-index:99999;display:block;background:red'>fixed</a>",
    "<div style='position:absolute;inset:-2000px;width:9000px;height:9000px;z-index:9'>absolute</div>",
    "<div style='position:relative;top:40px;height:9000px;margin-bottom:-9000px;z-index:9'>relative</div>",
    "<div style='transform:scale(99);width:99px;height:99px'>transformed</div>",
    "<div style='box-shadow:0 0 0 9999px red'>shadow</div>",
]
IMAGES = [
    f"![image]({FOREIGN}/markdown.png?secret)",
    f"![image][2]\n\n[2]: {FOREIGN}/reference.png",
    f"[![image]({FOREIGN}/nested.png)](javascript:{RUN})",
    f"![image](javascript:{RUN})",
    f"![image](data:image/svg+xml,{SVG.replace(' ', '%20')})",
    "![image](//foreign.example/scheme.png)",
    f'![x](x"onerror="{RUN})',
    f"<img src={FOREIGN}/tag.png srcset='{FOREIGN}/set.png 2x' loading=eager>",
    f'<img src="data:image/svg+xml;utf8,{SVG}">',
    f"<picture><source srcset={FOREIGN}/picture.png><img src=x></picture>",
    f"<input type=image src={FOREIGN}/input.png>",
]
CODE = [
    f'```"><img/src=x/onerror={RUN}>\ncode\n```',
    f"```html\n<script>{RUN}</script><img src=x onerror={RUN}>\n```",
    f"`<img src=x onerror={RUN}>`",
    '```mermaid\n%%{init: {"securityLevel": "loose", "htmlLabels": true}}%%\ngraph TD\n'
    'A["<img src=x onerror=window.ran=1>"] --> B\n```',
    f'```mermaid\ngraph TD\nA --> B\nclick A href "javascript:{RUN}"\nclick B call alert(1)\n```',
    f'```mermaid\n%%{{init: {{"themeCSS": "}} body {{background: url({FOREIGN}/m.png)}} .x {{"}}}}%%\n'
    "graph TD\nC --> D\n```",
]
FORMULAS = [
    f"\\(\\href{{javascript:{RUN}}}{{x}}\\)",
    f"\\(\\url{{javascript:{RUN}}}\\)",
    f"\\(\\includegraphics{{{FOREIGN}/latex.png}}\\)",
    f"\\(\\htmlData{{x=y}}{{<img src=x onerror={RUN}>}}\\)",
    f"$$<img src=x onerror={RUN}>$$",
]
ANSWERS = {
    "tags": TAGS,
    "comments": COMMENTS,
    "links": LINKS,
    "images": IMAGES,
    "code": CODE,
    "formulas": FORMULAS,
    "covers": COVERS,
}
NAMES = [f"<img src=x onerror={RUN}>", f"<script>{RUN}</script>"]
MARKUP = "\n".join(
    [f"<img src=x onerror={RUN}>", f"<script>{RUN}</script>", f"[a](javascript:{RUN})", *COVERS[:1]]
)

MESSAGES = "#boxes [data-testid=bot] *, #boxes [data-testid=user] *"

# Elements and attributes of messages that could act by themselves or when they are clicked. The diagrams that
# Gradio draws have a style of their own, whose rules hold for the diagram alone.
ACTIVE = """(MESSAGES) => {
  const found = [];
  for (const e of document.querySelectorAll(`${MESSAGES}, #chats *`)) {
    const name = e.tagName.toLowerCase();
    const diagram = e.closest("svg[id^=mermaid]");
    if (name === "style" && diagram) {
      const reachesOut = (selector) => !selector.trim().startsWith("#" + diagram.id);
      for (const rule of e.sheet.cssRules)
        if (rule.selectorText?.split(",").some(reachesOut)) found.push(rule.cssText);
    } else if (/^(script|iframe|frame|object|embed|style|link|meta|base|template)$/.test(name)) {
      found.push(name);
    }
    for (const { name: attribute, value } of e.attributes) {
      const address = /^(href|xlink:href|action|data|srcdoc|formaction)$/.test(attribute);
      const kind = value.replace(/[\\u0000-\\u0020]/g, "").toLowerCase();
      if (attribute.startsWith("on") || (address && /^(javascript|vbscript|data):/.test(kind)))
        found.push(`${name} ${attribute}=${kind.slice(0, 50)}`);
    }
  }
  return found;
}"""

# Hover, focus and click whatever a message holds, except links that are meant to lead elsewhere.
POKE = """(MESSAGES) => {
  for (const e of document.querySelectorAll(MESSAGES)) {
    for (const type of ["mouseover", "mouseenter", "focus"])
      e.dispatchEvent(new Event(type, { bubbles: true }));
    if (!e.closest("a[href^=http], .code_wrap button"))
      e.dispatchEvent(new MouseEvent("click", { bubbles: true, cancelable: true }));
  }
}"""

# The controls that something else lies over.
COVERED = """() => ["#chat-input", "#send", "#new-chat", "#menu", "#model"].filter((control) => {
  const { x, y, width, height } = document.querySelector(control).getBoundingClientRect();
  return !document.elementFromPoint(x + width / 2, y + height / 2)?.closest(control);
})"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile") / "log"


@pytest.fixture(scope="module")
def api(log: Path) -> Iterator[str]:
    with scripted_api(log) as models:
        yield models.removesuffix("/v1/models")


@pytest.fixture(scope="module")
def page_url(api: str, log: Path) -> Iterator[str]:
    with page_process(log, api, FRONTEND_VISITOR_MESSAGES_PER_MINUTE="100") as url:
        yield url


@contextmanager
def watched(browser: Browser, home: str, *, policy: bool = True) -> Iterator[Visit]:
    """A visit to `home`; its faults are what hostile text did. policy: whether the page's CSP holds."""
    context = browser.new_context(viewport=DESKTOP, bypass_csp=not policy)
    visit = Visit(context.new_page())

    def dismiss(dialog: Dialog) -> None:
        visit.faults.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def abort(route: Route) -> None:
        visit.faults.append(f"requested {route.request.url}")
        route.abort()

    visit.page.on("dialog", dismiss)
    visit.page.on("pageerror", lambda error: visit.faults.append(str(error)))
    context.on("page", lambda page: visit.faults.append(f"opened {page.url}"))
    # Only requests that leave the browser come by here; those that the policy stops do not.
    context.route(lambda url: not url.startswith((home, "blob:", "data:")), abort)
    try:
        visit.page.goto(home)
        expect(visit.page.locator("#model input")).not_to_have_value("", timeout=20_000)
        yield visit
    finally:
        context.close()


@pytest.fixture
def visit(browser: Browser, api: str, page_url: str) -> Iterator[Visit]:
    """A watched visit; afterwards the API behaves again."""
    with watched(browser, page_url) as visit:
        yield visit
    for what, text in (("answer", "Fine."), ("refusal", ""), ("state", ""), ("models", '["model"]')):
        script(api, what, text)


def script(api: str, what: str, text: str) -> None:
    """Give the scripted API another answer, refusal, state or list of models."""
    urllib.request.urlopen(f"{api}/{what}", text.encode(), timeout=5).close()


def assert_nothing_acted(visit: Visit, home: str) -> None:
    visit.page.evaluate(POKE, MESSAGES)
    visit.page.wait_for_timeout(500)  # what was started has happened by then
    assert visit.page.evaluate(ACTIVE, MESSAGES) == []
    assert visit.page.evaluate(COVERED) == []
    assert visit.page.evaluate("[window.ran, location.href]") == [None, home]
    assert visit.faults == []


@pytest.mark.parametrize("kind", ANSWERS)
def test_a_hostile_answer_does_nothing(kind: str, visit: Visit, api: str, page_url: str) -> None:
    script(api, "answer", "\n\n".join([*ANSWERS[kind], "The end."]))
    visit.say("Answer")
    expect(visit.answered(1)).to_contain_text("The end.")
    if kind == "code":  # Gradio draws diagrams later
        expect(visit.page.locator("#chatbot .mermaid svg")).to_have_count(3)
    visit.page.screenshot(path=SCREENSHOTS / f"hostile-{kind}.png")
    assert_nothing_acted(visit, page_url)
    visit.page.reload()
    expect(visit.page.locator("#chatbot .bot-row").first).to_contain_text("The end.", timeout=20_000)
    assert_nothing_acted(visit, page_url)


def test_hostile_questions_titles_and_edits_are_shown_as_they_were_typed(visit: Visit, page_url: str) -> None:
    visit.say(MARKUP)
    visit.answered(1)
    expect(visit.page.locator("#chatbot .user-row")).to_have_text(MARKUP)
    expect(visit.page.locator("#chats label")).to_contain_text("<img src=x onerror=")
    assert_nothing_acted(visit, page_url)
    visit.page.locator("#chatbot [aria-label=Edit]").first.click()
    expect(visit.page.locator(".edit-textarea")).to_have_value(MARKUP)
    visit.page.screenshot(path=SCREENSHOTS / "hostile-question.png")
    assert visit.faults == []


def test_hostile_errors_of_the_api_are_shown_as_text(visit: Visit, api: str, page_url: str) -> None:
    script(api, "refusal", MARKUP)
    visit.say("Refuse this")
    expect(visit.notice).to_contain_text("<script>")
    assert_nothing_acted(visit, page_url)
    script(api, "refusal", "")
    script(api, "state", MARKUP)
    expect(visit.page.locator("#banner")).to_contain_text("<script>", timeout=15_000)
    visit.page.screenshot(path=SCREENSHOTS / "hostile-errors.png")
    assert_nothing_acted(visit, page_url)


def test_hostile_names_of_models_are_shown_as_text(visit: Visit, api: str, page_url: str) -> None:
    script(api, "models", json.dumps(NAMES))
    expect(visit.page.locator("#model input")).to_have_value(NAMES[0], timeout=15_000)
    visit.page.locator("#model input").click()
    expect(visit.page.get_by_role("option", name=NAMES[1])).to_be_visible()
    visit.page.keyboard.press("Escape")
    visit.page.locator("#comparing input").check()
    visit.say("Who are you?")
    visit.answered(1)
    visit.answered(1, "#rival")
    expect(visit.page.locator("#rival .note")).to_contain_text(NAMES[1])
    visit.page.screenshot(path=SCREENSHOTS / "hostile-models.png")
    assert_nothing_acted(visit, page_url)


@pytest.mark.parametrize("ending", ["json", "md"])
def test_a_hostile_file_is_imported_and_does_nothing(
    ending: str, visit: Visit, page_url: str, tmp_path: Path
) -> None:
    answer = "\n\n".join([*TAGS, *LINKS, *IMAGES, *COVERS, "The end."])
    file = tmp_path / f"chat.{ending}"
    if ending == "json":
        entries = [
            {"role": "user", "content": MARKUP, "note": MARKUP},
            {"role": "assistant", "content": answer, "note": MARKUP, "model": MARKUP, "cut": MARKUP},
        ]
        file.write_text(json.dumps({"title": MARKUP, "messages": entries, "rival": entries}))
    else:
        file.write_text(
            f"# {MARKUP}\n\n## You\n<!-- user -->\n{MARKUP}\n\n## x\n<!-- assistant -->\n{answer}\n"
        )
    with visit.page.expect_file_chooser() as chooser:
        visit.menu("#from-file")
    chooser.value.set_files(file)
    expect(visit.page.locator("#chatbot .bot-row").first).to_contain_text("The end.")
    visit.page.screenshot(path=SCREENSHOTS / f"hostile-{ending}.png")
    assert_nothing_acted(visit, page_url)


def test_without_the_pages_policy_these_tests_would_see_a_foreign_image(
    browser: Browser, api: str, page_url: str
) -> None:
    """The tests above can fail: what they watch for is seen where nothing stops it."""
    with watched(browser, page_url, policy=False) as visit:
        script(api, "answer", IMAGES[0])
        visit.say("Answer")
        visit.answered(1)
        visit.page.evaluate(RUN)
        assert visit.faults == [f"requested {FOREIGN}/markdown.png?secret", "dialog: 1"]
    script(api, "answer", "Fine.")
