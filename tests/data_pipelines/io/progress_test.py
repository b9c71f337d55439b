import io

from data_pipelines.io import progress
from data_pipelines.io.progress import Progress


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


def test_plain_lines_now_and_then(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(120, "train", start=100, every_seconds=10, stream=stream) as shown:
        for step in range(101, 121):
            clock.now += 2
            shown.update(step, {"loss": 1 / 3, "map": float(step)})
    lines = stream.getvalue().splitlines()
    assert [line.split()[1] for line in lines] == [f"{s}/120" for s in (101, 106, 111, 116, 120)]
    # Two seconds a step since the start at 100; 14 steps are left after 106.
    assert lines[1] == "train: 106/120 [ 2.00s/step, 00:28 left, loss=0.3333, map=106]"


def test_a_line_without_metrics(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    shown = Progress(8, "embed", stream=stream)
    clock.now += 1
    shown.update(4)
    assert stream.getvalue() == "embed: 4/8 [ 4.00step/s, 00:01 left]\n"


def test_time_of_compilation_is_left_out_of_the_rate(monkeypatch):
    clock, stream = Clock(monkeypatch), io.StringIO()
    with Progress(10, "train", every_seconds=1, stream=stream) as shown:
        for step, seconds in ((1, 60), (2, 2), (3, 2), (4, 90), (5, 2)):  # 1 and 4 compile
            clock.now += seconds
            shown.update(step, timed=seconds < 10)
    assert [line.split("[")[1] for line in stream.getvalue().splitlines()] == [
        "?step/s, ? left]",
        " 2.00s/step, 00:16 left]",
        " 2.00s/step, 00:14 left]",
        " 2.00s/step, 00:12 left]",
        " 2.00s/step, 00:10 left]",
    ]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_time_of_compilation_is_left_out_of_a_bar(monkeypatch):
    clock, stream = Clock(monkeypatch), Terminal()
    shown = Progress(10, "train", stream=stream)
    shown._bar._time = lambda: clock.now
    shown._bar.start_t = shown._bar.last_print_t = clock.now
    for step, seconds in ((1, 60), (2, 2), (3, 2)):
        clock.now += seconds
        shown.update(step, timed=seconds < 10)
    last = stream.getvalue().split("\r")[-1]
    assert "3/10" in last and "2.00s/step" in last


def test_bar_on_a_terminal():
    stream = Terminal()
    with Progress(20, "train", start=10, stream=stream) as shown:
        for step in range(11, 21):
            shown.update(step, {"loss": step / 4})
    last = stream.getvalue().rstrip().split("\r")[-1]
    assert "train" in last and "20/20" in last and "loss=5" in last


def test_stderr_is_the_default(capsys):
    Progress(1, "prepare").update(1)
    captured = capsys.readouterr()
    assert captured.err.startswith("prepare: 1/1 [") and captured.out == ""


def test_only_the_first_process_shows_anything():
    stream = io.StringIO()
    with Progress(2, "train", stream=stream, enabled=False) as shown:
        shown.update(1)
        shown.update(2)
    assert stream.getvalue() == ""


def test_progress_of_an_iterable(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    items = []
    for item in progress.with_progress("abcdef", 6, "packing", unit="files"):
        items.append(item)
        clock.now += 12
    assert items == list("abcdef")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [  # the first, one every 30 seconds, the last
        "packing: 1/6 [12.00s/files, 01:00 left]",
        "packing: 4/6 [12.00s/files, 00:24 left]",
        "packing: 6/6 [12.00s/files, 00:00 left]",
    ]
