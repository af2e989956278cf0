"""Loads images (fetch, decode, scale down) and saves them."""

from typing import TYPE_CHECKING

from shared.internal.lazy import lazy_exports

if TYPE_CHECKING:
    from shared.images.decode import decode_off_loop as decode_off_loop, off_loop as off_loop
    from shared.images.files import safe_name as safe_name
    from shared.images.load import load_picture as load_picture
    from shared.images.resize import (
        Fitted as Fitted,
        fit_pictures as fit_pictures,
        picture_tokens as picture_tokens,
        preview as preview,
    )
    from shared.images.save import Saved as Saved, check_output as check_output, save_picture as save_picture
else:
    # Pillow is slow to import.
    __getattr__ = lazy_exports(
        __name__,
        {
            "decode": "decode_off_loop off_loop",
            "files": "safe_name",
            "load": "load_picture",
            "resize": "Fitted fit_pictures picture_tokens preview",
            "save": "Saved check_output save_picture",
        },
    )
