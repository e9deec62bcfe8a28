import pytest

from specedge_p2p.overlay.admission import Admission, AdmissionLimits, Place, address_group

LIMITS = AdmissionLimits(
    max_pending=4, max_pending_per_address=2, max_connections=6, max_connections_per_address=3
)


class Arrival:
    """One connection that arrived, and whether it was dropped since."""

    def __init__(self, admission: Admission, host: str | None) -> None:
        self.was_dropped = False
        self.place = admission.arrive(host, self.drop)

    def drop(self) -> None:
        self.was_dropped = True


def arrive(admission: Admission, host: str | None) -> Place | None:
    return Arrival(admission, host).place


def arrived(admission: Admission, host: str) -> Place:
    place = arrive(admission, host)
    assert place is not None
    return place


def test_law7_bounded_pending_of_one_address_drops_its_oldest() -> None:
    admission = Admission(LIMITS)
    hosts = ["10.0.0.9", "10.0.0.1", "10.0.0.1", "10.0.0.1"]
    arrivals = [Arrival(admission, host) for host in hosts]
    assert [arrival.was_dropped for arrival in arrivals] == [False, True, False, False]


def test_law7_bounded_pending_of_all_drops_the_oldest_so_nobody_is_kept_out() -> None:
    admission = Admission(LIMITS)
    arrivals = [Arrival(admission, f"10.0.{n}.1") for n in range(5)]
    assert [arrival.was_dropped for arrival in arrivals] == [True, *4 * [False]]
    assert arrivals[-1].place is not None


def test_law7_bounded_established_connections_of_one_address() -> None:
    admission = Admission(LIMITS)
    places = []
    for _ in range(3):
        places.append(arrived(admission, "10.0.0.1"))
        places[-1].establish()
    assert arrive(admission, "10.0.0.1") is None
    places[0].leave()
    assert arrive(admission, "10.0.0.1") is not None


def test_law7_bounded_connections_of_all() -> None:
    admission = Admission(LIMITS)
    places = [arrived(admission, f"10.0.{n}.1") for n in range(6)]
    for place in places:
        place.establish()
    assert arrive(admission, "10.1.0.1") is None
    for place in places:
        place.leave()
    assert admission.num_places == 0
    assert not admission.counts
    assert arrive(admission, "10.1.0.1") is not None


def test_loopback_is_limited_in_all_only() -> None:
    admission = Admission(LIMITS)
    for _ in range(6):
        arrived(admission, "127.0.0.1").establish()
    assert arrive(admission, "127.0.0.1") is None


@pytest.mark.parametrize(
    ("host", "group"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("127.9.9.9", "loopback"),
        ("::1", "loopback"),
        ("what", "unknown"),
        (None, "unknown"),
    ],
)
def test_machines_of_one_network_share_a_group(host: str | None, group: str) -> None:
    assert address_group(host) == group
