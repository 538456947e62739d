"""Which proxy leads to a server? The environment's, but none to a server of one's own.

aiohttp would find it by itself, but it would take passwords of ~/.netrc along.
"""

from __future__ import annotations

import urllib.request
from urllib.parse import urlsplit


def proxies(address: str) -> dict[str, str]:
    """Return the proxies for an address, by the scheme of what is asked."""
    is_near = address.startswith("http://") or urllib.request.proxy_bypass(urlsplit(address).netloc)
    return {} if is_near else urllib.request.getproxies()
