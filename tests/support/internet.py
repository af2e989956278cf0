"""A small internet for images: a TLS server on loopback under any host name, with a resolver of its own."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shared.config import Settings
from shared.images import fetch
from shared.images.load import load_picture
from shared.types import Picture

PUBLIC = "93.184.215.14"
HOSTS = ("img.test", "redir.test", "mixed.test", "xn--mg-lka.test", "rebind.test")
type Handler = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: bytes = b"", status: int = 200, **headers: str) -> Handler:
    """A plain answer; `headers` are written with "_" for "-"."""
    fields = {"content-length": str(len(body))} | {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items()) + "\r\n"

    async def handle(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + body)
        await writer.drain()

    return handle


def redirect(to: str) -> Handler:
    """A redirect."""
    return answer(status=302, location=to)


def endless(head: bytes, piece: bytes, pause_s: float = 0.0, sent: list[int] | None = None) -> Handler:
    """An answer that never ends; `sent` gets the length of each piece that was sent."""

    async def handle(writer: asyncio.StreamWriter) -> None:
        writer.write(head)
        while True:
            writer.write(piece)
            await writer.drain()
            if sent is not None:
                sent.append(len(piece))
            await asyncio.sleep(pause_s)

    return handle


@dataclass
class Internet:
    """
    Pages by host and path, and addresses by name, of which each look-up takes the next answer.

    `dialled`, `asked` and `heads` tell what came.
    """

    certificate: Path
    pages: dict[str, Handler] = field(default_factory=dict)
    names: dict[str, list[list[str]]] = field(default_factory=lambda: {host: [[PUBLIC]] for host in HOSTS})
    dialled: list[tuple[str, int]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    port: int = 0

    def load(self, source: str, settings: Settings | None = None, **options: Any) -> Picture:
        """`load_picture` while the server runs."""

        async def main() -> Picture:
            async with self.running():
                return await load_picture(source, settings=settings or Settings(), **options)

        return asyncio.run(main())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Serve the pages."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate)
        async with await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=context) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.heads.append(head)
            lines = head.decode().split("\r\n")
            host = next(line[6:] for line in lines if line.lower().startswith("host: "))
            page = host + lines[0].split(" ")[1].partition("?")[0]
            self.asked.append(page)
            await self.pages.get(page, answer(status=404))(writer)
        except (ConnectionError, ssl.SSLError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def resolve(self, host: str, port: int) -> Sequence[str]:
        """Addresses as they stand in the URL, or the next answer for a name."""
        try:
            socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
        except OSError:
            answers = self.names.get(host)
            if not answers:
                raise socket.gaierror(socket.EAI_NONAME, "unknown") from None
            return answers.pop(0) if len(answers) > 1 else answers[0]
        return [host]


class _Dialler(httpcore.AsyncNetworkBackend):
    """Public addresses lead to the server; any other may not even be tried."""

    def __init__(self, net: Internet) -> None:
        self._net = net

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        self._net.dialled.append((host, port))
        if host != PUBLIC:
            raise httpcore.ConnectError("nobody there")
        return await httpcore.AnyIOBackend().connect_tcp("127.0.0.1", self._net.port, *args, **options)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key and certificate for the hosts, signed by itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "small internet")])
    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=3))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    file = tmp_path_factory.mktemp("internet") / "certificate.pem"
    file.write_bytes(secret + made.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.fixture
def internet(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Internet:
    """The internet that images are fetched from in a test."""
    net = Internet(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(fetch, "resolve", net.resolve)
    monkeypatch.setattr(fetch, "dialler", lambda: _Dialler(net))
    monkeypatch.setattr(fetch, "tls", lambda: trusting)
    return net
