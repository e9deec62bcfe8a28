"""Errors in the shape that OpenAI's clients read: `{"error": {message, type, param, code}}`."""

import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coordinator.gateway.ports import Refused

REQUEST_ID_HEADER = "x-request-id"

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_SENTENCES = frozenset({"unsupported_parameter", "unknown_parameter"})
"""Complaints of the schemas that are whole sentences, and name their field."""
_CODES = {404: "unknown_route", 405: "method_not_allowed", 413: "request_too_large"}


def error_body(refused: Refused) -> dict[str, object]:
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": encodable(refused.text),
            "type": _TYPES.get(refused.status, kind),
            "param": encodable(refused.param) or None,
            "code": refused.code,
        }
    }


def encodable(text: str) -> str:
    """JSON may have halves of surrogate pairs, which neither UTF-8 nor pydantic's errors may."""
    return text.encode("utf-8", "replace").decode()


def error_response(refused: Refused) -> JSONResponse:
    headers = {}
    if refused.retry_after_s > 0:
        headers["retry-after"] = str(math.ceil(refused.retry_after_s))
    elif refused.status >= 500:
        # The openai client would otherwise try again what cannot succeed.
        headers["x-should-retry"] = "false"
    if refused.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error_body(refused), refused.status, headers)


def from_validation(error: RequestValidationError) -> Refused:
    """The first complaint of the schema as one readable sentence."""
    first = error.errors()[0]
    parts = map(str, first["loc"])
    path = [part for part in parts if part != "body" and not part.startswith("#")]
    if first["type"] == "json_invalid":
        return Refused(400, "invalid_json", "The request body is not valid JSON.")
    if isinstance(error.body, bytes):  # a body of any other type is left as it came
        text = "The request body is not said to be JSON: send the header Content-Type: "
        return Refused(400, "invalid_content_type", f"{text}application/json.")
    name = ".".join(path)
    message = str(first["msg"]).removeprefix("Value error, ")
    code = "missing_required_parameter" if first["type"] == "missing" else "invalid_value"
    if first["type"] in _SENTENCES:
        return Refused(400, str(first["type"]), message, param=str(first["ctx"]["param"]))
    if not name and first["type"] == "value_error":
        return Refused(400, code, f"{message}.")
    if not name:
        return Refused(400, code, f"The request body must be a JSON object: {message}.")
    return Refused(400, code, f"Invalid '{name}': {message}.", param=name)


async def _on_refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)  # noqa: S101 - registered for this type
    return error_response(error)


async def _on_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this type
    return error_response(from_validation(error))


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this type
    status = error.status_code
    text = f"{error.detail}: {request.method} {request.url.path}"
    response = error_response(Refused(status, _CODES.get(status, "http_error"), text))
    response.headers.update(error.headers or {})
    return response


async def _on_bug(request: Request, error: Exception) -> Response:
    """The last resort; the server logs the traceback."""
    refused = Refused(500, "internal_error", "The server failed on this request.")
    response = error_response(refused)
    # This handler runs outside the guard, which names every other answer.
    response.headers[REQUEST_ID_HEADER] = getattr(request.state, "request_id", "")
    return response


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(Refused, _on_refused)
    app.add_exception_handler(RequestValidationError, _on_validation)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
