"""A clock that is set back an hour every few seconds, for every Python process that finds this file."""

import time

_time, _time_ns = time.time, time.time_ns
_begin = _time()


def _set_back() -> float:
    return 3600.0 * ((_time() - _begin) // 3.0)


time.time = lambda: _time() - _set_back()
time.time_ns = lambda: _time_ns() - int(_set_back() * 1e9)
