"""Keeps ``python -m ggufnorm`` from importing what lies in the current folder.

``-m`` puts that folder in front of ``sys.path``, so a ``numpy.py`` in a downloaded repository
would run. The package imports this module before any other; what runpy itself imports was
imported before. Child processes are started with ``-c``, and so are
covered too.
"""

import os
import sys


# os.path and not pathlib (PTH): nothing may be imported while the folder is on the path.
def leave_current_folder() -> None:
    """Take the current folder off ``sys.path``, unless ggufnorm itself comes from there."""
    # While runpy looks for the module, argv is "-m" and what stands behind the module's name.
    if sys.argv[:1] != ["-m"] or getattr(sys.flags, "safe_path", False) or sys.flags.isolated:
        return
    module = sys.orig_argv[-len(sys.argv)].rpartition("-m")[2]
    if module.partition(".")[0] != "ggufnorm":
        return
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120
    first = os.path.abspath(sys.path[0])  # noqa: PTH100
    if first == os.getcwd() and os.path.realpath(first) != os.path.realpath(ours):  # noqa: PTH109
        del sys.path[0]


leave_current_folder()
