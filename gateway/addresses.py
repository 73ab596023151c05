"""Which client a connection is of, where load balancers stand in between: [P] pure.

What a request says of its sender (``X-Forwarded-For``) is believed only of a peer that is listed as a load
balancer, and only what the last of them added: all before it anybody can write.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from backplane.errors import ConfigurationError

_HOPS = 16
_IPV6_SITE = 64  # a client has a whole network of this length, so it counts as one address


class Proxies:
    """The load balancers of a deployment.

    Args:
        text: addresses and networks, with commas between them.

    Raises:
        ConfigurationError: one of them is none.
    """

    def __init__(self, text: str) -> None:
        self._networks: list[IPv4Network | IPv6Network] = []
        for part in filter(None, map(str.strip, text.split(","))):
            try:
                self._networks.append(ip_network(part, strict=False))
            except ValueError:
                raise ConfigurationError(
                    f"TRUSTED_PROXIES: {part!r} is no address and no network such as 10.0.0.0/8"
                ) from None

    def client(self, peer: str | None, forwarded: str | None) -> str | None:
        """The address that limits per address count.

        Args:
            peer: the other end of the connection; None if it has no address.
            forwarded: the request's ``X-Forwarded-For``.

        Returns:
            The client's address (of IPv6 its network); None if it is not known: a private peer that is not
            listed may be a load balancer with all clients behind it.
        """
        address = _parse(peer)
        if address is None:
            return None
        if not self._trusts(address):
            return _counted(address) if address.is_global else None
        for hop in reversed((forwarded or "").split(",")[-_HOPS:]):
            said = _parse(hop.strip())
            if said is None:
                return None
            if not self._trusts(said):
                return _counted(said)
        return None

    def _trusts(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)


def _parse(text: str | None) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text or "")
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _counted(address: IPv4Address | IPv6Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    return str(ip_network((int(address), _IPV6_SITE), strict=False).network_address)
