"""A training run, an evaluation, a report and a search open a dataset once, and embed it once."""

import collections
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
from etils import epath

from data_pipelines.records import dataset as dataset_module
from data_pipelines.records import origin
from star_jax.embedding import embed
from star_jax.evaluation.evaluate import Options, evaluate_checkpoint
from star_jax.report.build import write_report
from star_jax.training import loop

ROOT = Path(__file__).parents[2]


@pytest.fixture
def counted(monkeypatch):
    """Returns how often a dataset was opened, an index was parsed, and a split was embedded."""
    counts = collections.Counter()

    def count(module, name):
        function = getattr(module, name)

        def call(*args, **kwargs):
            counts[name] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    count(origin, "parse_files")
    count(dataset_module, "_read_index")
    count(embed, "embed_clips")
    return counts


@pytest.mark.slow
def test_everything_is_opened_parsed_and_embedded_once(tmp_path, counted):
    packed = tiny.packed_dataset(tmp_path, test=(503, 504))
    workdir = epath.Path(tmp_path / "run")
    config = tiny.baseline(packed)
    config.eval.every_epochs = 1
    config.optim.epochs = 1
    counted.clear()
    loop.train(config, workdir)
    assert counted == {"parse_files": 1, "_read_index": 2, "embed_clips": 1}  # train and test

    counted.clear()
    evaluate_checkpoint(workdir, None)
    assert counted == {"parse_files": 1, "_read_index": 1, "embed_clips": 1}
    assert len(list(workdir.glob("eval/embeddings-*.npz"))) == 1

    counted.clear()  # the same embeddings, ranked in another way
    evaluate_checkpoint(workdir, None, options=Options(rerank=True))
    assert counted == {"parse_files": 1, "_read_index": 1}

    counted.clear()
    write_report(workdir, None)
    assert counted == {"parse_files": 1, "_read_index": 1}

    searched = subprocess.run(
        [
            *(sys.executable, "launch/search.py", f"--workdir={workdir}", f"--source={packed}"),
            f"--output={tmp_path / 'matches'}",
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert f"reusing the embeddings in {workdir}/eval/" in searched.stderr
    assert {path.name for path in (tmp_path / "matches").iterdir()} == {
        "matches.csv",
        "matches.html",
    }
