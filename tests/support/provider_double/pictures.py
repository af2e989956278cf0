"""Images: the PNG that every wire gives out, and OpenAI's image endpoints."""

import base64
import re
import struct
import zlib
from functools import lru_cache

from .script import Reply, Usage, count
from .wire import CREATED, Answer, Body, Call, Frame, plain, prompt_of

OUTPUT_TOKENS = {
    "low": {"1024x1024": 272, "1024x1536": 408, "1536x1024": 400},
    "medium": {"1024x1024": 1056, "1024x1536": 1584, "1536x1024": 1568},
    "high": {"1024x1024": 4160, "1024x1536": 6240, "1536x1024": 6208},
}
"""gpt-image-1's documented output tokens by quality and size."""

OUTPUT_TOKENS_OF_2 = {
    "low": {"1024x1024": 196, "1024x1536": 158, "1536x1024": 158},
    "medium": {"1024x1024": 1756, "1024x1536": 1372, "1536x1024": 1372},
    "high": {"1024x1024": 7024, "1024x1536": 5488, "1536x1024": 5488},
}
"""The same of gpt-image-2, whose larger images are charged less; other sizes as the square."""

INPUT_IMAGE_TOKENS = 194
"""What the double counts for each reference image."""


@lru_cache(maxsize=256)
def png(width: int, height: int, seed: int) -> bytes:
    """A valid PNG of one colour, one bit a pixel, so that even a large one is small."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    palette = bytes((seed & 255, seed >> 8 & 255, seed >> 16 & 255, 255, 255, 255))
    rows = (b"\0" * (1 + (width + 7) // 8)) * height
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 3, 0, 0, 0)),
            chunk(b"PLTE", palette),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        )
    )


def size_of(call: Call) -> str:
    """The asked size, "1024x1024" where none is."""
    size = str(call.body.get("size") or "")
    return size if re.fullmatch(r"[1-9]\d{0,3}x[1-9]\d{0,3}", size) else "1024x1024"


def picture(call: Call, reply: Reply) -> bytes:
    """The image's bytes: scripted, or a PNG of the asked size in a colour of this request."""
    if reply.image is not None:
        return reply.image
    width, height = size_of(call).split("x")
    return png(int(width), int(height), int(call.ident[:6], 16))


def b64(call: Call, reply: Reply) -> str:
    """The image in base64."""
    return base64.b64encode(picture(call, reply)).decode()


def data_url(call: Call, reply: Reply) -> str:
    """The image as a data URL."""
    return f"data:image/png;base64,{b64(call, reply)}"


def asked_in_chat(call: Call) -> int:
    """How many images a chat request wants (OpenRouter: by `modalities`, or of a model that makes them)."""
    return int(
        call.provider == "openrouter" and ("image" in str(call.body.get("modalities")) or "-image" in call.model)
    )


def _number(call: Call) -> int:
    return max(1, int(call.body.get("n") or 1))


def images(call: Call, reply: Reply) -> Answer:
    """POST …/images/generations and …/images/edits."""
    if "gpt-image" in call.model or call.provider == "azure":
        return _gpt_image(call, reply)
    return _dall_e(call, reply)


def _gpt_image(call: Call, reply: Reply) -> Answer:
    number, size = _number(call), size_of(call)
    asked = str(call.body.get("quality"))
    quality = asked if asked in OUTPUT_TOKENS else "medium"
    prompt, _ = prompt_of(call.body)
    references = sum(1 for value in call.body.get("files", ()) if value[0].startswith("image"))
    table = (OUTPUT_TOKENS_OF_2 if "gpt-image-2" in call.model else OUTPUT_TOKENS)[quality]
    usage = reply.usage or Usage(
        input=count(prompt) + references * INPUT_IMAGE_TOKENS,
        output=number * table.get(size, table["1024x1024"]),
        input_images=references * INPUT_IMAGE_TOKENS,
        images=number,
    )
    body: Body = {
        "created": CREATED,
        "background": str(call.body.get("background") or "opaque"),
        "data": [{"b64_json": b64(call, reply)} for _ in range(number)],
        "output_format": str(call.body.get("output_format") or "png"),
        "quality": quality,
        "size": size,
        "usage": {
            "input_tokens": usage.input,
            "input_tokens_details": {
                "image_tokens": usage.input_images,
                "text_tokens": usage.input - usage.input_images,
            },
            "output_tokens": usage.output,
            "output_tokens_details": {"image_tokens": usage.output, "text_tokens": 0},
            "total_tokens": usage.input + usage.output,
        },
    }
    return plain(body, usage)


def _dall_e(call: Call, reply: Reply) -> Answer:
    """dall-e-2, dall-e-3 and the likes: no usage, a URL unless base64 was asked for."""
    number = _number(call)
    usage = reply.usage or Usage(input=0, output=0, images=number)
    if call.body.get("response_format") == "b64_json":
        item: Body = {"b64_json": b64(call, reply)}
    else:
        item = {"url": f"https://{FILES_HOST}/double/{call.ident}-{size_of(call)}.png"}
    if call.model == "dall-e-3" or call.provider == "xai":
        item = {"revised_prompt": f"Revised: {call.body.get('prompt', '')}"} | item
    answer = plain({"created": CREATED, "data": [item] * number}, usage)
    answer.frames[0].usage = False
    return answer


FILES_HOST = "oaidalleapiprodscus.blob.core.windows.net"
"""Where OpenAI's image URLs point to; the double serves them."""


def file(call: Call, reply: Reply) -> Answer:
    """GET of an image that an answer gave as URL."""
    match = re.search(r"([1-9]\d{0,3})x([1-9]\d{0,3})\.png$", call.model)
    width, height = (int(match[1]), int(match[2])) if match else (16, 16)
    seed = int(call.model[:6], 16) if re.match(r"[0-9a-f]{6}", call.model) else 0
    data = reply.image if reply.image is not None else png(width, height, seed)
    return Answer(200, [Frame(raw=data, kind="body")], headers={"content-type": "image/png"})
