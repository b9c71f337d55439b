"""Opens pages in Chromium, where it is installed, and measures them."""

import html
import pathlib
import re
import shutil
import subprocess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

MEASURE = """
<script>
addEventListener("load", () => {
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument.documentElement;
    frame.title = `${page.scrollWidth} of ${page.clientWidth}`;
  }
});
</script>
"""


def look_at(page: bytes, folder: pathlib.Path) -> tuple[list[tuple[int, ...]], list[str]]:
    """Opens a page in windows of 390 and 1400 pixels.

    Returns:
      The widths of content and window of both, and what the browser's console printed.
    """
    frame = '<iframe style="border: 0" width="{}" height="900" srcdoc="{}"></iframe>'
    frames = [frame.format(width, html.escape(page.decode())) for width in (390, 1400)]
    path = folder / "windows.html"
    path.write_text(f'<!DOCTYPE html><meta charset="utf-8">{"".join(frames)}{MEASURE}')
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    options += ["--enable-logging=stderr", f"--user-data-dir={folder / 'chromium'}", "--dump-dom"]
    result = subprocess.run(
        [CHROMIUM, *options, path],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    widths = [
        tuple(map(int, found)) for found in re.findall(r'title="(\d+) of (\d+)"', result.stdout)
    ]
    return widths, re.findall(r"CONSOLE.*", result.stderr)
