"""The HTML report in a real browser, from disk: Debian's headless Chromium, which `tools/bootstrap --dev` installs."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from lockstep.trace import TraceWriter
from programs import TINY, lockstep
from runs import run_engine, run_reference
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).parent.parent))

from zoo.models import Models  # noqa: E402
from zoo.mutants import ALL  # noqa: E402
from zoo.play import play, write_trace  # noqa: E402
from zoo.runs import Run, decode, one  # noqa: E402

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
FAULTY = "layer_0_attn_q_rope"
# Ends the data, closes attributes, is an image that fails, turns the direction round, holds a control character.
HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>\"'&amp;\u202e\u2028\x9b2J"


class Page:
    """A report in the browser."""

    def __init__(self, driver: webdriver.Chrome):
        self.driver = driver

    def open(self, path: Path, fragment: str = "", dark: bool = False) -> "Page":
        self.driver.get("about:blank")  # or a new fragment alone would not load the file again
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )
        self.driver.get_log("browser"), self.driver.get_log("performance")
        self.driver.get(path.as_uri() + fragment)
        self.until("return document.documentElement.dataset.ready === 'yes'")
        return self

    def until(self, script: str) -> None:
        WebDriverWait(self.driver, 20).until(lambda driver: driver.execute_script(script))

    def run(self, script: str, *arguments: object):
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.one(selector).text

    def cell(self, point: str):
        return self.one(f'.cell[data-point="{point}"]')

    def press(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def fragment(self) -> str:
        return self.run("return location.hash")

    def facts(self, selector: str) -> dict[str, list[str]]:
        """Cells of a table of figures by the head of their row, with all digits where they have more than are shown."""
        return self.run(
            """return Object.fromEntries([...document.querySelectorAll(arguments[0] + ' .facts tbody tr')].map((row) =>
               [row.cells[0].textContent, [...row.cells].slice(1).map((cell) =>
                 cell.querySelector('.figure')?.title ?? cell.textContent)]))""",
            selector,
        )

    def check(self) -> None:
        """Nothing went wrong, nothing but the file was asked for, nothing foreign ran."""
        assert self.driver.get_log("browser") == []
        sent = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in sent if event["method"] == "Network.requestWillBeSent"]
        assert all(url.startswith(("file:///", "data:", "about:")) for url in urls), urls
        assert sum(url.startswith("file:///") for url in urls) <= 1, urls
        assert self.run("return window.hacked") is None


@pytest.fixture(scope="module")
def page():
    assert CHROMIUM.exists() and DRIVER.exists(), "no Chromium: run `tools/bootstrap --dev`"
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    options.add_argument("--headless=new")
    options.add_argument("--window-size=1280,720")
    options.add_argument("--disable-dev-shm-usage")
    options.add_argument("--disable-background-networking")
    if os.getuid() == 0:
        options.add_argument("--no-sandbox")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    yield Page(driver)
    driver.quit()


def report(command: str, *arguments: object, out: Path, returns: int) -> tuple[Path, dict]:
    """Writes the page and the JSON of one command."""
    html, data = out / "report.html", out / "report.json"
    done = lockstep(command, *arguments, "--html", html, "--json", data)
    assert done.returncode == returns, done.stderr
    assert f"report: {html}" in done.stdout
    return html, json.loads(data.read_text())


@pytest.fixture(scope="module")
def faulty_traces(tmp_path_factory) -> tuple[Path, Path]:
    """A correct run, and one that rotates interleaved pairs in every layer."""
    directory = tmp_path_factory.mktemp("faulty")
    loaded = Models(directory).load("tiny", "f32")
    run = Run("page", one(20) + decode(20, 2))
    mutant = next(mutant for mutant in ALL if mutant.id == "rope-interleaved")
    right = write_trace(directory / "right.trace", play(loaded, run, measure=False))
    return right, write_trace(directory / "wrong.trace", play(loaded, run, mutant, measure=False))


@pytest.fixture(scope="module")
def faulty(faulty_traces, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("faulty-report")
    return report("compare", *faulty_traces, "--model", TINY, out=out, returns=1)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("clean-report")
    reference = run_reference(TINY, out / "py.trace", "--input", "In the beginning God", "--decode", "2")
    candidate = run_engine(TINY, out / "cpp.trace", "--from", reference)
    return report("compare", reference, candidate, "--model", TINY, out=out, returns=0)


def test_a_faulty_run_says_where_and_why(page: Page, faulty) -> None:
    path, result = faulty
    page.open(path)
    found = result["replay"]["candidate"]["findings"]
    assert "DIFFERENT" in page.text("h1") and found[0]["text"] in page.text("h1")
    cards = page.all(".finding")
    assert len(cards) == len(found)
    for card, finding in zip(cards, found, strict=True):
        text = card.text.replace("\n", " ")
        parts = [finding["point"], finding["text"][1:], finding["advice"], finding["next"]["text"]]
        parts += [pattern["text"] for pattern in finding["patterns"]]
        assert [part for part in parts if part not in text] == []
    assert len(page.all(".cell")) == len(result["points"])
    assert page.cell(FAULTY).text == "✗" and "first" in page.cell(FAULTY).get_attribute("class")
    assert len(page.all(".cell.first")) == 1
    failing = {cell.get_attribute("data-point") for cell in page.all(".cell.fails")}
    assert failing == {point["name"] for point in result["points"] if point["fails"]}
    page.check()


def test_a_clean_run_says_so(page: Page, clean) -> None:
    path, result = clean
    page.open(path)
    assert "SAME" in page.text("h1") and "No faulty op" in page.text("#findings")
    assert not page.all(".cell.first") and not page.all(".cell.fails")
    letters = {"EXCELLENT": "E", "GOOD": "G", "ACCEPTABLE": "A", "SIGNIFICANT DIFF": "S"}
    for point in result["points"]:
        expected = "=" if point["bit_identical"] else letters[point["class"]]
        assert page.cell(point["name"]).text[-1] == expected, point["name"]
    assert page.run("return document.querySelector('#tokens .text').textContent").startswith("In the beginning God")
    assert len(page.all(".chip.generated")) == 2 + 1  # and the one of the legend
    page.check()


def test_figures_are_those_of_the_json(page: Page, faulty) -> None:
    path, result = faulty
    point = next(p for p in result["points"] if p["name"] == FAULTY)
    local = next(p for p in result["replay"]["candidate"]["points"] if p["name"] == FAULTY)
    page.open(path, f"#point={FAULTY}")
    shown = page.facts("#tensor")
    same = {"cosine": point["cosine"], "max |c − r|": point["max_abs"], "relative L2": point["relative_l2"]}
    same |= {"SNR": point["snr_db"], "best factor": point["best_scale"]}
    same |= {"worst token": point["worst"]["token_relative_l2"]}
    assert {key: float(shown[key][0]) for key in same} == same
    for key in ("mean", "std", "min", "max"):
        assert [float(x) for x in shown[key]] == [point["reference"][key], point["candidate"][key]]
    assert float(page.facts("#tensor [data-side=candidate]")["worst row"][0]) == local["worst_row"]["error"]
    # The whole object is in the page, too.
    assert page.run("return report") == result
    page.check()


def test_click_opens_the_tensor(page: Page, faulty) -> None:
    path, result = faulty
    page.open(path)
    page.cell(FAULTY).click()
    dialog = page.one("#tensor")
    assert dialog.is_displayed() and page.text("#tensor-title") == FAULTY
    assert "rotates interleaved pairs" in dialog.text and "exact at position 0" in dialog.text
    # The map: rows of tokens by heads, position 0 clean.
    assert page.run("return document.querySelector('canvas.heat').width") > 0
    assert len(page.all("#tensor .tabs button")) == 3 and len(page.all("#tensor .bar")) > 10
    assert "normal curve" in dialog.text
    worst = page.one("td.worst").get_attribute("title")
    point = next(p for p in result["points"] if p["name"] == FAULTY)
    assert f"channel {point['worst']['element']['channel']}:" in worst
    spoken = [float(x) for x in worst.replace(",", "").split() if x[-1].isdigit() and "." in x]
    assert spoken == pytest.approx([point["worst"]["reference"], point["worst"]["candidate"]])
    page.one("canvas.heat").send_keys(Keys.ARROW_UP * 30, Keys.ARROW_LEFT * 9)
    assert page.text("output.readout").startswith("sequence 0, position 0, head 0: ")
    page.press(Keys.ESCAPE)
    assert not dialog.is_displayed()
    page.until("return location.hash === ''")  # what follows on a closed dialog comes a moment later
    page.check()


def test_keyboard(page: Page, faulty) -> None:
    page.open(faulty[0])
    page.run("document.querySelector('.cell[tabindex=\"0\"]').focus()")
    focused = "return document.activeElement.dataset.point"
    assert page.run(focused) == FAULTY
    page.press(Keys.ARROW_DOWN, Keys.ARROW_RIGHT)
    assert page.run(focused) == "layer_1_attn_k_rope"
    assert page.text("#inspector h3") == "layer_1_attn_k_rope"
    page.press(Keys.END, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_DOWN)
    assert page.run(focused) in {"final_norm_output", "logits"}
    page.press(Keys.HOME, Keys.ENTER)
    assert page.text("#tensor-title") == "final_norm_output"
    page.press(Keys.ARROW_RIGHT)
    assert page.text("#tensor-title") == "logits" and page.fragment() == "#point=logits"
    page.press(Keys.ESCAPE)
    assert not page.one("#tensor").is_displayed()
    page.check()


def test_switch_changes_what_is_coloured(page: Page, faulty) -> None:
    page.open(faulty[0])
    behind = page.cell("layer_3_mlp_up_proj")  # wrong because its input is
    assert behind.text == "✓"
    before = behind.value_of_css_property("background-color")
    page.one("input[value=difference]").find_element(By.XPATH, "..").click()
    assert behind.text == "S" and behind.value_of_css_property("background-color") != before
    assert page.fragment() == "#map=difference"
    page.check()


def test_filter(page: Page, faulty) -> None:
    path, result = faulty
    page.open(path)
    page.one("#filter").send_keys("Q_ROPE l2")
    assert [c.get_attribute("data-point") for c in page.all(".cell:not(.dim)")] == ["layer_2_attn_q_rope"]
    assert f"1 of {len(result['points'])} points" in page.text(".tools")
    assert len(page.all("table.points tbody tr")) >= 1
    page.press(Keys.ENTER)
    assert page.text("#tensor-title") == "layer_2_attn_q_rope"
    page.press(Keys.ESCAPE)
    page.one("#filter").clear()
    page.one("#filter").send_keys("faulty")
    assert len(page.all(".cell:not(.dim)")) == result["replay"]["candidate"]["counts"]["faulty"]
    page.one("#filter").send_keys("nothing ( has [this")
    assert not page.all(".cell:not(.dim)")
    page.check()


def test_fragment_keeps_the_view(page: Page, faulty) -> None:
    path, _ = faulty
    page.open(path)
    page.one("#filter").send_keys("k_rope")
    page.one("input[value=difference]").find_element(By.XPATH, "..").click()
    page.cell("layer_1_attn_k_rope").click()
    fragment = page.fragment()
    page.open(path, fragment)
    assert page.text("#tensor-title") == "layer_1_attn_k_rope"
    assert page.one("#filter").get_attribute("value") == "k_rope"
    assert page.one("input[value=difference]").is_selected()
    assert page.fragment() == fragment
    page.open(path, "#point=no_such_point&map=nonsense&find=%00%3Cimg%3E")
    assert not page.one("#tensor").is_displayed()
    page.check()


def test_dark_mode(page: Page, faulty) -> None:
    def luminance(selector: str, what: str) -> float:
        colour = page.one(selector).value_of_css_property(what)
        return sum(float(x) for x in colour[colour.index("(") + 1 : -1].split(",")[:3]) / 3

    for dark in (False, True):
        page.open(faulty[0], dark=dark)
        assert (luminance("body", "background-color") < 128) == dark
        assert (luminance("body", "color") > 128) == dark
        # What is clean blends into the background, what is wrong does not.
        assert (luminance('.cell[data-point="layer_0_mlp_up_proj"]', "background-color") < 128) == dark
        assert (luminance(f'.cell[data-point="{FAULTY}"]', "background-color") > 128) == dark
    page.check()


def test_a_replay_alone(page: Page, faulty_traces, tmp_path) -> None:
    path, result = report("replay", faulty_traces[1], "--model", TINY, out=tmp_path, returns=1)
    page.open(path)
    assert "FAULTY" in page.text("h1") and len(page.all(".cell")) == len(result["points"])
    assert len(page.all(".finding")) == len(result["findings"]) and not page.all("#tokens")
    page.cell(FAULTY).click()
    assert "rotates interleaved pairs" in page.text("#tensor")
    page.check()


def test_without_a_model_it_still_tells(page: Page, faulty_traces, tmp_path) -> None:
    path, result = report("compare", *faulty_traces, out=tmp_path, returns=1)
    page.open(path, f"#point={result['first_failing']}")
    assert page.text("#tensor-title") == result["first_failing"]
    assert page.one("td.worst").is_displayed()
    assert page.text("#tokens .text .chip").startswith("#")
    page.check()


def write_hostile(path: Path, values: np.ndarray, names: list[str]) -> Path:
    with (
        TraceWriter(path, producer=HOSTILE, version=HOSTILE, config={}, points=names) as writer,
        writer.begin_step(np.arange(4), np.arange(4), np.zeros(4, np.int32)) as step,
    ):
        for name in names:
            step.record(name, values)
    return path


def test_hostile_names_are_text(page: Page, tmp_path) -> None:
    names = [HOSTILE, "layer_3_" + HOSTILE, "x" * 3_000]
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    odd = values.copy()
    odd[1] = [np.nan, np.inf, -np.inf, 0, 1, 2]
    reference = write_hostile(tmp_path / "a.trace", values, [*names, HOSTILE + "only here"])
    candidate = write_hostile(tmp_path / "b.trace", odd, names)
    path, result = report("compare", reference, candidate, out=tmp_path, returns=1)
    page.open(path)
    assert {point["name"] for point in result["points"]} == set(names)
    assert page.run("return [...cells.keys()]") == [point["name"] for point in result["points"]]
    assert not page.all("img") and len(page.all("script")) == 2
    body = page.text("body")
    assert "<script>window.hacked" in body and "\\u{202e}" in body and "\\u{009b}" in body
    assert not set("\u202e\u2028\x9b") & set(page.run("return document.body.textContent"))  # the data's are escaped
    # Names as long as a trace can hold them are shortened; the tensor view has them whole.
    assert max(len(word) for word in body.split()) < 200
    for name in names:
        page.run("show({point: arguments[0]})", name)
        title = page.text("#tensor-title")
        assert title == name if name[0] == "x" else "hacked" in title
        assert page.run("return document.documentElement.scrollWidth <= innerWidth")
    assert "NaN" in page.text("#tensor")
    page.check()


@pytest.mark.parametrize("points", ["input_embeddings", "layer_2_mlp_up_proj"])
def test_one_point(page: Page, clean, tmp_path, points: str) -> None:
    traces = [clean[0].parent / name for name in ("py.trace", "cpp.trace")]
    path, _ = report(
        "compare", *traces, "--points", points.removeprefix("layer_2_"), "--layers", "2", out=tmp_path, returns=0
    )
    page.open(path)
    assert len(page.all(".cell")) == 1
    page.all(".cell")[0].click()
    assert page.text("#tensor-title") == points
    page.check()


@pytest.mark.parametrize("where", ["missing/report.html", "folder"])
def test_output_that_cannot_be_written(clean, tmp_path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    traces = [clean[0].parent / name for name in ("py.trace", "cpp.trace")]
    done = lockstep("compare", *traces, "--points", "logits", "--html", tmp_path / where)
    assert done.returncode == 2
    assert str(tmp_path / where) in done.stderr and "cannot be written" in done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["folder"]
