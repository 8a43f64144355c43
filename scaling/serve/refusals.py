"""Errors in OpenAI's style: an object with a message, a type, the parameter and a code."""


class Refusal(Exception):
    """What a client is told instead of an answer.

    Args:
        message: one sentence.
        status: of HTTP.
        param: the field of the request that is wrong.
        code: for programs.
        kind: of error.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
