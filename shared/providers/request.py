"""A request built by LiteLLM's per-provider configs, without its wrapper, its environment and its downloads."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from shared.errors import InvalidRequest, LLMError
from shared.models import provider_extra
from shared.providers.checks import (
    check_base,
    check_key,
    check_messages,
    check_name,
    check_parameters,
    keep_in_path,
    no_endpoint,
)
from shared.providers.endpoints import (
    NO_KEY,
    USERS_ENDPOINT,
    Endpoint,
    Wire,
    base_url,
    find_endpoint,
    no_hints,
)
from shared.providers.errors import invalid
from shared.types import Candidate, Request

_REPLICATE_IGNORES = frozenset({"tools", "tool_choice", "functions", "function_call"})


@dataclass(slots=True)
class Outgoing:
    """One request, ready to be posted, and what its answer must be read with."""

    url: str
    headers: dict[str, str]
    body: dict[str, Any]
    wire: Wire
    stream: bool
    json_mode: bool = False
    config: Any = None
    messages: list[dict[str, Any]] = field(default_factory=list)
    litellm_params: dict[str, Any] = field(default_factory=dict)

    def content(self) -> bytes:
        """The body's bytes."""
        text = json.dumps(self.body, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain)
        return text.encode("utf-8", "replace")


@dataclass(slots=True)
class _Ask:
    """What a builder needs to write a request."""

    candidate: Candidate
    target: Endpoint
    base: str
    messages: list[dict[str, Any]]
    options: dict[str, Any]
    """The parameters in the provider's own words."""
    stream: bool
    json_mode: bool
    stream_options: dict[str, Any]

    @property
    def model(self) -> str:
        """The model's name on the wire."""
        return self.candidate.wire_model


def build(candidate: Candidate, request: Request) -> Outgoing:
    """
    The request that asks `candidate` for what `request` wants.

    Raises:
        InvalidRequest: A parameter or a message is nothing that the model takes.

        AuthenticationError: The provider needs a key and there is none.

        ConfigurationError: There is no endpoint to send it to.
    """
    check_name(candidate)
    check_base(candidate)
    check_key(candidate)
    target = find_endpoint(candidate.provider, candidate.wire_model)
    if target is None:
        raise no_endpoint(candidate, "has no chat config in LiteLLM")
    base = base_url(target.provider, candidate.wire_model, candidate.api_base)
    if base is None and target.provider in USERS_ENDPOINT:
        raise no_endpoint(candidate)
    messages = check_messages(candidate, request.messages, allow_image_links=target.wire == "openai")
    params, extra_body, extra_headers = _parameters(candidate, target, request)
    try:
        outgoing = _BUILDERS[target.wire](_ask(candidate, target, base or "", messages, params, request.stream))
    except LLMError:
        raise
    except Exception as error:  # noqa: BLE001 - configs raise whatever their parsing happens to raise
        raise refusal(candidate, error) from None
    outgoing.body = {**extra_body, **outgoing.body.pop("extra_body", {}), **outgoing.body}
    outgoing.headers = _headers(outgoing.headers, extra_headers)
    if (host := httpx.URL(outgoing.url).host) != httpx.URL(base or outgoing.url).host or not host:
        raise no_endpoint(candidate, "has no address to send this model's requests to")
    return outgoing


def _ask(
    candidate: Candidate,
    target: Endpoint,
    base: str,
    messages: list[dict[str, Any]],
    params: dict[str, Any],
    stream: bool,
) -> _Ask:
    stream_options = params.pop("stream_options", {})
    options = params
    with no_hints():
        if target.parameters is not None:
            options = target.config.map_openai_params(
                non_default_params=params, optional_params={}, model=candidate.wire_model, drop_params=False
            )
        messages = target.config.translate_developer_role_to_system_role(messages=adapt_messages(messages, target.wire))
    json_mode, one_piece = bool(options.pop("json_mode", False)), bool(options.pop("fake_stream", False))
    # JSON by way of a tool, in OpenAI's shape, becomes text only when the call is whole.
    stream = stream and not one_piece and not (json_mode and target.wire == "openai")
    return _Ask(candidate, target, base, messages, options, stream, json_mode, stream_options)


def _parameters(
    candidate: Candidate, target: Endpoint, request: Request
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The caller's parameters, what goes into the body as it is, and headers."""
    params = check_parameters(candidate, request)
    extra_body, extra_headers = params.pop("extra_body", {}), params.pop("extra_headers", {})
    if not isinstance(extra_body, dict) or not isinstance(extra_headers, dict):
        raise invalid(candidate, f"extra_body and extra_headers for {candidate.model} must be objects")
    known = target.parameters
    refused = [name for name in params if known is not None and name not in known]
    if target.wire == "replicate":
        refused += [name for name in params if name in _REPLICATE_IGNORES]
    if refused:
        raise invalid(candidate, f"{candidate.model} does not take {', '.join(sorted(refused))}")
    if isinstance(params.get("response_format"), type):
        params["response_format"] = target.config.get_json_schema_from_pydantic_object(params["response_format"])
    return params, extra_body, extra_headers


def _openai(ask: _Ask) -> Outgoing:
    target, litellm_params = ask.target, {"custom_llm_provider": ask.target.provider, "api_base": ask.base}
    headers = _azure_headers(ask) if target.provider == "azure" else _config_headers(ask)
    body = _config_body(ask, headers, litellm_params)
    if target.provider == "azure":
        keep_in_path(ask.candidate)
        url = azure_url(ask.base, ask.model, "chat/completions")
    else:
        url = target.config.get_complete_url(
            api_base=ask.base or None,
            api_key=ask.candidate.api_key or NO_KEY,
            model=ask.model,
            optional_params=ask.options,
            litellm_params=litellm_params,
            stream=ask.stream,
        )
    if ask.stream:
        body["stream"] = True
        if target.parameters is None or "stream_options" in target.parameters:
            body["stream_options"] = {**ask.stream_options, "include_usage": True}
    return Outgoing(url, headers, body, "openai", ask.stream, ask.json_mode)


def azure_url(base: str, model: str, operation: str) -> str:
    """Azure's address for an operation of a deployment."""
    import litellm

    url, version = httpx.URL(base), provider_extra("azure").get("api_version")
    path = url.path.rstrip("/").removesuffix(f"/{operation}")
    query = dict(url.params)
    if not path.endswith("/openai/v1"):
        if "/deployments/" not in path:
            path = f"{path.removesuffix('/openai')}/openai/deployments/{model}"
        query.setdefault("api-version", version or litellm.AZURE_DEFAULT_API_VERSION)
    elif version:
        query.setdefault("api-version", version)
    return str(url.copy_with(path=f"{path}/{operation}", params=query or None))


def _azure_headers(ask: _Ask) -> dict[str, Any]:
    return {"api-key": ask.candidate.api_key or ""}


def _anthropic(ask: _Ask) -> Outgoing:
    base = ask.base.rstrip("/").removesuffix("/messages").removesuffix("/v1")
    litellm_params: dict[str, Any] = {}
    headers = _config_headers(ask)
    body = _config_body(ask, headers, litellm_params)
    if ask.stream:
        body["stream"] = True
    return Outgoing(
        f"{base}/v1/messages",
        headers,
        body,
        "anthropic",
        ask.stream,
        ask.json_mode,
        ask.target.config,
        ask.messages,
        litellm_params,
    )


def _gemini(ask: _Ask) -> Outgoing:
    from litellm.llms.vertex_ai.common_utils import _get_gemini_url
    from litellm.llms.vertex_ai.gemini.transformation import _transform_request_body

    body: Any = _transform_request_body(
        messages=ask.messages,  # type: ignore[arg-type]  # LiteLLM's name for the same dicts
        model=ask.model,
        optional_params=ask.options,
        custom_llm_provider="gemini",
        litellm_params={},
        cached_content=None,
    )
    keep_in_path(ask.candidate)
    url, own = httpx.URL(_get_gemini_url("chat", ask.model, ask.stream)[0]), httpx.URL(ask.base)
    path = url.path if own.path in ("", "/") else f"{own.path.rstrip('/')}/models/{url.path.rpartition('/')[2]}"
    url = own.copy_with(path=path, params={**dict(own.params), **dict(url.params)} or None)
    headers = {"x-goog-api-key": ask.candidate.api_key or ""}
    return Outgoing(str(url), headers, dict(body), "gemini", ask.stream, config=ask.target.config)


def _cohere(ask: _Ask) -> Outgoing:
    base = ask.base.rstrip("/").removesuffix("/chat").removesuffix("/v2")
    headers = _config_headers(ask)
    body = _config_body(ask, headers, {})
    body["model"], body["stream"] = ask.model.removeprefix("v2/"), ask.stream
    return Outgoing(f"{base}/v2/chat", headers, body, "cohere", ask.stream)


def _ollama(ask: _Ask) -> Outgoing:
    base = ask.base.rstrip("/").removesuffix("/api/chat").removesuffix("/v1")
    ask.options["stream"] = ask.stream
    headers = _config_headers(ask)
    return Outgoing(f"{base}/api/chat", headers, _config_body(ask, headers, {}), "ollama", ask.stream)


def _replicate(ask: _Ask) -> Outgoing:
    # Not by the config's transform_request: it downloads chat templates from Hugging Face.
    keep_in_path(ask.candidate)
    base = ask.base.rstrip("/")
    body: dict[str, Any] = {"input": {**_prompt(ask.messages), **ask.options}}
    name, _, version = ask.model.partition(":")
    if version:
        url, body["version"] = f"{base}/predictions", version
    elif name.startswith("deployments/"):
        url = f"{base}/{name}/predictions"
    else:
        url = f"{base}/models/{name}/predictions"
    key = ask.candidate.api_key
    return Outgoing(url, {"authorization": f"Bearer {key}"} if key else {}, body, "replicate", ask.stream)


def _prompt(messages: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The messages as the one text that Replicate's models take, the system's apart."""
    turns = [(str(message.get("role")), _text(message.get("content"))) for message in messages]
    system = "\n\n".join(text for role, text in turns if role in ("system", "developer"))
    rest = [(role, text) for role, text in turns if role not in ("system", "developer")]
    prompt = rest[0][1] if len(rest) == 1 else "\n\n".join(f"{role.title()}: {text}" for role, text in rest)
    if len(rest) > 1:
        prompt += "\n\nAssistant:"
    return {"prompt": prompt, "system_prompt": system} if system else {"prompt": prompt}


def _text(content: Any) -> str:
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


_BUILDERS = {
    "openai": _openai,
    "anthropic": _anthropic,
    "gemini": _gemini,
    "cohere": _cohere,
    "ollama": _ollama,
    "replicate": _replicate,
}


def _config_headers(ask: _Ask) -> dict[str, Any]:
    """The headers of the provider's config, with the candidate's key or none."""
    headers: dict[str, Any] = ask.target.config.validate_environment(
        headers={},
        model=ask.model,
        messages=ask.messages,
        optional_params=ask.options,
        litellm_params={},
        api_key=ask.candidate.api_key or NO_KEY,
        api_base=ask.candidate.api_base,
    )
    return headers


def _config_body(ask: _Ask, headers: dict[str, Any], litellm_params: dict[str, Any]) -> dict[str, Any]:
    """The body of the provider's config."""
    with no_hints():
        body: dict[str, Any] = ask.target.config.transform_request(
            model=ask.model,
            messages=ask.messages,
            optional_params=ask.options,
            litellm_params=litellm_params,
            headers=headers,
        )
    return body


def _headers(headers: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, str]:
    """The headers to send: the caller's may add to the config's, not replace them."""
    lower = {str(name).lower(): str(value) for name, value in extra.items()}
    lower |= {name.lower(): str(value) for name, value in headers.items() if NO_KEY not in str(value)}
    lower.pop("host", None)
    return {"content-type": "application/json", "user-agent": "agentswarm-tools", **lower}


def refusal(candidate: Candidate, error: Exception) -> InvalidRequest:
    """What LiteLLM's config found wrong with the request, in our words."""
    said = str(getattr(error, "message", "") or error)
    said = re.sub(r"^litellm\.\w+: ", "", said)
    said = re.sub(
        r"\s*(To drop|If you want to use these) [^`]*`.*$|\n?Received Messages=.*$", "", said, flags=re.DOTALL
    )
    return invalid(candidate, f"The request cannot be sent to {candidate.model}: {said or type(error).__name__}")


def _plain(value: Any) -> Any:
    """A model object among the body's data as plain data."""
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return dump(exclude_none=True)


_THOUGHTS = frozenset({"thinking", "redacted_thinking"})
# Their wires take pictures in a tool's answer; the others take text there.
_TOOLS_SHOW_PICTURES = frozenset({"anthropic", "gemini"})
_NO_TEXT = "(an answer without text)"


def adapt_messages(messages: Sequence[dict[str, Any]], wire: str) -> list[dict[str, Any]]:
    """
    The messages for a provider that need not be the one which the conversation began with.

    Args:
        messages: As OpenAI has them; may hold thoughts that Anthropic signed, signatures of Gemini's, and pictures
            that tools gave.

        wire: The wire that they go out on.
    """
    return [_adapted(message, wire) for message in messages]


def _adapted(message: dict[str, Any], wire: str) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, list):
        if message.get("role") == "tool" and wire not in _TOOLS_SHOW_PICTURES:
            texts = [part for part in content if not isinstance(part, dict) or part.get("type") == "text"]
            message = {**message, "content": texts or _NO_TEXT}
        elif wire != "anthropic" and any(_is_thought(part) for part in content):
            said = [part for part in content if not _is_thought(part)]
            message = {**message, "content": said or None}
    if wire != "gemini" and isinstance(calls := message.get("tool_calls"), list):
        message = {**message, "tool_calls": [_unsigned(call) for call in calls]}
    return message


def _is_thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _THOUGHTS


def _unsigned(call: Any) -> Any:
    if not isinstance(call, dict):
        return call
    return {name: value for name, value in call.items() if name != "provider_specific_fields"}
