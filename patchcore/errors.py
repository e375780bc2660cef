"""The one exception a user can cause."""


class InputError(ValueError):
    """Bad input: the message names the file, key or value and says what to do.

    Commands print it as a single line and exit with code 1; anything else is a bug and keeps its
    traceback.
    """
