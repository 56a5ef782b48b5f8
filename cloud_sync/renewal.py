"""Renews the gateway's certificate at two thirds of its life, over mutual TLS with the one it has, expired or not. Beside the uplink.

The certificate is replaced as a whole file; the uplink's next connection uses it. The key stays, and no cryptography library is needed.
Nothing here ever stops the gateway: without a valid certificate it decides and stores, and only the link is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Callable
from pathlib import Path

from cloud_sync.backoff import full_jitter_s
from cloud_sync.dial import tls_context
from cloud_sync.https import ask, error_text, parse_url
from cloud_sync.identity import Validity, parse_validity, read_validity, replace
from edge_runtime.clock import BUILD_WALL_NS, Clock
from edge_runtime.errors import DeadlineExceeded, EdgeRuntimeError, InputError, TransportError
from edge_runtime.types import LinkSettings

DUE = 2 / 3
"""The share of its life after which a certificate is renewed."""
_SPREAD = 1 / 12
_RETRY_BASE_S, _RETRY_MAX_S = 15.0, 900.0
_REFUSED_RETRY_S = 3600.0
_POKED_S = 5.0
_LOOK_S = 900.0  # the wall clock may jump, and the machine may sleep
_HOLD_OFF_S, _HOLD_OFF_BLIND_S = 3600.0, 6 * 3600.0

_log = logging.getLogger(__name__)


class RenewalRefused(InputError):
    """The controller knows this certificate and gives no other for it."""


class Renewer:
    """Keeps one certificate alive. `draw` gives numbers in [0, 1)."""

    def __init__(self, url: str, ca: Path, cert: Path, key: Path, clock: Clock, draw: Callable[[], float] = random.random) -> None:
        self._place = parse_url(url)
        self._ca, self._cert, self._key = ca, cert, key
        self._clock = clock
        self._draw = draw
        self._share = DUE + _SPREAD * draw()
        self._poked = asyncio.Event()
        self._failures = 0
        self._unreached = False
        self.renewals = 0
        self.problem: str | None = None

    async def run(self) -> None:
        """Ends only by cancellation."""
        while True:
            due_s = await self._due_in_s()
            if due_s > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(min(due_s, _LOOK_S)):
                        await self._poked.wait()
                if not self._poked.is_set():
                    continue
            self._poked.clear()
            await self._pause(await self._attempt())

    async def _pause(self, seconds: float) -> None:
        """After a controller that was not reached a poke ends the pause: the broker is there again, and does not take the certificate."""
        await asyncio.sleep(min(seconds, _POKED_S) if self._unreached else seconds)
        if self._unreached and seconds > _POKED_S:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds - _POKED_S):
                    await self._poked.wait()

    def poke(self) -> None:
        """Says that the broker is not reached: maybe this clock is wrong, and the certificate has expired. Asks soon, and not often."""
        self._poked.set()

    async def renew(self) -> Validity:
        """Asks for a certificate and puts it in its place. Raises RenewalRefused, TransportError, DeadlineExceeded, InputError (files)."""
        context = await asyncio.to_thread(tls_context, str(self._ca), str(self._cert), str(self._key))
        status, answer = await ask(self._place, "POST", "/v1/renew", context, {})
        if status in (401, 403):
            raise RenewalRefused(f"{self._place.url} does not renew the certificate: {error_text(answer)}")
        text = answer.get("certificate") if isinstance(answer, dict) else None
        if status != 200 or not isinstance(text, str):
            raise TransportError(f"{self._place.url} answered {status} to the renewal: {error_text(answer)}")
        return await asyncio.to_thread(self._take, text)

    async def _due_in_s(self) -> float:
        """Seconds until the certificate should be renewed. A clock that is plainly behind cannot tell: then the controller is asked."""
        try:
            validity = await asyncio.to_thread(read_validity, self._cert)
        except InputError as err:
            self.problem = str(err)
            return _LOOK_S
        if self._blind(validity):
            return 0.0
        due_ns = validity.not_before_ns + int(self._share * validity.life_ns)
        return max(0.0, (due_ns - self._clock.now().wall_ns) / 1e9)

    def _blind(self, validity: Validity) -> bool:
        return self._clock.now().wall_ns < max(BUILD_WALL_NS, validity.not_before_ns)

    async def _attempt(self) -> float:
        """Seconds to wait before anything else is tried."""
        self._unreached = False
        try:
            validity = await self.renew()
        except RenewalRefused as err:
            self._fail(err)
            return _REFUSED_RETRY_S * (0.5 + self._draw())
        except (TransportError, DeadlineExceeded, InputError, OSError) as err:
            self._fail(err)
            self._unreached = True
            return full_jitter_s(self._failures - 1, _RETRY_BASE_S, _RETRY_MAX_S, self._draw) + 1.0
        self._failures, self.problem = 0, None
        self.renewals += 1
        self._share = DUE + _SPREAD * self._draw()
        _log.info("certificate_renewed not_after_wall_ns=%d", validity.not_after_ns)
        hold_off_s = _HOLD_OFF_BLIND_S if self._blind(validity) else _HOLD_OFF_S  # also a clock that is ahead asks no more often
        return min(hold_off_s, validity.life_ns / 12e9) * (1.0 + self._draw())

    def _fail(self, err: EdgeRuntimeError | OSError) -> None:
        self._failures += 1
        if str(err) != self.problem:
            _log.warning("certificate_not_renewed problem=%r", str(err))
        self.problem = str(err)

    def _take(self, pem: str) -> Validity:
        """Writes the certificate if it is for this gateway's key. Raises TransportError for any other."""
        tried = self._cert.with_name(f".{self._cert.name}.tried")
        try:
            validity = parse_validity(pem)
            replace(tried, pem.encode())
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(tried, self._key)
        except (ValueError, ssl.SSLError) as err:
            tried.unlink(missing_ok=True)
            raise TransportError(f"{self._place.url} answered the renewal with a certificate that is not for this key: {err}") from err
        tried.unlink()
        replace(self._cert, pem.encode())
        return validity


def open_renewer(settings: LinkSettings, clock: Clock) -> Renewer | None:
    """The renewer of a gateway that has joined a controller; None for one whose certificates are somebody else's care."""
    url, ca = settings.controller_url, settings.controller_ca or settings.ca
    if url is None or ca is None or settings.cert is None or settings.key is None:
        return None
    return Renewer(url, Path(ca), Path(settings.cert), Path(settings.key), clock)
