"""What pods are attached with, on a kernel as Debian has it; run there by tests/vm/test_guest.py."""

from __future__ import annotations

from tests.host.test_links import PTP, Site, addresses, on_the_uplink, seconds
from tests.host.test_links import site as site
from tests.host.test_links import test_a_dead_pods_route_is_replaced as test_a_dead_pods_route_is_replaced
from tests.host.test_links import test_bandwidth_is_limited_either_way as test_bandwidth_is_limited_either_way
from tests.host.test_links import test_bridge_goes_with_its_last_pod as test_bridge_goes_with_its_last_pod
from tests.host.test_links import test_bridge_pods_are_on_one_wire as test_bridge_pods_are_on_one_wire
from tests.host.test_links import test_ipvlan_or_one_line as test_ipvlan_or_one_line
from tests.host.test_links import test_isolated_ports_reach_the_host_alone as test_isolated_ports_reach_the_host_alone
from tests.host.test_links import test_ptp_is_usable_at_once as test_ptp_is_usable_at_once
from tests.host.test_links import test_ptp_result_and_host_end as test_ptp_result_and_host_end
from tests.host.test_links import test_tuning as test_tuning


def test_there_is_ipvlan(site: Site) -> None:
    pod, conf = site.pod(), on_the_uplink("ipvlan")
    site.check(pod, conf, site.add(pod, conf))


def test_bandwidth_is_limited_for_who_could_lift_it(site: Site) -> None:
    """An app with CAP_NET_ADMIN takes the queue away. A megabyte takes a second, if all went well."""
    pod = site.pod()
    result = site.add(pod, PTP)
    limit = {"type": "bandwidth", "name": "default", "prevResult": result, "egressRate": 8_000_000}
    site.add(pod, limit)
    site.lab.run(pod.name, "tc", "qdisc", "del", "dev", "eth0", "root")
    assert seconds(site, pod.name, "host", "172.16.28.1", 1_000_000) > 0.7
    assert seconds(site, "host", pod.name, addresses(result)[0], 1_000_000)
