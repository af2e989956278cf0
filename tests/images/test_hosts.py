"""Which URLs and addresses images come from: public ones over https, whatever they are disguised as."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, strategies as st

from shared.errors import InvalidRequest
from shared.images.fetch import display_url, is_allowed, parse_url

PRIVATE = [
    "0.0.0.0",  # noqa: S104 - it is refused
    "10.0.0.5",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.0.9",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "100.100.100.200",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0:7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2001:10::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
PUBLIC = ("93.184.215.14", "8.8.8.8", "1.1.1.1", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8")


@pytest.mark.parametrize("address", PRIVATE)
def test_no_connection_goes_to_a_private_address(address: str) -> None:
    """Loopback, private, link-local, metadata, reserved and translated addresses are closed."""
    assert not is_allowed(address, private=False)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_open(address: str) -> None:
    """What is on the internet may be dialled."""
    assert is_allowed(address, private=False)


def test_an_intranet_is_opened_without_its_metadata() -> None:
    """The operator's switch opens private addresses, and neither cloud metadata nor multicast."""
    opened = [address for address in PRIVATE if is_allowed(address, private=True)]
    assert opened == [
        *["10.0.0.5", "100.64.0.1", "127.0.0.1", "127.255.255.254", "172.16.0.1", "172.31.255.255", "192.168.1.1"],
        *["::1", "::ffff:127.0.0.1", "fc00::1"],
    ]
    assert all(is_allowed(address, private=True) for address in PUBLIC)


@given(st.ip_addresses())
def test_what_python_calls_not_global_is_never_allowed(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    """Our list only adds to the standard library's."""
    if is_allowed(str(address), private=False):
        assert address.is_global
        assert not address.is_private
        assert not address.is_multicast


@given(st.ip_addresses(v=4), st.sampled_from(["64:ff9b::", "::", "::ffff:0:", "2002:"]))
def test_no_disguise_opens_an_address(address: ipaddress.IPv4Address, prefix: str) -> None:
    """An IPv4 address inside of an IPv6 one, other than as IPv4-mapped, is closed whatever it is."""
    number = int(address)
    text = f"{prefix}{number >> 16:x}:{number & 0xFFFF:x}" + ("::" if prefix == "2002:" else "")
    assert not is_allowed(text, private=False)


REFUSED = [
    "http://img.test/a.png",
    "HTTP://img.test/a.png",
    "ftp://img.test/a.png",
    "gopher://img.test:70/",
    "https:///a.png",
    "https://",
    "https://?x",
    "https://img.test:22/a.png",
    "https://img.test:444/a.png",
    "https://img.test:x/a.png",
    "https://img.test:99999/a.png",
    "https://user@img.test/a.png",
    "https://user:pw@img.test/a.png",
    "https://img.test@169.254.169.254/a.png",
    "https://img.test\\@169.254.169.254/a.png",
    "https://img.test /a.png",
    "https://img.test/a b.png",
    "https://img.test/a\u202egnp.png",
    "https://img.test/a\u00a0.png",
    "https://img.test/\ud800.png",
    "https://img.test/a.png\r\nHost: evil",
    "https://img.test/a\0.png",
    "https://img.test/\ta.png",
    "https://localhost/a.png",
    "https://localhost./a.png",
    "https://LOCALHOST/a.png",
    "https://router/a.png",
    "https://printer.local/a.png",
    "https://metadata.google.internal/x",
    "https://nas.home.arpa/a.png",
    "https://a.localhost/a.png",
    "https://127.1/a.png",
    "https://127.0.0.1./a.png",
    "https://2130706433/a.png",
    "https://0x7f000001/a.png",
    "https://0x7f.0.0.1/a.png",
    "https://0177.0.0.1/a.png",
    "https://127.0.0.01/a.png",
    "https://1.2.3.256/a.png",
    "https://1.2.3/a.png",
    "https://img.0x/a.png",
    "https://①②⑦.⓪.⓪.①/a.png",
    "https://\uff11\uff12\uff17.0.0.1/a.png",
    "https://-img.test/a.png",
    "https://img..test/a.png",
    "https://[::1/a.png",
    "https://[::1]x/a.png",
    "https://[fe80::1%25eth0]/a.png",
    "https://[img.test]/a.png",
    f"https://{'a' * 64}.test/a.png",
    f"https://{'.'.join(['a' * 50] * 6)}.test/",
    f"https://img.test/{'a' * 2048}",
]


@pytest.mark.parametrize("url", REFUSED)
def test_an_odd_url_is_refused(url: str) -> None:
    """What is not plainly https, one public name and port 443 is refused before anything is looked up."""
    with pytest.raises(InvalidRequest, match="image_source_refused") as caught:
        parse_url(url, private=False)
    assert len(str(caught.value)) < 400
    assert "pw" not in str(caught.value)


def test_a_plain_url_passes() -> None:
    """A name, an international name and addresses pass, with path and query and without the fragment."""
    plain = parse_url("https://IMG.test/a.png?sig=SECRET#frag", private=False)
    assert (plain.host, plain.port, plain.path, plain.host_header) == (
        "img.test",
        443,
        b"/a.png?sig=SECRET",
        "img.test",
    )
    assert plain.display_url == "https://IMG.test/a.png"
    assert parse_url("https://müg.test/a", private=False).host == "xn--mg-xka.test"
    assert parse_url("https://93.184.215.14/", private=False).host == "93.184.215.14"
    assert parse_url("https://[2606:2800::1]:443/", private=False).host_header == "[2606:2800::1]"


def test_an_intranet_may_have_http_ports_and_short_names() -> None:
    """The operator's switch opens http, other ports and names of the local network."""
    wiki = parse_url("http://wiki:8080/a.png", private=True)
    assert (wiki.host, wiki.port, wiki.host_header) == ("wiki", 8080, "wiki:8080")
    assert parse_url("http://localhost/", private=True).port == 80
    with pytest.raises(InvalidRequest):
        parse_url("file://localhost/etc/passwd", private=True)
    with pytest.raises(InvalidRequest):
        parse_url("http://user:pw@wiki/", private=True)


@pytest.mark.parametrize(
    "url",
    [
        "https://me:hunter2@img.test/a.png?token=hunter2#hunter2",
        "https://me:hunter2@img.test?hunter2",
        "https://img.test/a?x=https://b:hunter2@c",
        "https://hunter2@img.test",
    ],
)
def test_what_is_shown_of_a_url_holds_no_secret(url: str) -> None:
    """Neither credentials nor query nor fragment are shown."""
    assert "hunter2" not in display_url(url)
    assert display_url(url).startswith("https://img.test")


@given(st.text(max_size=60))
def test_any_text_is_a_target_or_refused(text: str) -> None:
    """Whatever follows https:// gives a checked target or one refusal, never another error."""
    try:
        found = parse_url(f"https://{text}", private=False)
    except InvalidRequest as error:
        assert len(str(error)) < 500  # noqa: PT017 - most texts are refused, some are not
    else:
        assert found.port == 443
        assert found.host.isascii()
        assert "@" not in found.host
