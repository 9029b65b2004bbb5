"""The HTML reports in a real browser: ``make browser``.

    python -m tests.browser [FOLDER] [FILE.html ...]

Every kind of report, at a phone's and a desktop's width, light and dark: nothing is fetched,
nothing is reported on the console, all charts and pictures are drawn, hovering tells what is
under the mouse, and names that are HTML and script are shown as they are written. With FOLDER
screenshots go there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ggufnorm.report.formats import save
from tests.chromium import Tab
from tests.results import HOSTILE, drift_report, one_of_each

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")

_DRAWN = "[...document.querySelectorAll('.chart')].every(c => c.querySelector('svg'))"
_HOVERED = "document.querySelector('#vg-tooltip-element.visible')?.innerText || ''"
_INTRUDERS = (
    "document.querySelectorAll("
    "'img:not(figure > img), main script, #vg-tooltip-element script').length"
)
_PICTURES = "[...document.images].map(i => i.alt && i.complete && i.naturalWidth > 0)"
_MARKS = "'path[aria-roledescription]'"


def main() -> None:
    shots = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    given = [Path(name) for name in sys.argv[2:]]
    with tempfile.TemporaryDirectory() as name, Tab() as tab:
        pages = given or _pages(Path(name))
        for page in pages:
            for width in WIDTHS:
                for scheme in SCHEMES:
                    tab.open(page, width, scheme)
                    found = _check(tab, page.stem, width)
                    print(f"{page.stem:14} {width:5} {scheme:6} {found}")
                    if shots is not None:
                        tab.script("scrollTo(0, 0)")
                        tab.point_at(1, 1)
                        shot = shots / f"{page.stem}-{width}-{scheme}.png"
                        tab.screenshot(shot, whole=True)


def _pages(folder: Path) -> list[Path]:
    """A report of every kind with hostile names, and a drift report of 80 layers."""
    results = {kind.partition("/")[2]: r for kind, r in one_of_each(HOSTILE).items()}
    results["80-layers"] = drift_report(80, name=HOSTILE, faulty=True)
    for name, result in results.items():
        save(result, folder / f"{name}.html")
    return [folder / f"{name}.html" for name in results]


def _check(tab: Tab, name: str, width: int) -> str:
    tab.wait(lambda: tab.script(_DRAWN), f"charts of {name}")
    charts = tab.script("document.querySelectorAll('.chart').length")
    hovered = sum(_hover(tab, i) for i in range(charts))
    assert hovered == charts, f"{name}: {hovered} of {charts} charts tell what is hovered"
    _switch(tab, name)
    pictures = tab.script(_PICTURES)
    assert all(pictures), f"{name}: {pictures.count(False)} pictures are not shown"
    wide = tab.script("document.documentElement.scrollWidth")
    assert wide <= width, f"{name}: {wide} pixels wide in a window of {width}"
    assert tab.script("document.title") != "owned", f"{name}: a name was run as script"
    assert tab.script(_INTRUDERS) == 0, f"{name}: a name became an element"
    assert not tab.errors, f"{name}: {tab.errors}"
    assert all(u.startswith(("file:", "data:")) for u in tab.requests), tab.requests
    return f"{charts} charts, each hovered; {len(pictures)} pictures"


def _switch(tab: Tab, name: str) -> None:
    """The heat map's other choice draws another picture."""
    if not tab.script("document.querySelectorAll('input[type=radio]').length"):
        return
    heat = "document.querySelector('[id^=heat] svg').innerHTML"
    before = tab.script(heat)
    tab.script("document.querySelectorAll('input[type=radio]')[1].click()")
    tab.wait(lambda: tab.script(heat) != before, f"other heat map of {name}")


def _hover(tab: Tab, chart: int) -> bool:
    """Whether pointing at a mark of a chart tells of it."""
    tab.script(f"document.querySelectorAll('.chart')[{chart}].scrollIntoView({{block: 'center'}})")
    place = tab.script(
        f"""(() => {{
          const marks = document.querySelectorAll('.chart')[{chart}].querySelectorAll({_MARKS});
          for (const mark of [...marks].reverse()) {{
            const r = mark.getBoundingClientRect();
            const x = r.x + r.width / 2, y = r.y + r.height / 2;
            if (document.elementFromPoint(x, y) === mark) return [x, y];
          }}
          return null;
        }})()"""
    )
    if place is None:
        return False
    tab.point_at(*place)
    tab.wait(lambda: tab.script(_HOVERED), f"tooltip of chart {chart}")
    told: str = tab.script(_HOVERED)
    assert tab.script(_INTRUDERS) == 0, f"tooltip of chart {chart}: a name became an element"
    tab.point_at(1, 1)
    return any(c.isdigit() for c in told)


if __name__ == "__main__":
    main()
