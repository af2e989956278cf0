"""Which models may answer a call."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.models.abilities import makes_images as makes_images, sees as sees, suggested as suggested
    from shared.models.auto import (
        Choice as Choice,
        UsualOutput as UsualOutput,
        choose as choose,
        expected_nano as expected_nano,
        is_auto as is_auto,
        lacks as lacks,
        named_models as named_models,
        needs_of as needs_of,
        no_choice as no_choice,
    )
    from shared.models.catalogue import (
        Catalogue as Catalogue,
        has_own_endpoint as has_own_endpoint,
        rates_served as rates_served,
        resolve as resolve,
        retired_models as retired_models,
        usable_models as usable_models,
    )
    from shared.models.defaults import (
        default_by_key as default_by_key,
        default_model as default_model,
        default_variable as default_variable,
        keyed_providers as keyed_providers,
    )
    from shared.models.facts import (
        KnownModel as KnownModel,
        PriceChange as PriceChange,
        Retirement as Retirement,
        check_model as check_model,
        known_model as known_model,
        listed_models as listed_models,
        missing_key as missing_key,
        models_of_settings as models_of_settings,
        price_changes as price_changes,
        quotes as quotes,
        retirement_of as retirement_of,
        retiring as retiring,
        similar_models as similar_models,
    )
    from shared.models.image_options import (
        LITELLM_SHAPED as LITELLM_SHAPED,
        check_pictures as check_pictures,
        check_values as check_values,
        image_request as image_request,
        per_request as per_request,
    )
    from shared.models.keys import (
        KEYLESS_PROVIDERS as KEYLESS_PROVIDERS,
        has_key as has_key,
        is_loopback as is_loopback,
        is_own_host as is_own_host,
        key_variables as key_variables,
        misspelt_names as misspelt_names,
        provider_extra as provider_extra,
        warn_of_names as warn_of_names,
    )
    from shared.models.names import model_facts as model_facts
    from shared.models.plan import OwnEndpoint as OwnEndpoint, Plan as Plan, Planner as Planner, failure as failure
else:
    # Settings and reports of a ledger need few of them.
    __getattr__ = lazy_exports(
        __name__,
        {
            "abilities": "makes_images sees suggested",
            "auto": "Choice UsualOutput choose expected_nano is_auto lacks named_models needs_of no_choice",
            "catalogue": "Catalogue has_own_endpoint rates_served resolve retired_models usable_models",
            "defaults": "default_by_key default_model default_variable keyed_providers",
            "facts": "KnownModel PriceChange Retirement check_model known_model listed_models missing_key "
            "models_of_settings price_changes quotes retirement_of retiring similar_models",
            "image_options": "LITELLM_SHAPED check_pictures check_values image_request per_request",
            "keys": "KEYLESS_PROVIDERS has_key is_loopback is_own_host key_variables misspelt_names provider_extra "
            "warn_of_names",
            "names": "model_facts",
            "plan": "OwnEndpoint Plan Planner failure",
        },
    )
