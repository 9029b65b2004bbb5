"""Every key that changes what a model computes, beside what the source's configs say.

- :mod:`~ggufnorm.analysis.audit.source.keys.facts`: what a key should be;
- :mod:`~ggufnorm.analysis.audit.source.keys.network`: keys of the forward pass;
- :mod:`~ggufnorm.analysis.audit.source.keys.rope`: of rotary positions;
- :mod:`~ggufnorm.analysis.audit.source.keys.encoders`: of encoders of pictures and sounds;
- :mod:`~ggufnorm.analysis.audit.source.keys.tokens`: of the tokenizer and the template;
- :mod:`~ggufnorm.analysis.audit.source.keys.vocabulary`: tokens and merges.
"""
