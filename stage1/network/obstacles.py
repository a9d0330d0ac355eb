"""What other people's firewalls do to pods' packets. A packet gets through when *every* table lets it: our own cannot
speak for it in a chain of somebody else's, and says so instead of leaving the user to wonder.

Chains that iptables-nft made are seen as nft shows them; those of the old iptables (iptables-legacy) are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from common.records import NamedTuple
from stage1.network import firewall, nft

_ENDINGS = ("reject", "drop")


class _Chain(NamedTuple):
    family: str
    table: str
    name: str
    policy: str

    def __str__(self) -> str:
        return f'chain "{self.name}" of table "{self.family} {self.table}"'


def foreign_obstacles(subnets: Iterable[str]) -> list[str]:
    """One line for every chain that may drop what is forwarded for pods in `subnets`, as far as can be told from its
    having no rule that mentions them, with what to do. NetworkError when nft(8) cannot be asked."""
    wanted = tuple(subnets)
    return [line for chain in _forwarding() if (line := _judge(chain, wanted))]


def _forwarding() -> Iterator[_Chain]:
    """Other people's base chains that forwarded packets pass."""
    for item in nft.listing("chains") or ():
        chain: dict[str, Any] = item.get("chain", {})
        if (
            chain.get("hook") == "forward"
            and chain.get("type") == "filter"
            and chain["family"] in ("ip", "ip6", "inet")
        ):
            found = _Chain(*(str(chain.get(name, "")) for name in _Chain._fields))
            if f"{found.family} {found.table}" != firewall.TABLE:
                yield found


def _judge(chain: _Chain, subnets: tuple[str, ...]) -> str:
    if chain.policy != "drop" and not _ends_in_refusal(chain):
        return ""
    lines = nft.text("table", chain.family, chain.table).splitlines()
    of_family = [each for each in subnets if chain.family in ("inet", _family(each))]
    concerned = [subnet for subnet in of_family if not _is_let_through(subnet, lines)]
    if not concerned:
        return ""
    published = "" if any("ct status dnat accept" in line for line in lines) else " and of their published ports"
    about = f"{chain} may be in the way of what pods in {' and '.join(concerned)} send{published}"
    return f"{about}: {_remedy(chain, lines, concerned)} lets it pass"


def _ends_in_refusal(chain: _Chain) -> bool:
    rules = [item["rule"] for item in nft.listing("chain", chain.family, chain.table, chain.name) or ()
             if "rule" in item]  # fmt: skip
    expressions = rules[-1].get("expr", ()) if rules else ()
    # Whatever it is: without a condition.
    return any(name in each for each in expressions for name in _ENDINGS) and not any(
        "match" in each for each in expressions
    )


def _is_let_through(subnet: str, lines: list[str]) -> bool:
    """There is a rule about the subnet that accepts, or sends it where firewalld accepts everything."""
    return any(subnet in line.split() and ("accept" in line.split() or "_trusted" in line) for line in lines)


def _remedy(chain: _Chain, lines: list[str], subnets: list[str]) -> str:
    text = "\n".join(lines)
    if "ufw-" in text or "ufw6-" in text:
        return " and ".join(f'"ufw route allow from {subnet}" and "ufw route allow to {subnet}"' for subnet in subnets)
    if chain.table == "firewalld":
        sources = " ".join(f"--add-source={subnet}" for subnet in subnets)
        return f'"firewall-cmd --permanent --zone=trusted {sources}" and "firewall-cmd --reload"'
    where = f"{chain.family} {chain.table} {'DOCKER-USER' if 'DOCKER-USER' in text else chain.name}"
    return " and ".join(
        f'"nft insert rule {where} {_family(subnet)} {direction} {subnet} accept"'
        for subnet in subnets for direction in ("saddr", "daddr")
    )  # fmt: skip


def _family(subnet: str) -> str:
    return "ip6" if ":" in subnet else "ip"
