"""Where requests leave a network: proxies of the environment, certificates of a company, and whom an error names."""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.errors import ConfigurationError, ProviderUnavailable
from shared.llm_client import LLMClient
from shared.providers.proxies import proxy_for, shown
from shared.providers.transport import ByProxy
from shared.types import LLMResponse
from tests.support.asking import HELLO, MINI

ANSWER = json.dumps(
    {
        "id": "1",
        "model": "gpt-5.4-mini",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
    }
).encode()
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)
PROXIES = tuple(f"{kind}_proxy" for kind in ("http", "https", "all", "no"))


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment without proxies, and a key to send."""
    for name in (*PROXIES, *map(str.upper, PROXIES), "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-proxy-test-0001")


@dataclass
class Proxy:
    """A proxy on loopback that leads every CONNECT to one port, or refuses it, and answers plain requests itself."""

    leads_to: int = 0
    refusal: bytes = b""
    asked: list[str] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    port: int = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.asked.append(head.partition(" HTTP/1.1")[0])
        self.headers.append(head.lower())
        if not head.startswith("CONNECT"):
            writer.write(OK)
        elif self.refusal:
            writer.write(self.refusal)
        else:
            there, back = await asyncio.open_connection("127.0.0.1", self.leads_to)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_pass(reader, back), _pass(there, writer))
        writer.close()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def _provider(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK)
    await writer.drain()
    writer.close()


def certificate(folder: Path, host: str) -> Path:
    """A certificate and its key, in one file, as a company signs it for what it inspects."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a company")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "company.pem"
    path.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    return path


@asynccontextmanager
async def network(pem: Path | None = None, refusal: bytes = b"") -> AsyncIterator[Proxy]:
    """A proxy, and behind it a provider with this certificate."""
    proxy, context = Proxy(refusal=refusal), None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    provider = await asyncio.start_server(_provider, "127.0.0.1", 0, ssl=context)
    proxy.leads_to = provider.sockets[0].getsockname()[1]
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with provider, server:
        yield proxy


async def ask() -> LLMResponse:
    """Say hello, once."""
    return await LLMClient(max_retries=0, transport=ByProxy).achat_completion(HELLO, model=MINI)


def test_plain_http_goes_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a network whose only way out is HTTP_PROXY a call is answered, with the proxy's credentials on their way."""

    async def main() -> None:
        async with network() as proxy:
            monkeypatch.setenv("OPENAI_API_BASE", "http://llm.invalid/v1")
            monkeypatch.setenv("HTTP_PROXY", proxy.url.replace("//", "//user:hunter22@"))
            assert (await ask()).content == "fine"
            assert proxy.asked == ["POST http://llm.invalid/v1/chat/completions"]
            assert "proxy-authorization: basic dxnlcjpodw50zxiymg==" in proxy.headers[0]

    asyncio.run(main())


def test_https_goes_through_a_tunnel_to_a_provider_whose_certificate_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """HTTPS_PROXY only tunnels; the provider's certificate is checked, and a company's own counts by SSL_CERT_FILE."""
    pem = certificate(tmp_path, "llm.invalid")

    async def main() -> None:
        async with network(pem) as proxy:
            monkeypatch.setenv("OPENAI_API_BASE", "https://llm.invalid/v1")
            monkeypatch.setenv("HTTPS_PROXY", proxy.url)
            with pytest.raises(ProviderUnavailable, match="its certificate is not valid") as caught:
                await ask()
            assert caught.value.outcome == "not_sent"
            assert f"through the proxy 127.0.0.1:{proxy.port}" in str(caught.value)
            monkeypatch.setenv("SSL_CERT_FILE", str(pem))
            assert (await ask()).content == "fine"
            assert set(proxy.asked) == {"CONNECT llm.invalid:443"}
            assert not any("sk-proxy-test" in head for head in proxy.headers)

    asyncio.run(main())


def test_a_proxy_that_refuses_is_named_and_nothing_was_charged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that asks for a password has passed nothing on: nothing was sent, and the message names the proxy."""

    async def main() -> None:
        async with network(refusal=b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as proxy:
            monkeypatch.setenv("OPENAI_API_BASE", "https://llm.invalid/v1")
            monkeypatch.setenv("https_proxy", proxy.url.replace("//", "//user:hunter22@"))
            with pytest.raises(ProviderUnavailable) as caught:
                await ask()
            said = str(caught.value)
            assert f"The proxy 127.0.0.1:{proxy.port} did not connect to openai: 407 Proxy Authentication Req" in said
            assert "Nothing was charged. Check HTTPS_PROXY, or name llm.invalid in NO_PROXY." in said
            assert "hunter22" not in said
            assert (caught.value.outcome, caught.value.cost) == ("not_sent", 0)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("proxy", "problem"),
    [
        ("http://127.0.0.1:1", "Could not connect to openai through the proxy 127.0.0.1:1: the connection was refused"),
        ("ftp://proxy.invalid:1", "The proxy proxy.invalid:1 did not connect to openai: it is not the address of a"),
        ("socks://127.0.0.1:1", "The proxy 127.0.0.1:1 did not connect to openai: a SOCKS proxy needs a package"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_named(proxy: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that is down, or that is none, is an error of the way, said as such, and free."""
    monkeypatch.setenv("OPENAI_API_BASE", "http://llm.invalid/v1")
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(ProviderUnavailable) as caught:
        asyncio.run(ask())
    assert str(caught.value).startswith(problem)
    assert caught.value.outcome == "not_sent"


def test_certificates_that_cannot_be_read_are_an_error_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """SSL_CERT_FILE with a wrong path, or with no certificates, is said by name before anything is sent."""
    monkeypatch.setenv("OPENAI_API_BASE", "http://127.0.0.1:1/v1")
    (tmp_path / "empty.pem").write_text("nothing")
    for path in (tmp_path / "missing.pem", tmp_path / "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        with pytest.raises(ConfigurationError, match="SSL_CERT_FILE cannot be read as certificates"):
            asyncio.run(ask())


@pytest.mark.parametrize(
    ("environment", "url", "proxy"),
    [
        ({}, "https://api.openai.com/v1", None),
        ({"HTTPS_PROXY": "http://p:1"}, "https://api.openai.com/v1", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "http://api.openai.com/v1", None),
        ({"HTTP_PROXY": "p:1"}, "http://a.test", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://a.test", None),
        ({"http_proxy": "http://p:1", "REQUEST_METHOD": "GET"}, "http://a.test", "http://p:1"),
        ({"ALL_PROXY": "socks://p:1"}, "https://a.test", "socks5://p:1"),
        ({"all_proxy": "SOCKS5h://p:1"}, "https://a.test", "socks5h://p:1"),
        ({"HTTPS_PROXY": "http://big:1", "https_proxy": "http://small:1"}, "https://a.test", "http://small:1"),
        ({"HTTPS_PROXY": "http://big:1", "https_proxy": ""}, "https://a.test", None),
        ({"HTTPS_PROXY": "http://p:1", "ALL_PROXY": "http://q:1"}, "https://a.test", "http://p:1"),
        ({"HTTPS_PROXY": "http://p:1"}, "https://localhost:8443", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://127.0.0.1:11434", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://[::1]:11434", None),
        ({"HTTP_PROXY": "http://p:1"}, "http://10.1.2.3:11434", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.0.0.0/8"}, "http://10.1.2.3:11434", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.1.2.3"}, "http://10.1.2.3:11434", None),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "10.1.2.3:80"}, "http://10.1.2.3:11434", "http://p:1"),
        ({"HTTP_PROXY": "http://p:1", "NO_PROXY": "[fd00::1]"}, "http://[fd00::1]", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*"}, "https://a.test", None),
        ({"ALL_PROXY": "http://p:1", "no_proxy": "b.test, a.test"}, "https://a.test", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "b.test a.test"}, "https://llm.a.test", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": ".a.test"}, "https://llm.a.test", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "*.a.test"}, "https://LLM.a.test.", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "a.test"}, "https://nota.test", "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "a.test:443"}, "https://a.test", None),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": "a.test:444"}, "https://a.test", "http://p:1"),
        ({"ALL_PROXY": "http://p:1", "NO_PROXY": ", ,"}, "https://a.test", "http://p:1"),
    ],
)
def test_the_proxy_of_a_request(
    environment: dict[str, str], url: str, proxy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The variables mean what they mean elsewhere; this machine itself is never behind a proxy."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_for(httpx.URL(url)) == proxy


def test_a_dotenv_names_no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whoever wrote the .env of a folder does not decide whom all requests go through, or whose certificates count."""
    (tmp_path / ".env").write_text("HTTPS_PROXY=http://elsewhere:1\nSSL_CERT_FILE=/nowhere\n")
    monkeypatch.chdir(tmp_path)
    assert proxy_for(httpx.URL("https://a.test")) is None


def test_the_name_of_a_proxy_has_no_credentials() -> None:
    """What an error shows of a proxy is its host and port."""
    assert shown("http://user:pass@word@proxy.test:8080/path") == "proxy.test:8080"
