"""Why a request gets no boxes, as its HTTP status and one line."""

CLIENT_LEFT = 499  # for the counters; nobody is there to read it


class RefusedError(Exception):
    """The text reads `what is wrong – what to do`.

    Attributes:
        status: of HTTP.
        retry_after_s: when it is worth another try.
    """

    def __init__(self, status: int, what: str, remedy: str, retry_after_s: int | None = None):
        super().__init__(" ".join(f"{what} – {remedy}".split()))
        self.status, self.retry_after_s = status, retry_after_s
