"""docs/faults.md tells of the tests that there are."""

from tests import fault_table


def test_the_published_table_is_current() -> None:
    assert fault_table.written() == fault_table.table(), "python -m tests.fault_table writes it"
