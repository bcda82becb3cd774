"""A finished run is only read; images that came or went since are told of."""

import logging

from PIL import Image

from pipeline.run import run
from pipeline.settings import Settings


def test_a_finished_run_says_whether_its_images_are_still_those(make_folder, tiny_model, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    data, test = make_folder("data", {"A": 6, "B": 6}), make_folder("test", {"A": 2, "B": 2})
    settings = Settings(
        model_type=tiny_model, num_epochs=1, batch_size=4, wandb="disabled", no_cache=True,
        data_dir=data, test_dir=(test,), output_dir=tmp_path / "saved_models",
    )  # fmt: skip
    metrics = run(settings)
    caplog.set_level(logging.INFO)
    for note in ("", ", on other images than are there now"):
        assert run(settings) == metrics
        assert caplog.messages == [f"{settings.run_dir} has finished already{note}; --restart begins anew"]
        caplog.clear()
        Image.new("RGB", (20, 20)).save(test / "A" / "added.png")
