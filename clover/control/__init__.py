"""The controller: from readings and traffic to plans, transitions, and the record of why.

`state` is what is known of each family, `plan` makes plans and puts them in force, `watch` is what is checked at each
look, `solver` is the process that computes plans, `baselines` what was saved.  Imports go from `watch` to `plan` and
from `plan` and `baselines` to `state`.

Nothing is imported here, since the solver's process needs little of it.
"""
