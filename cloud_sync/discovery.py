"""Finds controllers on the local network, and announces one, by mDNS (RFC 6762, DNS-SD RFC 6763): the only module that imports zeroconf.

What is heard is a hint and no more: anyone on the network may say anything. A join token pins the controller's authority.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.errors import MissingDependency

if TYPE_CHECKING:
    from zeroconf import ServiceInfo

SERVICE = "_edge-runtime._tcp.local."
_MAX_FOUND = 64
_RESOLVE_MS = 1500


@dataclass(frozen=True, slots=True)
class Found:
    """A controller that announced itself. `fingerprint` is what it says its authority's is."""

    name: str
    url: str
    tenant: str
    fingerprint: str


def addresses() -> list[str]:
    """This machine's IPv4 addresses, without the loopback and link-local ones."""
    try:
        import ifaddr
    except ImportError:
        return []
    found = [str(ip.ip) for adapter in ifaddr.get_adapters() for ip in adapter.ips if ip.is_IPv4]
    return sorted({text for text in found if not (ipaddress.ip_address(text).is_loopback or ipaddress.ip_address(text).is_link_local)})


@asynccontextmanager
async def announced(port: int, tenant: str, fingerprint: str, *, interfaces: Sequence[str] = ()) -> AsyncIterator[None]:
    """Announces the API on `port` until left. `interfaces`: addresses to speak on (default: all). Raises MissingDependency, OSError."""
    zero = _zeroconf()
    host = socket.gethostname().partition(".")[0][:40] or "controller"
    info = zero.ServiceInfo(
        SERVICE,
        f"{host}-{fingerprint[:8]}.{SERVICE}",
        port=port,
        properties={"tenant": tenant, "ca": fingerprint},
        server=f"{host}-{fingerprint[:8]}.local.",
        parsed_addresses=list(interfaces) or addresses() or ["127.0.0.1"],
    )
    service = _async(interfaces)
    try:
        await (await service.async_register_service(info, allow_name_change=True))
        yield
    finally:
        await service.async_unregister_all_services()
        await service.async_close()


async def discover(wait_s: float = 3.0, *, interfaces: Sequence[str] = ()) -> list[Found]:
    """Every controller heard of within `wait_s`, by name. Raises MissingDependency, OSError where there is no network at all."""
    from zeroconf.asyncio import AsyncServiceBrowser

    names: set[str] = set()
    service = _async(interfaces)

    def heard(*, name: str, **_: Any) -> None:
        if len(names) < _MAX_FOUND:
            names.add(name)

    browser = AsyncServiceBrowser(service.zeroconf, SERVICE, handlers=[heard])
    try:
        await asyncio.sleep(wait_s)
        infos = await asyncio.gather(*(service.async_get_service_info(SERVICE, name, _RESOLVE_MS) for name in sorted(names)))
    finally:
        await browser.async_cancel()
        await service.async_close()
    return [_found(info) for info in infos if info is not None and info.port and info.parsed_addresses()]


def _found(info: ServiceInfo) -> Found:
    text = {key.decode(errors="replace"): (value or b"").decode(errors="replace")[:128] for key, value in info.properties.items()}
    address = sorted(info.parsed_addresses(), key=lambda given: ":" in given)[0].partition("%")[0]
    url = f"https://{f'[{address}]' if ':' in address else address}:{info.port}"
    return Found(info.name.removesuffix(f".{SERVICE}"), url, text.get("tenant", ""), text.get("ca", ""))


def _zeroconf() -> Any:
    try:
        import zeroconf
    except ImportError as err:
        raise MissingDependency("zeroconf", "sync") from err
    return zeroconf


def _async(interfaces: Sequence[str]) -> Any:
    zero = _zeroconf()
    from zeroconf.asyncio import AsyncZeroconf

    return AsyncZeroconf(interfaces=list(interfaces) if interfaces else zero.InterfaceChoice.All, ip_version=zero.IPVersion.V4Only)
