"""The two kinds of bad news that a person gets as a sentence instead of a traceback."""


class UserError(Exception):
    """Wrong use or something missing: the command stops with exit code 2 and prints this sentence.

    The message says what is wrong, with the path or address, and what to do about it.
    """


class ImageError(ValueError):
    """One picture cannot be read: it becomes one `error` row and the others go on.

    The message is a sentence that says what is wrong and what to do; it leaves out the path, which
    stands beside it wherever it is shown.
    """
