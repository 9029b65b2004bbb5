"""What draws the charts. The only room that knows the plotting library."""

from __future__ import annotations

from functools import cache

import vl_convert


@cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    bundle: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return bundle
