"""``audit``: is the normalization of a converted file right?

- :mod:`~ggufnorm.auditing.subject`: what rules look at;
- :mod:`~ggufnorm.auditing.registry`: what a rule is;
- :mod:`~ggufnorm.auditing.rules`: the rules, one module per family;
- :mod:`~ggufnorm.auditing.run`: a model through the rules;
- :mod:`~ggufnorm.auditing.ignores`: findings that are accepted;
- :mod:`~ggufnorm.auditing.pages`: the rules' documentation.
"""
