"""Why a request is not answered, each with its HTTP status."""

from __future__ import annotations


class Refused(Exception):
    """A request that gets no answer. `status`: its HTTP status. `retry_after`: seconds until it is worth trying again."""

    status = 400
    kind = "bad_request"

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotFound(Refused):
    """No model of that name."""

    status = 404
    kind = "not_found"


class TooSlow(Refused):
    """A body that does not come."""

    status = 408
    kind = "too_slow"


class TooLong(Refused):
    """A text, a request or a body over a limit."""

    status = 413
    kind = "too_long"


class WrongMedia(Refused):
    """A body of a kind that no route takes."""

    status = 415
    kind = "wrong_media_type"


class Poisonous(Refused):
    """A request on which its workers crashed."""

    status = 422
    kind = "poisonous"


class Overloaded(Refused):
    """As many rows wait as may."""

    status = 429
    kind = "overloaded"


class Unavailable(Refused):
    """The server stops, or no worker lives."""

    status = 503
    kind = "unavailable"


class DeadlinePassed(Refused):
    """The answer would come after the deadline."""

    status = 504
    kind = "deadline"


class WorkerDied(Exception):
    """The process that ran a batch ended before it answered."""
