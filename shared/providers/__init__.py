"""Sends requests to providers: LiteLLM's per-provider configs around our own transport."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.providers.drafts import (
        Draft as Draft,
        draft as draft,
        limited as limited,
        pin as pin,
        request_with as request_with,
        with_pictures as with_pictures,
    )
    from shared.providers.endpoints import (
        guard_by_provider as guard_by_provider,
        import_litellm as import_litellm,
    )
    from shared.providers.local import (
        INSTALL_MODEL as INSTALL_MODEL,
        local_model_file as local_model_file,
        serve_local_model as serve_local_model,
    )
    from shared.providers.proxies import proxy_for as proxy_for
    from shared.providers.request import attach_pictures as attach_pictures
    from shared.providers.response import Partial as Partial
    from shared.providers.response_stream import ResponseStream as ResponseStream
    from shared.providers.send import (
        make_ready as make_ready,
        open_response as open_response,
    )
    from shared.providers.tokens import count_partial as count_partial, count_tokens as count_tokens
    from shared.providers.transport import (
        MAX_CONNECTIONS as MAX_CONNECTIONS,
        Exchange as Exchange,
        Network as Network,
        Transport as Transport,
        current_network as current_network,
        use_transport as use_transport,
    )
else:
    # Loading the modules on first use keeps the import of this package fast.
    __getattr__ = lazy_exports(
        __name__,
        {
            "drafts": "Draft draft limited pin request_with with_pictures",
            "endpoints": "guard_by_provider import_litellm",
            "local": "INSTALL_MODEL local_model_file serve_local_model",
            "proxies": "proxy_for",
            "request": "attach_pictures",
            "response": "Partial",
            "response_stream": "ResponseStream",
            "send": "make_ready open_response",
            "tokens": "count_partial count_tokens",
            "transport": "Exchange MAX_CONNECTIONS Network Transport current_network use_transport",
        },
    )
