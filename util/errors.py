"""The one exception a user is meant to read."""


class UserError(Exception):
    """Something the user can put right: bad input, a wrong key, a missing file.

    The message is one sentence or two: it names the file (or the key), says what is wrong and what to do. Command
    lines print it without a traceback and leave with a non-zero exit status.
    """
