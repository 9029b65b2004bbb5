"""``audit``: is the normalization of a converted file right?

- :mod:`~ggufnorm.analysis.audit.subject`: what rules look at;
- :mod:`~ggufnorm.analysis.audit.registry`: what a rule is;
- :mod:`~ggufnorm.analysis.audit.rules`: the rules, one module per family;
- :mod:`~ggufnorm.analysis.audit.run`: a model through the rules;
- :mod:`~ggufnorm.analysis.audit.ignores`: findings that are accepted;
- :mod:`~ggufnorm.analysis.audit.pages`: the rules' documentation.
"""
