from lit_methods.softmax_approximation.coverage import MIB, Coverage, Row


def _coverage() -> Coverage:
    coverage = Coverage()
    coverage.add(Row("a", "multihead", "log4", 10 * MIB, MIB))
    coverage.add(Row("b", "saved tensors", "log4", 6 * MIB, MIB))
    coverage.add(Row("b", "saved tensors", "log4", 4 * MIB, 0))
    coverage.add(Row("c", note="rows of 10 keys only", before=5 * MIB))
    coverage.total = 12 * MIB
    return coverage


def test_sums() -> None:
    coverage = _coverage()
    assert (coverage.before, coverage.after, coverage.uncovered) == (20 * MIB, 2 * MIB, 5 * MIB)
    assert coverage.any
    assert coverage.figures() == {
        "memory/softmax_before_mib": 20.0,
        "memory/softmax_after_mib": 2.0,
        "memory/softmax_factor": 10.0,
        "memory/uncovered_mib": 5.0,
        "memory/saved_before_mib": 30.0,
        "memory/saved_after_mib": 12.0,
    }


def test_a_module_that_is_called_twice_has_one_line() -> None:
    assert _coverage().table() == [
        ("a", "multihead", "log4", 10 * MIB, MIB, ""),
        ("b", "saved tensors", "log4", 10 * MIB, MIB, ""),
        ("c", "not covered", "", 5 * MIB, 0, "rows of 10 keys only"),
    ]


def test_words() -> None:
    text = _coverage().describe()
    for words in (
        "a       multihead      log4   10.00 MiB  1.00 MiB",
        "c       not covered           5.00 MiB   0.00 MiB  rows of 10 keys only",
        "covered: 20.00 MiB before, 2.00 MiB now, 10.0 times less",
        "the whole model keeps 30.00 MiB before, 12.00 MiB now",
        "not covered: 5.00 MiB, 20% of what was found",
        "codec='recompute' keeps less still",
    ):
        assert words in text


def test_advice_names_who_needs_no_help() -> None:
    coverage = Coverage()
    for name in "abcd":
        coverage.add(Row(name, "multihead", "log4", 0, MIB))
    (advice,) = coverage.advice()
    assert advice.startswith("a, b, c and 1 more kept no more before than now")
    coverage = Coverage()
    coverage.add(Row("a", "multihead", "recompute", 0, 0, "inside activation checkpointing"))
    assert any("second forward pass only" in sentence for sentence in coverage.advice())


def test_nothing_found() -> None:
    coverage = Coverage()
    assert not coverage.any
    assert coverage.table() == []
    assert "memory/softmax_factor" not in coverage.figures()
