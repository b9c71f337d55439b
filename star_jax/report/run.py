"""What a run has left behind: its network, the evaluations of a step, and its metrics."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.parts import require_trusted
from data_pipelines.records.dataset import Split, open_dataset
from star_jax.evaluation.reports import Report, read_record, read_report
from star_jax.network import Network, restore_network
from star_jax.runs import run_files
from star_jax.runs.metrics import read_rows


class Run(NamedTuple):
    """A run and the evaluation that the report is about.

    Attributes:
      workdir: folder of the run.
      network: of the checkpoint.
      split: the tracklets that were evaluated.
      report: the evaluation.
      others: other evaluations of the same step and dataset.
      metrics: the rows of metrics.jsonl, by step.
      record: run.json.
    """

    workdir: epath.Path
    network: Network
    split: Split
    report: Report
    others: list[Report]
    metrics: list[dict[str, float]]
    record: Mapping[str, Any]


def read_run(
    workdir: epath.Path,
    step: int | None,
    dataset_dir: str | None = None,
    trusted: Collection[str] = (),
) -> Run:
    """Reads a run.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; the last one if None.
      dataset_dir: where the evaluated dataset is now; where it was evaluated if None.
      trusted: see `star_jax.load_weights`.

    Raises:
      FileNotFoundError: there is no such checkpoint, no evaluation of it, or no dataset.
      InputError: a file is damaged or of another version, the dataset is not the one that was
        evaluated, or a file names a component of a package that is not trusted.
    """
    if (workdir / "checkpoints").is_dir():  # restoring takes longer, and has an error for it
        _require(read_reports(workdir, trusted), workdir, step)
    network = restore_network(workdir, step, trusted=trusted)
    reports = _require(read_reports(workdir, trusted), workdir, network.step)
    given = open_dataset(dataset_dir) if dataset_dir else None
    main, others = choose(reports, network.config, given.fingerprint if given else "")
    dataset = given or open_dataset(main["dataset"]["dir"])
    found, expected = dataset.fingerprint, main["dataset"]["fingerprint"]
    if found != expected:
        found_at = dataset.address
        raise InputError(
            f"{found_at}: not the dataset that was evaluated (fingerprint {found[:8]}, not "
            f"{expected[:8]}); pass that one with --dataset_dir, or evaluate this one with "
            f"launch/eval.py --workdir={workdir} --dataset_dir={found_at}"
        )
    return Run(
        workdir=workdir,
        network=network.with_config(
            **{
                "eval.protocol": main["protocol"],
                "eval.clips": main["clips"],
                "eval.flip": bool(main["options"].get("flip", False)),
            }
        ),
        split=dataset.split(main["split"]),
        report=main,
        others=others,
        metrics=read_rows(workdir / "metrics.jsonl"),
        record=read_record(workdir),
    )


def read_reports(workdir: epath.Path, trusted: Collection[str] = ()) -> list[Report]:
    """Returns the evaluations of a run, in order of their files' names.

    Raises:
      FileNotFoundError: there are none.
      InputError: a file is damaged or of another version, or names a protocol of a package that is
        not trusted.
    """
    reports = []
    for path in run_files.report_paths(workdir):
        reports.append(read_report(path))
        require_trusted(reports[-1]["protocol"], f"{path}: protocol", trusted)
    return reports


def _require(reports: list[Report], workdir: epath.Path, step: int | None) -> list[Report]:
    """Returns the evaluations of a step; raises a FileNotFoundError if none is a plain one."""
    own = [report for report in reports if step in (None, report["step"])]
    if own and not any(map(is_plain, own)):
        raise FileNotFoundError(
            f"{workdir}: all evaluations have options ({', '.join(sorted(own[0]['options']))}) or "
            f"are of another split than test; run launch/eval.py --workdir={workdir} without any"
        )
    if not own:
        found = ", ".join(map(str, sorted({report["step"] for report in reports})))
        raise FileNotFoundError(
            f"{workdir}: no evaluation of step {step} (there are: {found}); run launch/eval.py "
            f"--checkpoint={workdir / 'checkpoints' / str(step)} first"
        )
    return own


def is_plain(report: Report) -> bool:
    """Returns whether an evaluation is one that the report computes again for its figures."""
    return report["split"] == "test" and set(report["options"]) <= {"flip"}


def choose(reports: list[Report], config: Any, dataset: str = "") -> tuple[Report, list[Report]]:
    """Returns the evaluation that a report is about, and the others of the same dataset.

    It is the one without options, on a dataset if one is given, and else as the config has it.

    Args:
      reports: of one step; at least one that `is_plain`.
      config: the experiment.
      dataset: fingerprint of a dataset; "" if any will do.
    """

    def distance(report: Report) -> tuple[bool, ...]:
        return (
            bool(dataset) and report["dataset"]["fingerprint"] != dataset,
            bool(report["options"]),
            report["protocol"] != config.eval.protocol,
            report["clips"] != config.eval.clips,
            report["dataset"]["dir"] != config.data.dir,
        )

    main = min(filter(is_plain, reports), key=distance)
    fingerprints = main["dataset"]["fingerprint"]
    others = [
        report
        for report in reports
        if report is not main and report["dataset"]["fingerprint"] == fingerprints
    ]
    return main, others


def name_of_run(workdir: epath.Path) -> str:
    """Returns the name of a run, that of its folder."""
    return workdir.name or str(workdir)


def name_of_dataset(dataset_dir: str) -> str:
    """Returns name and version of a packed dataset, the last two folders of its path."""
    return "/".join(epath.Path(dataset_dir).parts[-2:])
