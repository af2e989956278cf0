"""Which models may answer a call."""

from shared.models.catalogue import (
    Catalogue,
    chat_models,
    has_own_endpoint,
    image_models,
    rates_served,
    resolve,
    retired_models,
    usable_models,
)
from shared.models.facts import (
    KnownModel,
    PriceChange,
    Retirement,
    check_model,
    known_model,
    missing_key,
    models_of_settings,
    price_changes,
    quotes,
    retirement_of,
    retiring,
    similar_models,
)
from shared.models.image_options import LITELLM_SHAPED, check_pictures, check_values, image_request, per_request
from shared.models.keys import KEYLESS_PROVIDERS, is_loopback, is_own_host, key_variables, provider_extra
from shared.models.names import model_facts
from shared.models.plan import OwnEndpoint, Plan, Planner, default_model, failure

__all__ = [
    "KEYLESS_PROVIDERS",
    "LITELLM_SHAPED",
    "Catalogue",
    "KnownModel",
    "OwnEndpoint",
    "Plan",
    "Planner",
    "PriceChange",
    "Retirement",
    "chat_models",
    "check_model",
    "check_pictures",
    "check_values",
    "default_model",
    "failure",
    "has_own_endpoint",
    "image_models",
    "image_request",
    "is_loopback",
    "is_own_host",
    "key_variables",
    "known_model",
    "missing_key",
    "model_facts",
    "models_of_settings",
    "per_request",
    "price_changes",
    "provider_extra",
    "quotes",
    "rates_served",
    "resolve",
    "retired_models",
    "retirement_of",
    "retiring",
    "similar_models",
    "usable_models",
]
