"""Makes the report of a run: reads it, computes the sections, writes the page and the pictures."""

import os
import time
from collections.abc import Callable, Collection

from etils import epath

from data_pipelines.io.files import write_file
from data_pipelines.io.progress import Progress
from star_jax.embedding.embed import embed_once
from star_jax.evaluation.protocols import rank
from star_jax.evaluation.scores import title_of
from star_jax.report import analysis, sections
from star_jax.report.page import Panels, Section, make_page
from star_jax.report.pictures import open_frames
from star_jax.report.run import Run, name_of_dataset, name_of_run, read_run
from star_jax.runs import run_files

LOOKED_INTO = 400  # tracklets whose attention, pooling and joints are examined
COMPARED = 2000  # tracklets whose distances are shown


def write_report(
    workdir: epath.Path,
    step: int | None,
    *,
    dataset_dir: str | None = None,
    output: str | os.PathLike[str] | None = None,
    command: str = "",
    trusted: Collection[str] = (),
) -> tuple[epath.Path, epath.Path]:
    """Writes the report of a run: a page, and a PNG file of each figure.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; the last one if None.
      dataset_dir: the packed dataset; that which was evaluated if None.
      output: of the page; `<workdir>/report.html` if None. The pictures go to the folder beside it
        that has its name without an ending.
      command: the command line, which the page shows.
      trusted: see `star_jax.load_weights`.

    Returns:
      The page, and the folder of the pictures.

    Raises:
      FileNotFoundError, InputError: as `run.read_run` does.
    """
    run = read_run(workdir, step, dataset_dir, trusted)
    path = epath.Path(output) if output else workdir / "report.html"
    folder = path.parent / path.stem
    found = _write_sections(run, folder, command)
    evaluation = run.report
    dataset = [name_of_dataset(run.split.dataset.address), evaluation["dataset"]["fingerprint"][:8]]
    if evaluation["dataset"].get("synthetic"):
        dataset.insert(1, "synthetic people")
    facts = {
        "Step": f"{run.network.step:,}",
        "Dataset": ", ".join(dataset),
        "Protocol": title_of(evaluation),
        "Trained by": run_files.short_revision(run.record),
        "Evaluated by": run_files.short_revision(evaluation["environment"]),
        "Written": time.strftime("%Y-%m-%d %H:%M"),
    }
    model = run.network.config.model
    subtitle = f"{model.backbone}, guidance {model.guidance}, pooling {model.pooling}"
    write_file(path, make_page(name_of_run(workdir), subtitle, facts, found))
    return path, folder


def _write_sections(run: Run, folder: epath.Path, command: str) -> list[Section]:
    """Returns the sections, and writes their figures to a folder."""
    network, report = run.network, run.report
    index = run.split.index
    embeddings = embed_once(network, run.split, run_files.reports_folder(run.workdir)).vectors
    rankings = rank(report["protocol"], embeddings, index)
    looked_into = analysis.whole_identities(index.identities, LOOKED_INTO)
    compared = analysis.whole_identities(index.identities, COMPARED)
    details = analysis.read_details(network, run.split, looked_into)
    few = index.of(looked_into)
    frames = open_frames(network.config, run.split)
    makers: list[Callable[[], Section]] = [
        lambda: sections.scores(report, run.others, rankings, index),
        lambda: sections.training(run.metrics, network.config),
        lambda: sections.ranked_lists(rankings, index, frames),
        lambda: sections.distances(embeddings[compared], index.of(compared)),
        lambda: sections.embedding_map(embeddings[looked_into], few),
        lambda: sections.pooling(details, few, network.model),
        lambda: sections.attention(details, looked_into, few, frames, network.model),
        lambda: sections.joints(report["protocol"], details, few, len(index.rows)),
        lambda: sections.cameras_and_conditions(report),
        lambda: sections.corruption(report, run.others, str(run.workdir)),
        lambda: sections.origin(
            run_files.as_json(network.config), run.record, report["environment"], command
        ),
    ]
    found = []
    with Progress(len(makers), "rendering", unit="section") as progress:
        for make in makers:
            found.append(make())
            progress.update(len(found))
    blocks = [block for section in found for block in section.blocks]
    for block in blocks:
        for figure in block.figures if isinstance(block, Panels) else ():
            write_file(folder / f"{figure.name}.png", figure.png)
    for direction, ranking in rankings.items():
        picture = sections.ranked_picture(ranking, index, frames)
        write_file(folder / f"ranked_{direction}.png", picture)
    return found
