"""The whole report of a tiny network: its files, its page in a browser, and its errors."""

import json
import re
import shutil

import numpy as np
import pytest
import tiny
from browser import CHROMIUM, look_at
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset
from data_pipelines.skeletons.corruption import parse
from star_jax.evaluation.evaluate import Options, evaluate_checkpoint
from star_jax.network import restore_network
from star_jax.report import analysis
from star_jax.report.build import write_report
from star_jax.report.run import choose


def save_run(workdir, dataset, **model):
    """Saves random weights of a tiny network as step 12 of a run, and a few metrics."""
    config = tiny.config(dataset)
    config.model.update(model)
    tiny.saved_run(workdir, config, step=12)
    rows = [{"step": step, "loss/total": 3.0 / step, "i2v/map": 20.0 + step} for step in (1, 6, 12)]
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return epath.Path(workdir)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def unevaluated(tmp_path_factory, dataset):
    """Returns the run of a network without skeletons, which compiles faster."""
    return save_run(tmp_path_factory.mktemp("run"), dataset, guidance="none", pooling="gem")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed (apt install chromium)")
def test_a_browser_shows_the_page_without_errors_and_overflow(tmp_path, dataset):
    workdir = save_run(tmp_path / "a run", dataset)
    plain, _ = evaluate_checkpoint(workdir, None)
    corrupted, path = evaluate_checkpoint(
        workdir, None, options=Options(corruption=parse("swap_people"))
    )
    assert corrupted["options"] == {"corrupt": "swap_people"} and corrupted["i2v"] != plain["i2v"]
    assert path.exists() and path.name.split("-")[3:-1] == ["first", "corrupt_swap_people"]
    path, folder = write_report(workdir, None, command="python launch/report.py")
    page = path.read_bytes()
    widths, console = look_at(page, tmp_path)
    assert len(widths) == 2 and not console
    assert [window for _, window in widths] == [390, 1400]
    assert all(content <= window for content, window in widths), widths
    assert (path, folder) == (workdir / "report.html", workdir / "report")
    names = {path.stem for path in folder.iterdir()}
    assert {"cmc", "joints", "map", "pooling_weights", "ranked_i2v", "training_loss_total"} <= names
    assert {"evaluated_map", "attention_joints", "cameras_i2v"} <= {
        n.removeprefix("training_") for n in names
    }
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.iterdir())

    network = restore_network(workdir, None)
    split = open_dataset(dataset).split("test")
    details = analysis.read_details(network, split, np.arange(len(split)))
    np.testing.assert_allclose(details.powers.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(details.favorites.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(details.to_features.sum(2), 1, rtol=1e-5)
    assert details.hidden.shape[:2] == (len(split), 17)

    # Every run of the command gives the same page, but for its date.
    write_report(workdir, 12, output=tmp_path / "again.html", command="python launch/report.py")
    dated = rb"\d{4}-\d\d-\d\d \d\d:\d\d"
    again = (tmp_path / "again.html").read_bytes()
    assert re.sub(dated, b"", again) == re.sub(dated, b"", page)


def test_a_browser_would_notice_errors_and_overflow(tmp_path):
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed (apt install chromium)")
    page = (
        b'<!DOCTYPE html><div style="width: 600px">wide</div><script>console.error("oh")</script>'
    )
    widths, console = look_at(page, tmp_path)
    assert widths == [(608, 390), (1400, 1400)]
    assert len(console) == 2 and "oh" in console[0]


@pytest.mark.slow
def test_what_is_missing_is_named(tmp_path, dataset, unevaluated):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        write_report(epath.Path(tmp_path), None)
    with pytest.raises(
        FileNotFoundError, match=r"has no evaluation; run launch/eval.py --workdir="
    ):
        write_report(unevaluated, None)


@pytest.mark.slow
def test_only_evaluations_with_options_are_not_enough(unevaluated):
    evaluate_checkpoint(unevaluated, None, options=Options(rerank=True))
    with pytest.raises(FileNotFoundError, match=r"all evaluations have options \(rerank\) or"):
        write_report(unevaluated, None)
    shutil.rmtree(unevaluated / "eval")


@pytest.mark.slow
def test_another_dataset_than_was_evaluated_is_refused(tmp_path, unevaluated, dataset):
    evaluate_checkpoint(unevaluated, None)
    other = tiny.packed_dataset(tmp_path, test=(601, 602, 603, 604))
    with pytest.raises(ValueError, match=r"not the dataset that was evaluated .*--dataset_dir"):
        write_report(unevaluated, None, dataset_dir=str(other))
    with pytest.raises(FileNotFoundError, match=r"nowhere: not a packed dataset"):
        write_report(unevaluated, None, dataset_dir=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no evaluation of step 5 \(there are: 12\)"):
        write_report(unevaluated, 5)
    path, folder = write_report(unevaluated, None, output=tmp_path / "page.html")
    text = path.read_text()
    assert text.count("The network uses no skeletons") == 2
    assert "synthetic people" not in text
    assert folder == tmp_path / "page" and (folder / "cmc.png").is_file()
    (old,) = (unevaluated / "eval").glob("*.json")
    report = json.loads(old.read_text())
    report["dataset"]["synthetic"] = True
    old.write_text(json.dumps(report))
    path, _ = write_report(unevaluated, None, output=tmp_path / "page.html")
    dataset_fact = re.search(r"<dt>Dataset</dt><dd>(.*?)</dd>", path.read_text())[1]
    assert "synthetic people" in dataset_fact
    del report["i2v"]["intervals"]
    old.write_text(json.dumps(report))
    with pytest.raises(InputError, match=rf"{old.name}.*i2v.intervals is missing"):
        write_report(unevaluated, None)


def test_the_evaluation_of_the_config_is_chosen():
    config = tiny.config("data")

    def report(dataset="a", clips="first", protocol=config.eval.protocol, **options):
        facts = {"dir": "elsewhere", "fingerprint": dataset}
        return dict(dataset=facts, clips=clips, protocol=protocol, options=options, split="test")

    plain = report()
    reports = [report(corrupt="drop:0.3"), report(clips="dense"), plain, report("b"), report()]
    main, others = choose(reports, config)
    assert main is plain and others == [reports[0], reports[1], reports[4]]
    assert choose(reports, config, "b")[0] is reports[3]
    held_out = report() | {"split": "validation"}
    assert choose([held_out, reports[1]], config)[0] is reports[1]
