"""Guards: what is looked for in requests and answers, and what is made of what was found.

`compile` makes a check of a catalog's guard, `judge` takes checks to the texts of a body (`texts`), and `window` to a
stream. All of these are pure; `run` and `remote` wait for others.
"""
