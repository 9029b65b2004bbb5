"""From a file's tensor names and metadata to its norm sites, for every architecture.

- :mod:`~ggufnorm.formats.naming.names`: what a tensor name says (layer and role);
- :mod:`~ggufnorm.formats.naming.language`: kind and epsilon of a language model's norms;
- :mod:`~ggufnorm.formats.naming.encoders`: the same of a vision or audio encoder's;
- :mod:`~ggufnorm.formats.naming.weightless`: norms that leave no tensor in the file;
- :mod:`~ggufnorm.formats.naming.sites`: all of it together, in execution order.

Names and keys are gguf-py's own (``gguf.constants``); what no file says is taken from
llama.cpp's graphs, and the source file stands beside each such entry.
"""

from __future__ import annotations

from ggufnorm.formats.naming.names import NormName, layer_of, parse_norm_name
from ggufnorm.formats.naming.rules import NormParameters
from ggufnorm.formats.naming.sites import norm_parameters, norm_sites

__all__ = [
    "NormName",
    "NormParameters",
    "layer_of",
    "norm_parameters",
    "norm_sites",
    "parse_norm_name",
]
