"""Speed of the page: `python -m tests.editor.speed` prints a table. Requires Chromium and playwright."""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from oxe_curate.editor.catalogue import Catalogue
from tests.editor.conftest import start

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
_WATCH = """() => {
  const all = [...document.querySelectorAll('tbody .share input:not(:disabled)')];
  const share = all.toSorted((a, b) => parseFloat(b.value) - parseFloat(a.value))[0];  // the largest: it is seen to move
  const slider = share.closest('tr').querySelector('input[type=range]');
  slider.focus();
  const text = document.querySelector('.text').shadowRoot.querySelector('.cm-content');
  window.took = {text: [], share: []};
  let at = 0;
  slider.addEventListener('input', () => (at = performance.now()), true);
  new MutationObserver(() => at && took.text.push(performance.now() - at)).observe(text, {subtree: true, childList: true, characterData: true});
  let last = share.value;
  (function poll() { if (share.value !== last) { took.share.push(performance.now() - at); last = share.value; } requestAnimationFrame(poll); })();
}"""  # noqa: E501


def main() -> None:
    """Print the median and 95th percentile of opening the page and of moving a slider, at several sizes."""
    catalogue = Catalogue(None)
    names = [fact["name"] for fact in catalogue.facts.values()]
    print("rows  open (s)  slider -> text, median / p95 (ms)  slider -> shares, median / p95 (ms)")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for rows in (10, 57, len(names)):
            path = Path(folder) / f"{rows}.yaml"
            body = "".join(f"  - name: {name}  # a comment\n    weight: 1.0\n" for name in names[:rows])
            path.write_text(f"name: speed\ndatasets:\n{body}", encoding="utf-8")
            served = start(path, catalogue)
            page = browser.new_page(viewport={"width": 1600, "height": 1000})
            page.goto(served.url)
            page.locator("tbody tr").first.wait_for()
            opened = []
            for _ in range(5):
                began = time.perf_counter()
                page.goto(f"http://127.0.0.1:{served.port}/")
                page.locator("tbody tr").nth(rows - 1).wait_for()
                opened.append(time.perf_counter() - began)
            page.wait_for_timeout(800)
            page.evaluate(_WATCH)
            for _ in range(40):
                page.keyboard.press("ArrowRight")
                page.wait_for_timeout(150)
            took = page.evaluate("took")
            page.close()
            served.stop()
            text, share = (_shown(took[key]) for key in ("text", "share"))
            print(f"{rows:4d}  {statistics.median(opened):8.2f}  {text:>33}  {share:>35}")
        browser.close()


def _shown(values: list[float]) -> str:
    ordered = sorted(values)
    return f"{statistics.median(ordered):.0f} / {ordered[int(0.95 * (len(ordered) - 1))]:.0f}"


if __name__ == "__main__":
    main()
