"""The page in a real browser, opened from disk: no error, no request, every control by keyboard, readable in light, dark and print.

Needs Debian's chromium and chromium-driver and axe-core from npm (MXFP4_AXE names axe.min.js); `.ci/run` installs them and sets
MXFP4_REQUIRE_BROWSER, with which a missing one fails instead of being skipped.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from mxfp4_validate.reporting import html
from mxfp4_validate.reporting.gates import judge
from mxfp4_validate.serving.comparison import CompareOptions
from mxfp4_validate.serving.report import gather
from tests.bench_rig import make_bench
from tests.report_divergence_rig import SOUND, make_record
from tests.report_rig import make_eval, make_kernel, twin

ROOT = Path(__file__).resolve().parent.parent


def required(found: str | None, what: str) -> str:
    if found:
        return found
    if os.environ.get("MXFP4_REQUIRE_BROWSER"):
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing; the browser tests need it")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything in it: a failing kernel, a failing pair, hostile answers, history, a fault matrix, a bench, tokens that diverge."""
    tmp = tmp_path_factory.mktemp("page")
    cases = [twin(f"gpt-oss-20b/m{m}/random/s0", m % 3) for m in (1, 2, 16, 17, 64, 65, 129)]
    cases += [twin("dsv4-flash/m65/random/s0", 900, 4, "failed", "first mismatch at row 3, column 17: candidate 0x3f80, twin 0x3f81")]
    kernels = [make_kernel(tmp / "one.sqlite", cases[:-1]), make_kernel(tmp / "two.sqlite", cases, 1)]
    pair = [make_eval(tmp / "base", "marlin", lambda i: 0.95)]
    pair.append(
        make_eval(tmp / "cand", "flashinfer_mxfp4", lambda i: 0.6, seed=1, text=lambda i, r: "<script>alert(1)</script>" + "W" * 3000)
    )
    matrix = {"backend": "emulate:sm90-cutlass", "checks": ["twin"], "faults": {"F1-x": {"what": "a fault", "caught_by": ["twin"]}}}
    (tmp / "faults.json").write_text(json.dumps(matrix))
    tokens = make_record(tmp / "tokens" / "divergence.sqlite", {**SOUND, "candidate": ("candidate", 0.4)})
    inputs = gather([*kernels, *pair, make_bench(tmp / "bench.sqlite"), tokens], CompareOptions(), tmp / "faults.json")
    out = tmp / "report.html"
    out.write_text(html.render(inputs, judge(inputs)), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = required(shutil.which("chromium"), "chromium")
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = required(shutil.which("chromedriver"), "chromium-driver")
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.get(page.as_uri())
    yield found
    found.quit()


def test_no_error_and_no_request(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    browser.get(page.as_uri())
    assert browser.get_log("browser") == []
    events = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
    asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
    assert set(asked) <= {page.as_uri()}, asked
    assert any(e["method"].startswith("Page.") for e in events), "nothing was logged, so nothing was checked"


def test_the_policy_holds(browser: Any) -> None:
    """A script that gets into the page all the same does not run."""
    ran = "const s = document.createElement('script'); s.textContent = 'window.evil = 1'; document.body.append(s); return window.evil === undefined"
    assert browser.execute_script(ran)
    assert any("Content Security Policy" in row["message"] for row in browser.get_log("browser"))


def test_filter_and_sort(browser: Any) -> None:
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    box = browser.find_elements(By.CSS_SELECTOR, "[data-controls]")[1]
    table = browser.find_element(By.ID, box.get_attribute("data-controls"))

    def shown() -> list[str]:
        return [row.text for row in table.find_elements(By.CSS_SELECTOR, "tbody tr") if row.is_displayed()]

    assert len(shown()) == 8
    text = box.find_element(By.TAG_NAME, "input")
    text.send_keys("dsv4 m65")
    assert len(shown()) == 1
    assert "1 of 8 rows" in box.text
    text.clear()
    text.send_keys(Keys.SPACE)
    box.find_element(By.CSS_SELECTOR, "option[value='failed'], option:last-child").click()
    assert all("failed" in row for row in shown())
    box.find_element(By.CSS_SELECTOR, "option").click()
    head = table.find_elements(By.CSS_SELECTOR, "thead th")[4]
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    differing = [int(row.find_elements(By.TAG_NAME, "td")[4].text) for row in table.find_elements(By.CSS_SELECTOR, "tbody tr")]
    assert differing == sorted(differing)
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element(By.TAG_NAME, "button").send_keys(Keys.ENTER)
    assert head.get_attribute("aria-sort") == "descending"


def test_the_keyboard_reaches_everything(browser: Any, page: Path) -> None:
    """Tab visits every link, fold, field and button that can be seen, and each shows that it has the focus."""
    browser.get(page.as_uri())
    every = "a[href], summary, input, select, button, [tabindex='0']"
    wanted = browser.execute_script(f'return [...document.querySelectorAll("{every}")].filter(e => e.checkVisibility()).length')
    body = browser.find_element(By.TAG_NAME, "body")
    visited, unmarked = set(), []
    for _ in range(wanted + 40):
        browser.switch_to.active_element.send_keys(Keys.TAB) if visited else body.send_keys(Keys.TAB)
        now = browser.switch_to.active_element
        if now.id in visited:
            break
        visited.add(now.id)
        style = "return getComputedStyle(arguments[0]).outlineStyle"
        unmarked += [now.text] if now.tag_name != "body" and browser.execute_script(style, now) == "none" else []
    assert len(visited) >= wanted
    assert unmarked == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_violation(browser: Any, page: Path, scheme: str) -> None:
    """axe-core, contrast included, on the page with everything unfolded."""
    axe = required(os.environ.get("MXFP4_AXE"), "axe-core (MXFP4_AXE)")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.execute_script(Path(axe).read_text(encoding="utf-8"))
    found = browser.execute_async_script("axe.run(document, {resultTypes: ['violations']}).then(arguments[arguments.length - 1])")
    serious = {v["id"]: [n["html"][:120] for n in v["nodes"][:3]] for v in found["violations"] if v["impact"] in ("serious", "critical")}
    assert serious == {}
    assert len(found["passes"]) > 15, "axe looked at nothing"


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pictures(browser: Any, page: Path, scheme: str, width: int, tmp_path: Path) -> None:
    """Nothing sticks out of the page at either width; the two schemes differ. MXFP4_SHOTS keeps the pictures."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False})
    browser.get(page.as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 28)"}[scheme]
    shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
    folder = Path(os.environ.get("MXFP4_SHOTS", tmp_path))
    (folder / f"{scheme}-{width}.png").write_bytes(base64.b64decode(shot["data"]))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_print(browser: Any, page: Path, tmp_path: Path) -> None:
    """On paper everything folded is open, and the controls are gone."""
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    browser.get(page.as_uri())
    hidden = "return [...document.querySelectorAll('nav, .controls')].filter(e => e.checkVisibility()).length"
    assert browser.execute_script(hidden) == 0
    folded = "[...document.querySelectorAll('details > *:not(summary, .controls)')]"
    assert browser.execute_script(f"return {folded}.filter(e => e.getBoundingClientRect().height === 0).length") == 0
    assert browser.execute_script(f"return {folded}.length") > 5
    pdf = browser.execute_cdp_cmd("Page.printToPDF", {"printBackground": True})
    data = base64.b64decode(pdf["data"])
    assert data.startswith(b"%PDF")
    folder = Path(os.environ.get("MXFP4_SHOTS", tmp_path))
    (folder / "print.pdf").write_bytes(data)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
