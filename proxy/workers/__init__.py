"""Several worker processes under one parent, each with a loop, a socket and an app of its own."""


class StartError(Exception):
    """Somebody has to act before this program can serve; the text is for people."""
