"""Browsers for tests, both of Debian: Chromium driven by Playwright, Firefox by Marionette."""

import functools
import os
import shutil
import tempfile
import warnings
from contextlib import contextmanager

import pytest

from secateur.demo.npm import Package, fetch_package
from secateur.errors import SecateurError

AXE = Package(
    "axe-core",
    "4.14.1",
    "sha512-FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ==",
    ("axe.min.js",),
)
CHROMIUM = shutil.which("chromium")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
    # A camera that shows a moving test picture, and may be used.
    "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
]  # fmt: skip

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="needs Chromium: apt-get install chromium"
)
needs_firefox = pytest.mark.skipif(
    FIREFOX is None, reason="needs Firefox: apt-get install firefox-esr"
)


@functools.cache
def _driver():
    from playwright.sync_api import sync_playwright

    return sync_playwright().start()


@functools.cache
def browser():
    """One Chromium for all tests of a process."""
    return _driver().chromium.launch(executable_path=CHROMIUM, args=FLAGS)


def open_page(url, width=1280, height=900, scheme="light", **options):
    """Open a page in a context of its own; requests that fail and errors fail the test."""
    context = browser().new_context(
        viewport={"width": width, "height": height}, color_scheme=scheme, **options
    )
    page = context.new_page()
    page.problems = []
    page.requested = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.on("request", lambda request: page.requested.append(request.url))
    page.goto(url)
    return page


@contextmanager
def firefox():
    """Start Firefox; yield Mozilla's client for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the client's own
        from marionette_driver.marionette import Marionette

        # A log that exists is removed first: never name a device here.
        log = os.path.join(tempfile.mkdtemp(), "gecko.log")
        client = Marionette(bin=FIREFOX, app="fxdesktop", headless=True, gecko_log=log)
        client.start_session()
        try:
            yield client
        finally:
            client.cleanup()


OVERFLOW = """() => {
  const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const out = [];
  if (wide > 0) out.push(`the page is ${wide} pixels wider than the window`);
  const scrolls = (e) => {
    for (let p = e.parentElement; p; p = p.parentElement) {
      if (["auto", "scroll", "hidden", "clip"].includes(getComputedStyle(p).overflowX)) return true;
    }
    return false;
  };
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width > 1 && box.right > document.documentElement.clientWidth + 1 && !scrolls(e)) {
      out.push(`${e.tagName}.${e.className?.baseVal ?? e.className} ends at ${box.right}`);
    }
  }
  return out.slice(0, 5);
}"""

OVERLAPS = """() => {
  // Boxes of pieces of text, which must not lie on each other.
  const boxes = [];
  // What scrolled containers leave of a box.
  const visible = ({ left, right, top, bottom }, element) => {
    for (let p = element; p; p = p.parentElement) {
      if (getComputedStyle(p).overflowX === "visible") continue;
      const own = p.getBoundingClientRect();
      [left, right] = [Math.max(left, own.left), Math.min(right, own.right)];
      [top, bottom] = [Math.max(top, own.top), Math.min(bottom, own.bottom)];
    }
    return { left, right, top, bottom };
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, parent = node.parentElement;
    if (!node.data.trim() || parent.closest("svg, script, style, .sr, [hidden]")) continue;
    if (!parent.checkVisibility({ visibilityProperty: true })) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const rect of range.getClientRects()) {
      const box = visible(rect, parent);
      if (box.right - box.left > 1 && box.bottom - box.top > 1) {
        boxes.push({ box, parent, text: node.data.trim() });
      }
    }
  }
  const out = [];
  const fixed = (e) => e.closest("[data-over]");
  for (let i = 0; i < boxes.length; i++) for (let j = i + 1; j < boxes.length; j++) {
    const [a, b] = [boxes[i], boxes[j]];
    if (a.parent === b.parent || fixed(a.parent) || fixed(b.parent)) continue;
    const x = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
    const y = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
    const height = Math.min(a.box.bottom - a.box.top, b.box.bottom - b.box.top);
    if (x > 1.5 && y > 0.35 * height) {
      out.push(`${a.text.slice(0, 30)} | ${b.text.slice(0, 30)}`);
    }
  }
  return out.slice(0, 5);
}"""


def layout_faults(page):
    """What lies outside the window or on other text, by measured boxes."""
    return page.evaluate(OVERFLOW) + page.evaluate(OVERLAPS)


def accessibility_faults(page):
    """What axe-core objects to, a line each."""
    try:
        (axe,) = fetch_package(AXE)
    except SecateurError as error:
        pytest.skip(f"needs axe-core: {error}")
    page.add_script_tag(content=axe.read_text(encoding="utf-8"))
    violations = page.evaluate("async () => (await axe.run()).violations")
    return [
        f"{violation['id']}: {violation['help']}: {violation['nodes'][0]['html'][:120]}"
        for violation in violations
    ]
