"""Makes the table and the plot of docs/scaling.md from reports of compile.py.

python launch/tpu/scaling.py --plot=docs/scaling.svg reports/*.json
"""

import collections
import json
from pathlib import Path
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.io import remote
from launch import command

PLOT = command.define_path("plot", None, "Draw a plot to this file (.svg or .png).")

Report = dict[str, Any]


def main(*paths: str) -> None:
    """Prints the table and draws the plot."""
    if not paths:
        raise InputError("pass the JSON files that launch/tpu/compile.py has written")
    reports = [json.loads(Path(remote.local(path)).read_text(encoding="utf-8")) for path in paths]
    reports.sort(key=lambda report: (generation(report), report["chips"], report["pairs"]))
    print("\n".join(table(reports)))
    if PLOT.value:
        plot(reports, PLOT.value)


def generation(report: Report) -> str:
    """Returns the TPU generation, such as `v5e`."""
    return str(report["topology"]).partition(":")[0]


def table(reports: list[Report]) -> list[str]:
    """Returns the lines of a Markdown table."""
    rows = [
        "| topology | chips | pairs | per chip | GiB per chip | cycles, ms | collectives, ms | "
        "roofline, ms | step, ms | frames/s | MFU |",
        "| --- " * 11 + "|",
    ]
    for report in reports:
        seconds = report["seconds"]
        cycles = "-" if seconds["cycles"] is None else f"{1000 * seconds['cycles']:.1f}"
        share = report["pairs"] / report["chips"]
        rows.append(
            f"| {report['topology']} | {report['chips']} | {report['pairs']} | {share:g} | "
            f"{sum(report['memory'].values()) / 2**30:.1f} of {report['memory_limit'] / 2**30:.0f} "
            f"| {cycles} | {1000 * seconds['transfer']:.1f} | {1000 * seconds['roofline']:.1f} | "
            f"{1000 * seconds['step']:.1f} | {report['frames_per_second']:,.0f} | "
            f"{100 * report['model_flops_utilisation']:.1f} % |"
        )
    return rows


def plot(reports: list[Report], path: str) -> None:
    """Plots frames per second over chips, and where the time of a step goes."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, (speed, parts) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    series = collections.defaultdict(list)
    for report in reports:
        share = report["pairs"] / report["chips"]
        series[f"{generation(report)}, {report['pairs']} pairs"].append(report)
        series[f"{generation(report)}, {share:g} a chip"].append(report)
    for name, members in series.items():
        if len(members) < 2:
            continue
        chips = [report["chips"] for report in members]
        speeds = [report["frames_per_second"] for report in members]
        (line,) = speed.plot(chips, speeds, marker="o", label=name)
        ideal = [speeds[0] * count / chips[0] for count in chips]
        speed.plot(chips, ideal, linestyle=":", color=line.get_color())
    speed.set(xlabel="chips", ylabel="frames/s (estimate)", xscale="log", yscale="log")
    speed.set_title("dotted: proportional to the chips", fontsize="medium")
    counts = sorted({report["chips"] for report in reports})
    speed.set_xticks(counts, labels=map(str, counts))
    speed.tick_params(which="minor", bottom=False, labelbottom=False)
    speed.yaxis.set_major_formatter("{x:,.0f}")
    if speed.lines:
        speed.legend()

    names = [f"{r['topology']}, {r['pairs']} pairs" for r in reports]
    transfer = [1000 * report["seconds"]["transfer"] for report in reports]
    work = [
        1000 * report["seconds"]["step"] - t for report, t in zip(reports, transfer, strict=True)
    ]
    parts.barh(names, work, label="on the chip")
    parts.barh(names, transfer, left=work, label="collectives")
    parts.invert_yaxis()
    parts.set(xlabel="ms per step (estimate)")
    parts.legend()
    plt.rcParams["svg.hashsalt"] = "scaling"  # the same file for the same reports
    figure.savefig(path, metadata={"Date": None} if path.endswith(".svg") else None)


if __name__ == "__main__":
    command.run(main, takes_arguments=True)
