"""Who may ask: the host that was meant, the page itself, and whoever has the token.

A page of another site can send requests to this machine, and a name of its own can be made to lead
here (DNS rebinding). So the Host has to be one of ours, the Origin, where a browser tells it, the
same, and all but the page itself needs a cookie that no other site's request carries, which the
token buys that is printed in the terminal. Sources: OWASP, cross-site request forgery prevention;
W3C, Fetch metadata request headers; RFC 6265bis, SameSite.
"""

import hmac
import ipaddress
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["POLICY", "Guard", "Keys", "address_of"]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
ALWAYS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
TOO_LARGE = "this is larger than the studio takes"
SAFE = ("GET", "HEAD", "OPTIONS")
SESSION = "/api/session"
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]/\s]+)(?::([0-9]{1,5}))?")


@dataclass(frozen=True)
class Keys:
    """The token of the address, and the session's key that it buys; new ones at every start."""

    port: int
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24))
    session: str = field(default_factory=lambda: secrets.token_urlsafe(24))

    @property
    def cookie(self) -> str:
        """The cookie's name: ports share cookies, studios must not."""
        return f"unraze-{self.port}"

    def buys(self, token: str) -> bool:
        """Whether it is the token."""
        return hmac.compare_digest(token.encode(), self.token.encode())

    def opens(self, cookies: str) -> bool:
        """Whether a Cookie header holds the session's key."""
        try:
            found = SimpleCookie(cookies).get(self.cookie)
        except CookieError:
            return False
        return found is not None and hmac.compare_digest(
            found.value.encode(), self.session.encode()
        )


def address_of(host: str, port: int) -> str:
    """http://HOST:PORT, of a name or an address."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Guard:
    """Lets through what may be asked, and has the browser keep to the page's own files.

    `hosts` are the names that this machine goes by; where `remote`, addresses will do too: a name
    can be made to lead here, an address is what it is.
    """

    def __init__(self, app: ASGIApp, keys: Keys, hosts: Iterable[str], remote: bool) -> None:
        self.app, self.keys, self.remote = app, keys, remote
        self.hosts = frozenset(host.lower() for host in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(scope)
        if refused is not None:
            await _answer(refused, scope["method"], send)
            return

        too_large = False

        async def with_headers(message: Message) -> None:
            nonlocal too_large
            if message["type"] == "http.response.start":
                too_large = message["status"] == 413
                if too_large:  # which starlette says in plain text
                    await _answer((413, TOO_LARGE), scope["method"], send)
                headers = MutableHeaders(scope=message)
                for name, value in ALWAYS.items():
                    headers.setdefault(name, value)
            if not too_large:
                await send(message)

        await self.app(scope, receive, with_headers)

    def _refused(self, scope: Scope) -> tuple[int, str] | None:
        """The status and the words of a refusal; None for what may be asked."""
        headers, path = Headers(scope=scope), scope["path"]
        asked = headers.getlist("host")
        if len(asked) != 1 or not self._is_ours(asked[0]):
            return 421, (
                "this studio does not go by that name; open the address that `unraze studio` "
                "printed, or start it with --name NAME"
            )
        origin = headers.get("origin")
        if origin is not None and origin.lower() != f"http://{asked[0].lower()}":
            return 403, "asked by a page of another site; open the studio's own"
        if path.startswith("/api/") and headers.get("sec-fetch-site", "same-origin") not in (
            "same-origin",
            "none",
        ):
            return 403, "asked by a page of another site; open the studio's own"
        if not path.startswith("/api/"):
            if scope["method"] not in SAFE:
                return 405, f"{scope['method']}: pages are only read"
            return None
        if path != SESSION and not self.keys.opens(headers.get("cookie", "")):
            return 401, (
                "no session: open the address that `unraze studio` printed in the terminal, with "
                "all that stands behind the #"
            )
        return None

    def _is_ours(self, asked: str) -> bool:
        found = HOST.fullmatch(asked)
        if found is None or int(found[2] or 80) != self.keys.port:
            return False
        name = found[1].lower().strip("[]")
        return name in self.hosts or (self.remote and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _answer(refused: tuple[int, str], method: str, send: Send) -> None:
    status, words = refused
    body = json.dumps({"error": words}, ensure_ascii=False).encode()
    headers = [(name.lower().encode(), value.encode()) for name, value in ALWAYS.items()]
    headers += [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if method == "HEAD" else body})
