"""The controller: from readings and traffic to plans, transitions, and the record of why.

`state` keeps what is known of each family.  `plan` makes plans and puts them in force.  `watch` is checked every
second.  `solver` is the process that computes plans.  `baselines` says what was saved.  Imports go from `watch` to
`plan`, and from `plan` and `baselines` to `state`.

Nothing is imported here, because the solver's process needs little of it.
"""
