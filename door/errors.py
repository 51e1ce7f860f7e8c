"""What a client is told when it cannot be served: OpenAI's shape, vLLM's words where clients match them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

_TYPES = {
    400: "BadRequestError",
    404: "NotFoundError",
    405: "MethodNotAllowed",
    413: "RequestEntityTooLarge",
    429: "RateLimitError",
    500: "InternalServerError",
    503: "ServiceUnavailableError",
}


class Refused(Exception):
    """A request that is not served. `param`: the field at fault. `retry_s`: when to come again."""

    def __init__(
        self, status: int, message: str, param: str | None = None, retry_s: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:2000]
        self.param = param
        self.retry_s = retry_s

    def body(self) -> dict[str, Any]:
        """The JSON of the error."""
        kind = _TYPES.get(self.status, HTTPStatus(self.status).phrase.replace(" ", ""))
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.status}
        return {"error": error}

    def headers(self) -> dict[str, str]:
        """Headers of the response."""
        return {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}


def too_long(limit: int, prompt: int, asked: int) -> Refused:
    """vLLM's words, which clients match."""
    return Refused(
        400,
        f"This model's maximum context length is {limit} tokens. However, you requested {asked} output"
        f" tokens and your prompt contains {prompt} input tokens, for a total of {prompt + asked} tokens."
        " Please reduce the length of the input prompt or the number of requested output tokens.",
        "input_tokens",
    )
