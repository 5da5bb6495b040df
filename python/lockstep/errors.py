"""The one exception type of the package."""


class LockstepError(Exception):
    """Bad input or a failed write. The text names the thing, what was expected, what was found and the way out."""
