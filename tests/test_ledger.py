"""The arithmetic of the ledger."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.ledger import Balance, DropReason, Ledger, total

counts = st.integers(0, 10**9)
drops = st.dictionaries(st.sampled_from([*map(str, DropReason), "rate_limit", "invalid"]), st.integers(1, 10**9))


@given(counts, counts, drops)
def test_balances_exactly_when_every_record_is_accounted_for(delivered: int, pending: int, dropped: dict[str, int]) -> None:
    offered = delivered + pending + sum(dropped.values())
    assert Ledger(offered, delivered, pending, dropped).balanced
    assert not Ledger(offered + 1, delivered, pending, dropped).balanced


@given(st.lists(st.tuples(counts, counts, drops)))
def test_a_sum_of_balanced_balances_is_balanced(parts: list[tuple[int, int, dict[str, int]]]) -> None:
    balances = [Balance(d + p + sum(lost.values()), d, p, lost) for d, p, lost in parts]
    assert total(balances).ledger().balanced


def test_the_document_names_every_reason_in_order() -> None:
    document = Ledger(10, 4, 1, {"store_full": 2, "evicted": 3}).as_dict()
    assert document == {"offered": 10, "delivered": 4, "pending": 1, "dropped": {"evicted": 3, "store_full": 2}, "balanced": True}
    assert list(document["dropped"]) == ["evicted", "store_full"]


def test_a_drop_of_nothing_names_no_reason() -> None:
    balance = Balance()
    balance.drop("evicted", 0)
    assert balance.dropped == {}


def test_what_is_not_settled_yet_is_pending() -> None:
    assert Balance(offered=3, stored=3).ledger(extra_offered=2, extra_pending=2).balanced
