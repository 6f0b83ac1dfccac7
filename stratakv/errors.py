"""The one exception that a user can mend: a line of text, shown without a traceback, exit code 2."""


class UserError(ValueError):
    """A mistake in what the user gave. The message says what was given, what is allowed, what to do."""
