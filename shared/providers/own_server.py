"""What to do next when a server of the user's own does not answer as it should."""

from __future__ import annotations

from shared.errors import AuthenticationError, LLMError, ModelNotFound
from shared.models import KEYLESS_PROVIDERS, is_own_host, key_variables
from shared.providers.transport import Exchange
from shared.types import Candidate

# How a model comes to be on a server. Source: the command lines of Ollama and LM Studio (from general knowledge,
# 2026-11-28).
_GET_MODEL = {
    "ollama": "Pull it first: ollama pull {model}",
    "ollama_chat": "Pull it first: ollama pull {model}",
    "lm_studio": "Load it first: lms load {model}",
    "hosted_vllm": "Give the name that vLLM was started with (vllm serve NAME).",
}
_OTHER = "Give a name that http://{address}/v1/models lists."
_CERTIFICATE = "If your network checks https itself, set SSL_CERT_FILE to its certificate."


def advised(candidate: Candidate, error: LLMError, exchange: Exchange) -> LLMError:
    """The error with what its reader must do: start the server, get the model, set a key, mend the way to it."""
    address = f"[{exchange.host}]:{exchange.port}" if ":" in exchange.host else f"{exchange.host}:{exchange.port}"
    own = is_own_host(candidate.provider, candidate.api_base) or candidate.provider in KEYLESS_PROVIDERS
    if error.status_code is None and error.outcome == "not_sent":
        if exchange.proxy is not None:
            error.next_step = f"Check HTTPS_PROXY, or name {exchange.host} in NO_PROXY."
        elif "certificate" in error.message:
            error.next_step = _CERTIFICATE
        elif own:
            error.next_step = f"Is it running at {address}?"
    elif own and isinstance(error, ModelNotFound):
        advice = _GET_MODEL.get(candidate.provider, _OTHER)
        error.next_step = advice.format(model=candidate.wire_model, address=address)
    elif own and isinstance(error, AuthenticationError):
        names = " or ".join(key_variables(candidate.provider))
        error.next_step = f"Set {names} to the key of the server at {address}."
    return error
