"""A whole file beside the checkpoint that it was converted from.

- :mod:`~ggufnorm.analysis.audit.source.network`: the network's dimensions, by its config;
- :mod:`~ggufnorm.analysis.audit.source.names`: which source tensors may make which tensor;
- :mod:`~ggufnorm.analysis.audit.source.arrange`: what converters do to a tensor's order;
- :mod:`~ggufnorm.analysis.audit.source.layout`: the values that a tensor should have, row by row;
- :mod:`~ggufnorm.analysis.audit.source.cost`: what a tensor type costs;
- :mod:`~ggufnorm.analysis.audit.source.compare`: a tensor beside its source, streamed;
- :mod:`~ggufnorm.analysis.audit.source.explain`: what explains other values;
- :mod:`~ggufnorm.analysis.audit.source.plan`: all tensors of a file;
- :mod:`~ggufnorm.analysis.audit.source.keys`: all keys of a file.
"""
