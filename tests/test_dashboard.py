"""The published dashboard in headless Chromium: ``pytest -m dashboard``.

Needs the extra dev, and Chromium with its driver.
"""

import functools
import http.server
import json
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest
from cases import TESTS, python

pytestmark = pytest.mark.dashboard

ASV = pathlib.Path(TESTS).parent / "asv_bench"
DISCOVER = """
import json, sys
from asv_runner.discovery import disc_benchmarks
sys.path.insert(0, sys.argv[1])
print(json.dumps([benchmark.name for benchmark in disc_benchmarks("benchmarks")]))
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def benchmarks():
    """The names of the suite's benchmarks, as asv finds them."""
    return set(json.loads(python("-c", DISCOVER, str(ASV))))


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    html = tmp_path_factory.mktemp("dashboard") / "html"
    subprocess.run([sys.executable, ASV / "publish.py", "--html-dir", html], check=True)
    return html


@pytest.fixture(scope="module")
def address(published):
    handler = functools.partial(Quiet, directory=published)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def browser():
    from selenium import webdriver

    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if None in programs:
        pytest.fail("no chromium or no chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in (
        "--headless=new",
        "--no-sandbox",  # which root cannot have
        "--disable-dev-shm-usage",
        "--window-size=1400,1000",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # no other site is reached
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(programs[1])
    with webdriver.Chrome(options=options, service=service) as driver:
        yield driver


@pytest.fixture
def visit(browser, address):
    """Open a page of the dashboard and wait for what a script returns; no error may be logged."""
    from selenium.webdriver.support.wait import WebDriverWait

    def visit(page, script):
        browser.get("about:blank")
        browser.get(f"{address}#{page}")
        return WebDriverWait(browser, 30).until(lambda _: browser.execute_script(script))

    yield visit
    errors = [
        entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"
    ]
    assert not errors, "\n".join(errors)


def with_results(published):
    """The names of the benchmarks whose results are published."""
    summaries = (published / "graphs" / "summary").glob("*.json")
    return {path.stem for path in summaries if json.loads(path.read_text())}


def test_the_grid_shows_every_benchmark(visit, benchmarks):
    tiles = visit(
        "/",
        "return $('.benchmark-group a').toArray().map(a => a.getAttribute('href').slice(1))",
    )
    assert sorted(tiles) == sorted(benchmarks), (
        "asv_bench/results/benchmarks.json is not of this suite: run make bench and commit it"
    )


def test_the_list_shows_every_benchmark_that_has_results(visit, published):
    names = visit(
        "/summarylist",
        """
        return $('#summarylist-body td:first-child a:first-child').toArray()
            .map(a => a.textContent.split('(')[0]);
        """,
    )
    assert set(names) == with_results(published)


def test_the_kept_results_are_of_commits_that_the_checkout_has(published):
    assert with_results(published), "no result is of a commit in this checkout's history"


@pytest.mark.parametrize(
    "name",
    [
        "accuracy.softmax.track_worst_ulp",
        "bandwidth.softmax.track_copies",
        "memory.softmax.peakmem_call",
        "overhead.timeraw_import",
        "ratios.softmax.track_ratio",
        "threads.softmax.track_scaling",
        "times.softmax.time_call",
    ],
)
def test_a_graph_is_drawn(visit, name):
    points, colours = visit(
        name,
        """
        const plot = $('#main-graph').data('plot');
        if (!plot) return null;
        const canvas = plot.getCanvas();
        const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
        const points = plot.getData().flatMap(series => series.data.map(point => point[1]));
        return [points, new Set(new Uint32Array(pixels.data.buffer)).size];
        """,
    )
    drawn = [point for point in points if point is not None]  # None: skipped
    assert drawn
    assert min(drawn) >= 0
    assert colours > 2, "the canvas is blank but for its frame"


def test_the_page_of_regressions_opens(visit):
    assert visit("/regressions", "return $('#regressions-body').children().length")
