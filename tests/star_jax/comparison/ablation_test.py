"""Tables and plot of an ablation; tests/launch/ablate_test.py has its command."""

import csv
import io

import pytest
from evaluated import DATASET, write_run

from star_jax.comparison import ablation


def test_one_seed_has_no_intervals_of_differences(tmp_path):
    for shift, name in enumerate(("plain", "star")):
        write_run(tmp_path / name, shift=shift, changes={"eval.protocol": "hitsz_vcm/v1"})
    workdirs = {name: [tmp_path / name] for name in ("plain", "star")}
    found = ablation.compare_variants(workdirs, DATASET)
    table = ablation.markdown(found)
    assert table.count("+1.00 (one seed)") == 2 and "nothing about the methods" in table
    rows = list(csv.DictReader(io.StringIO(ablation.csv(found).decode("utf-8-sig"))))
    row = next(row for row in rows if row["variant"] == "star")
    assert float(row["difference"]) == pytest.approx(1)
    assert row["difference_low"] == row["difference_high"] == "nan"
    assert float(row["low"]) < float(row["mean"]) < float(row["high"])
    assert b"</svg>" in ablation.plot(found)


def test_only_an_evaluation_of_the_dataset_will_do(tmp_path):
    write_run(tmp_path, changes={"eval.protocol": "hitsz_vcm/v1"})
    with pytest.raises(FileNotFoundError, match="98765432"):
        ablation.compare_variants({"plain": [tmp_path]}, "9876543210")
