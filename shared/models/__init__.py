"""Which models may answer a call."""

from shared.models.catalogue import Catalogue, chat_models, resolve, retired_models, usable_models
from shared.models.image_options import LITELLM_SHAPED, check_pictures, check_values, image_request, per_request
from shared.models.keys import KEYLESS_PROVIDERS, is_own_host, key_variables, provider_extra
from shared.models.names import model_facts
from shared.models.plan import OwnEndpoint, Plan, Planner, default_model, failure

__all__ = [
    "KEYLESS_PROVIDERS",
    "LITELLM_SHAPED",
    "Catalogue",
    "OwnEndpoint",
    "Plan",
    "Planner",
    "chat_models",
    "check_pictures",
    "check_values",
    "default_model",
    "failure",
    "image_request",
    "is_own_host",
    "key_variables",
    "model_facts",
    "per_request",
    "provider_extra",
    "resolve",
    "retired_models",
    "usable_models",
]
