"""How somebody else gets a token: by a code that the owner is shown, once, for a few minutes."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from comfyfleet.api.routes import CODE_ALPHABET, CODE_LENGTH
from comfyfleet.errors import AccessError

#: How long a code is valid, in seconds, and how many wrong ones may be tried meanwhile.
VALID_S = 300.0
_MAX_WRONG = 5

_T = TypeVar("_T")


class Pairing:
    """The one code that is out, if any. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._code, self._end, self._wrong = "", 0.0, 0

    def new_code(self) -> str:
        """A new code, valid for VALID_S; one that was out is void."""
        with self._lock:
            self._code = "".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_LENGTH))
            self._end, self._wrong = self._clock() + VALID_S, 0
            return self._code

    def redeem(self, code: str, make: Callable[[], _T]) -> _T:
        """What ``make`` gives, for the right code, which is void then; if it raises, it is not.

        Raises AccessError (403), the same one whatever is wrong with the code.
        """
        with self._lock:
            if not self._is_right(code):
                raise AccessError(
                    403,
                    "this code is not valid, or no longer: the owner gets a new one by "
                    "`comfyfleet pair` on the machine of this ComfyUI.",
                )
            made = make()
            self._code = ""
            return made

    def _is_right(self, code: str) -> bool:
        if not self._code or self._clock() >= self._end:
            self._code = ""
            return False
        if hmac.compare_digest(code.encode(), self._code.encode()):
            return True
        self._wrong += 1
        if self._wrong >= _MAX_WRONG:
            self._code = ""
        return False


class Failures:
    """Counts what failed, for each address, over the last while. Of one thread."""

    def __init__(
        self,
        most: int = 20,
        window_s: float = 60.0,
        max_addresses: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most, self._window_s, self._max_addresses = most, window_s, max_addresses
        self._clock = clock
        self._times: dict[str, deque[float]] = {}

    def add(self, address: str) -> None:
        """Something failed now. The address that failed longest ago gives way to a new one."""
        times = self._times.pop(address, deque(maxlen=self._most))
        times.append(self._clock())
        self._times[address] = times
        if len(self._times) > self._max_addresses:
            del self._times[next(iter(self._times))]

    def wait_s(self, address: str) -> float:
        """Seconds until this address may fail again; 0 if it may now."""
        times = self._times.get(address)
        if times is None or len(times) < self._most:
            return 0.0
        return max(0.0, times[0] + self._window_s - self._clock())
