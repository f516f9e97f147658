"""The comparison with peers, the measurements for a GPU and the speed record: tiny forms, and what comes of records."""

import json
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ssl_zoo.data import ImageFolder
from ssl_zoo.data.arrays import resident
from ssl_zoo.encoders import NarrowResNet
from ssl_zoo.views import ViewSpec
from tests.golden.make import RECIPE, write_images

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
CPU = torch.device("cpu")


@pytest.fixture
def on_one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Twelve small JPEG files."""
    folder = tmp_path_factory.mktemp("photographs") / "imagenet_sample256"
    folder.mkdir()
    for number, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)):
        Image.fromarray(pixels).resize((60, 50 + number)).save(folder / f"{number:02}.JPEG")
    return folder


# Peers

@pytest.fixture
def tiny(benchmarks):
    peers = benchmarks("peers")

    def of(files):
        return peers.Workload([ViewSpec(16, count=2, role="global", jitter=0.8), ViewSpec(8, role="local")], files,
                              lambda: lambda image: [torch.rand(3, side, side) for side in (16, 16, 8)],
                              lambda kind: NarrowResNet(4, stages=2), {"cpu": 4}, {"cpu": 1})
    return of


@pytest.fixture
def sources(photographs):
    """Images as peers take them, and as ours takes them; in files or not."""
    module = ImageFolder(str(photographs))
    module.said = True
    module.setup("validate")
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    return {True: (list(module.train.names), module.train), False: (pixels, resident(pixels))}


@pytest.mark.parametrize("files", [True, False], ids=["files", "in memory"])
def test_every_pipeline_makes_the_same_rows_of_views(files, benchmarks, tiny, sources):
    for name, pipeline in benchmarks("peers").pipelines(tiny(files), *sources[files], 4, 0).items():
        batch = next(iter(pipeline.loader))
        if pipeline.views is None:
            continue                                                   # ours, which its own tests look at
        views = pipeline.views(batch)
        assert [view.shape for view in views] == [(4, 3, 16, 16)] * 2 + [(4, 3, 8, 8)], name
        assert all(view.is_floating_point() and 0 <= view.min() <= view.max() <= 1 for view in views), name
        assert not torch.equal(views[0], views[1]), name


def test_all_pipelines_are_measured_and_the_table_compares_them_with_lightlys(benchmarks, tiny, sources, monkeypatch,
                                                                             tmp_path, capsys):
    peers = benchmarks("peers")
    monkeypatch.setattr(peers, "ALONE", 4)
    monkeypatch.setattr(peers, "RESULTS", tmp_path)
    monkeypatch.setattr(peers, "WORKLOADS", {"tiny, files": tiny(True)})
    found = peers.measure(tiny(True), *sources[True], CPU, rounds=1, workers=0, sample=4)
    assert list(found) == ["lightly", "torchvision v2", "kornia", "ssl_zoo", "limit"]
    assert all(one["end to end, ms"] > 0 and (one["loader, ms"] > 0) == (name != "limit")
               for name, one in found.items())
    figures = {"setting": "tried", "rounds": 1, "views": {"tiny, files": found}}
    peers.show(figures, "peers")
    lines = (tmp_path / "peers.md").read_text().splitlines()
    assert lines[0] == "tried; medians of 1 rounds."
    assert lines[4].startswith("| tiny, files | lightly | ")
    assert [lines[4].split(" | ")[place] for place in (3, 5)] == ["1.0", "1.00"]
    assert Image.open(tmp_path / "peers.png").size == (1800, 800)


def test_a_ratio_is_lightlys_time_over_a_pipelines(benchmarks):
    times = {"lightly": (4.0, 2.0), "ssl_zoo": (2.5, 0.25), "limit": (2.0, 0.0)}
    found = {name: {"end to end, ms": end, "loader, ms": loader} for name, (end, loader) in times.items()}
    rows = dict(benchmarks("peers").compared("2x224, files", found))
    assert rows["ssl_zoo"] == [0.25, 8.0, 400.0, 1.6, 0.8]
    assert rows["limit"] == [None, None, 500.0, 2.0, 1.0]
    assert dict(benchmarks("peers").compared("2x32, in memory", found))["ssl_zoo"][1] is None


def test_the_table_beside_the_record_is_the_records(benchmarks):
    for name in ("peers", "peers_cuda"):
        if (record := RESULTS / f"{name}.json").is_file():
            figures = json.loads(record.read_text())["figures"]
            assert (RESULTS / f"{name}.md").read_text() == benchmarks("peers").table(figures)


# On a GPU

@pytest.fixture
def few_images(benchmarks, monkeypatch, tmp_path, photographs):
    """Small packs in the place of those that the benchmarks read."""
    write_images(tmp_path / "images.npz")
    with tarfile.open(tmp_path / "photographs.tar.gz", "w:gz") as pack:
        pack.add(photographs, photographs.name)
    monkeypatch.setattr(benchmarks("speedrun"), "unpack", lambda folder, count: tmp_path / "images.npz")
    monkeypatch.setattr(benchmarks("gpu"), "data", lambda name: tmp_path / "photographs.tar.gz")
    return ["--data.train_images", "null", "--data.batch_size", "8"]


def test_every_part_for_a_gpu_finds_its_figures_and_one_that_fails_hides_no_other(benchmarks, few_images, monkeypatch,
                                                                                 tmp_path, on_one_thread, capsys):
    gpu, kept = benchmarks("gpu"), []
    views = benchmarks("views")
    monkeypatch.setattr(views, "WORKLOADS", {"tiny": ([ViewSpec(8, count=2)], 2, 32, None)})
    monkeypatch.setattr(views, "training_step", lambda *_: lambda: sum(range(10 ** 5)))      # for a ResNet-50's
    monkeypatch.setattr("ssl_zoo.views.pipeline.compiled", lambda: gpu.importlib.import_module(
        "ssl_zoo.views.pipeline").dense)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.setattr(gpu, "shipped", lambda: {"moco": tmp_path / "recipe.yaml"})
    monkeypatch.setattr(gpu, "one_of_each", lambda device: ["moco"])
    monkeypatch.setattr(gpu, "IMAGES", 64)
    monkeypatch.setitem(gpu.PARTS, "broken", lambda setting: iter([("a", 1), 1 / 0]))
    setting = gpu.Setting(CPU, True, 1e12, tmp_path)
    found = gpu.measure(["broken", "views", "memory", "nvjpeg", "methods"], setting,
                        lambda figures: kept.append(json.dumps(figures)))
    assert found["broken"]["failed"] == "ZeroDivisionError: division by zero"
    assert not [part for part, figures in found.items() if part != "broken" and "failed" in figures], found
    assert found["views"]["tiny"]["boxes and flips equal the CPU's"]
    assert found["views"]["tiny"]["mean difference from the CPU's views, levels"] < 1        # bfloat16's
    assert found["memory"]["256 rows, lightly, NT-Xent"]["time to lightly's"] == 1
    assert not [name for name, value in found["memory"].items() if isinstance(value, str)], found["memory"]
    assert found["nvjpeg"]["mean difference, levels"] < 1
    step = found["methods"]["moco"]
    assert step["batch"] == 8
    assert step["kernels"] > 100
    assert len(kept) > 5                                                   # as they are found, not at the end
    assert "methods | moco | {" in capsys.readouterr().out


def test_the_recipes_for_a_gpu_are_one_of_each_class_in_full_size(benchmarks):
    from ssl_zoo import methods
    names = benchmarks("gpu").one_of_each(torch.device("cuda"))
    assert names[0] == "cifar10/simclr"
    assert len(names) == len(set(methods.__all__))
    assert not [name for name in names if name.endswith("_cpu")]


@pytest.mark.parametrize(("words", "sentence"), [
    (["viws"], "there is no part viws; there are views, memory, nvjpeg, methods, cifar10"),
    ([], "there is no GPU here: --device cpu --short tries the parts without one")])
def test_what_cannot_be_measured_is_one_sentence(words, sentence, benchmarks, monkeypatch, capsys):
    if torch.cuda.is_available() and not words:
        pytest.skip("there is a GPU")
    monkeypatch.setattr(sys, "argv", ["gpu.py", *words])
    with pytest.raises(SystemExit):
        benchmarks("gpu").main()
    assert sentence in capsys.readouterr().err


# The speed record

def test_a_run_of_the_record_is_timed_without_its_evaluation_and_evaluated_once(benchmarks, few_images, monkeypatch,
                                                                              tmp_path, on_one_thread, capsys):
    speedrun = benchmarks("speedrun")
    images = [*speedrun.arrays(tmp_path / "images.npz"), *few_images]
    entry, track = speedrun.ENTRIES["simclr_cpu in bfloat16"], speedrun.TRACKS["cpu"]
    monkeypatch.setattr(speedrun, "EVERY", 7)
    found = speedrun.run(entry, 3, images, track, ["--trainer.max_epochs", "2"])
    assert found["seed"] == 3
    assert found["steps"] == 14                                            # 60 images, batches of 8, twice
    assert found["seconds"] > 0
    assert len(found["losses"]) == 2
    assert 0 <= found["knn_instdisc"] <= 1
    assert {"commit", "clean", "machine", "date"} <= set(found)


def test_time_stands_still_while_an_encoder_is_evaluated(benchmarks, monkeypatch):
    timer, now = benchmarks("speedrun").Timer(), iter([10, 13, 50, 55])
    monkeypatch.setattr(benchmarks("speedrun").time, "process_time", lambda: next(now))
    monkeypatch.setattr(benchmarks("speedrun").time, "perf_counter", lambda: 0)
    for happens in (timer.on_train_start, timer.on_validation_start, timer.on_validation_end, timer.on_train_end):
        happens(None, None)
    assert timer.seconds == 3 + 5


def test_a_run_is_added_to_what_another_process_has_recorded_meanwhile(benchmarks, monkeypatch, tmp_path):
    speedrun, recorded = benchmarks("speedrun"), tmp_path / "speedrun.json"
    monkeypatch.setattr(speedrun, "KEPT", recorded)
    monkeypatch.setattr(speedrun, "record", lambda name, figures: recorded.write_text(json.dumps({"figures": figures})))
    entry = speedrun.ENTRIES["simclr_cpu"]
    for seed in (1, 0):
        speedrun.keep("simclr_cpu", entry, {"seed": seed})
    assert [run["seed"] for run in speedrun.kept()["entries"]["simclr_cpu"]["runs"]] == [0, 1]


def figures(*seconds, knn=0.45):
    made = {"machine": {"cpu": "A", "instructions": ["avx2", "avx512f"], "gpu": None}, "commit": "abc1234",
            "date": "2026-11-30T00:00:00", "steps": 1390, "wall": 99.0}
    return {"track": "cpu", "runs": [{"seed": seed, "knn_instdisc": knn, "linear_cached": 0.5, "seconds": one, **made}
                                     for seed, one in enumerate(seconds)]}


def test_the_records_table_has_the_fastest_first_and_says_who_has_not_reached_the_target(benchmarks):
    tracks = {"cpu": {"images": 10, "targets": {"knn_instdisc": 0.447, "linear_cached": 0.497}}}
    rows = benchmarks("render").race({"tracks": tracks, "entries": {
        "slow": figures(9.0, 10.0, 14.0), "short of it": figures(2.0, 2.0, 2.0, knn=0.446), "new": figures(3.0)}})
    assert [row.split(" | ")[1] for row in rows] == ["short of it", "new", "slow"]
    assert [row.split(" | ")[6] for row in rows] == ["no", "1 of 3 seeds", "yes"]
    assert rows[2] == ("| cpu | slow | 1,390 | 45.0 (45.0 to 45.0) % | 50.0 (50.0 to 50.0) % | 11.0 (9.0 to 14.0) | "
                       "yes | A, avx512f | abc1234 | 2026-11-30 |")


def test_the_page_of_the_record_has_the_targets_and_the_rules_of_the_program(benchmarks):
    page = (ROOT / "docs/speedrun.md").read_text()
    assert benchmarks("render").rules() in page
    for track in benchmarks("speedrun").TRACKS.values():
        assert all(f"{100 * target:.1f}".removesuffix(".0") + " %" in page for target in track.targets.values())


def test_every_entry_names_a_recipe_that_exists_and_a_track(benchmarks):
    from ssl_zoo.cli.recipes import shipped
    for entry in benchmarks("speedrun").ENTRIES.values():
        assert entry.recipe in shipped()
        assert entry.track in benchmarks("speedrun").TRACKS


def test_a_machine_is_named_with_the_instructions_that_its_figures_depend_on(benchmarks, monkeypatch):
    record = benchmarks("record")
    monkeypatch.setattr(record.Path, "read_text", lambda path: "model name\t: A\nflags\t\t: fpu avx2 amx_tile\n")
    monkeypatch.setattr(record.provenance, "provenance", lambda: {
        "date": "", "command": "", "machine": {"cpu": "A"}, "ssl_zoo": {"version": "", "clean": True}, "packages": {}})
    assert record.source()["machine"] == {"cpu": "A", "instructions": ["avx2", "amx_tile"]}
