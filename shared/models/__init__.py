"""Which models may answer a call."""

from shared.models.abilities import makes_images, suggested
from shared.models.catalogue import Catalogue, resolve, retired_models, usable_models
from shared.models.defaults import default_by_key, default_model, default_variable, keyed_providers
from shared.models.facts import (
    KnownModel,
    PriceChange,
    Retirement,
    check_model,
    known_model,
    listed_models,
    missing_key,
    models_of_settings,
    price_changes,
    quotes,
    retirement_of,
    retiring,
    similar_models,
)
from shared.models.image_options import LITELLM_SHAPED, check_pictures, check_values, image_request, per_request
from shared.models.keys import (
    KEYLESS_PROVIDERS,
    has_key,
    is_own_host,
    key_variables,
    misspelt_keys,
    provider_extra,
    warn_of_names,
)
from shared.models.names import model_facts
from shared.models.plan import OwnEndpoint, Plan, Planner, failure

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
    "check_model",
    "check_pictures",
    "check_values",
    "default_by_key",
    "default_model",
    "default_variable",
    "failure",
    "has_key",
    "image_request",
    "is_own_host",
    "key_variables",
    "keyed_providers",
    "known_model",
    "listed_models",
    "makes_images",
    "missing_key",
    "misspelt_keys",
    "model_facts",
    "models_of_settings",
    "per_request",
    "price_changes",
    "provider_extra",
    "quotes",
    "resolve",
    "retired_models",
    "retirement_of",
    "retiring",
    "similar_models",
    "suggested",
    "usable_models",
    "warn_of_names",
]
