"""The controller: from readings and traffic to plans, transitions, and the record of why.

Nothing is imported here, since the solver's process needs little of it.
"""
