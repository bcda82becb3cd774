"""demo.py: the page in a browser shows the answers of predict.py, and only on this machine."""

import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import demo as program
from helpers import REPOSITORY, save_untrained_run
from pipeline.inference import record_features
from pipeline.novelty import Novelty
from pipeline.prediction import load_run, predict_files

CLASSES = ("cat", "dog", "horse")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a run of an untrained model, a known and an unknown image."""
    folder = tmp_path_factory.mktemp("shown")
    save_untrained_run(folder / "run", CLASSES)
    generator = np.random.default_rng(0)
    for name, lightest in (("known", 100), ("other", 255)):
        pixels = generator.integers(0, lightest, (60, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / "notes.txt").write_text("no image")
    save_novelty(folder)
    return folder


def save_novelty(folder):
    """Makes the first image known and the other one unknown to the run."""
    run = load_run(folder / "run", None)
    with record_features(run.model) as features:
        list(predict_files(run, [folder / "known.png", folder / "other.png"]))
    mean = torch.nn.functional.normalize(features[0], dim=1)[0]
    Novelty(mean, torch.zeros(1, len(mean)), 1e-3, 0.05, 20).save(folder / "run" / "unknown_best_val_acc.pt")


@pytest.fixture
def server(place):
    """The program as a subprocess, and the address that it prints."""
    command = [sys.executable, str(REPOSITORY / "src" / "demo.py"), "run", "--no-browser", "--port", "0"]
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.communicate()


def test_the_page_shows_the_answers_of_predict(page, server, place):
    process, address = server
    assert address.startswith("http://127.0.0.1:"), process.stderr.read()
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(address)
    page.get_by_role("heading", name="run, best_val_acc").wait_for()
    run = load_run(place / "run", None)
    [[known, other]] = predict_files(run, [place / "known.png", place / "other.png"])
    for file, answer in (("known.png", known), ("other.png", other)):
        page.locator("#file").set_input_files(place / file)
        first = run.classes[answer.best[0]]
        page.get_by_role("status").get_by_text(first if file == "known.png" else "unknown").wait_for()
        order = sorted(range(3), key=lambda number: -answer.probabilities[number])
        expected = [f"{CLASSES[number]}{answer.probabilities[number]:.1%}" for number in order]
        assert ["".join(text.split()) for text in page.locator(".class").all_text_contents()] == expected
        page.wait_for_function("document.getElementById('heatmap').naturalWidth > 300")
    page.locator("#file").set_input_files(place / "notes.txt")
    page.get_by_text("This file cannot be read: not an image").wait_for()
    assert page.locator(".class").count() == 0
    assert page.locator("#heatmap").is_hidden()
    assert [url for url in requests if not url.startswith((f"{address}/", "data:"))] == []


def test_only_this_machine_is_served(server):
    _, address = server
    port = int(address.rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), 60).close()
    with pytest.raises(ConnectionRefusedError):  # a server on all interfaces would answer
        socket.create_connection(("127.0.0.2", port), 60)


@pytest.mark.parametrize(
    ("port", "message"), [("70000", "--port 70000: must be from 0 to 65535"), ("taken", "name another one, or 0")]
)
def test_an_unusable_port_is_reported_in_one_line(place, monkeypatch, call, port, message):
    monkeypatch.chdir(place)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1]) if port == "taken" else port
        status, _, (line,) = call(program, "run", "--no-browser", "--port", port)
    assert status == 2
    assert line.startswith("error: --port")
    assert message in line
