"""Intervals that hold what they promise, and what a bootstrap promises and does not hold."""

import pytest
import torch

from ddpm_lib.evaluation.intervals import Measured, jackknife_std, measured, over_seeds, seed_variances, share_interval
from ddpm_lib.evaluation.memorised import copying_score, share_below
from ddpm_lib.evaluation.metrics import frechet_distance


def cloud(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_number_prints_all_that_belongs_to_it():
    number = Measured("precision", 0.8127, 0.78, 0.84, "95 %, Wilson", "raw pixels", 1437, 500)
    text = "precision 0.813 [0.780, 0.840] (95 %, Wilson; raw pixels; 500 against 1,437)"
    assert str(number) == text
    assert str(Measured("a", 3.0, 3.0, 3.0, "of one")) == "a 3.000 [3.000, 3.000] (of one)"
    assert "a 0.0 [0.0, 1.2]" in str(Measured("a", -0.01, -0.04, 1.2, ""))  # no −0.0
    assert "12346 [12300, 12400]" in str(Measured("a", 12345.6, 12300.0, 12400.0, ""))


def test_numbers_differ_when_their_distance_is_more_than_both_intervals_explain():
    a, b = Measured("a", 1.0, 0.7, 1.3, ""), Measured("b", 1.49, 1.09, 1.89, "")
    assert not a.differs_from(b) and not b.differs_from(a)  # the root of 0.3² + 0.4² is 0.5
    assert a.differs_from(Measured("b", 1.51, 1.11, 1.91, ""))
    long, longer = Measured("a", 1.0, 0.0, 1.3, ""), Measured("b", 1.51, 1.11, 3.0, "")
    assert long.differs_from(longer) and longer.differs_from(long)  # the sides that face each other count, no others
    far, farther = Measured("a", 1.0, 0.9, 2.0, ""), Measured("b", 1.51, 0.5, 1.6, "")
    assert not far.differs_from(farther) and not farther.differs_from(far)


def test_the_jackknife_covers_the_frechet_distance_where_the_percentiles_of_a_bootstrap_do_not():
    n, d, tries = 60, 8, 40
    real = cloud(n, d, 10_000)

    def metric(x):
        return frechet_distance(real, x)

    mean = sum(metric(cloud(n, d, seed)) for seed in range(200)) / 200
    inside = {"jackknife": 0, "percentiles": 0}
    for seed in range(tries):
        x, g = cloud(n, d, 1000 + seed), torch.Generator().manual_seed(seed)
        number = measured("distance", metric, x)
        inside["jackknife"] += number.low <= mean <= number.high
        again = torch.tensor([metric(x[torch.randint(n, (n,), generator=g)]) for _ in range(40)])
        inside["percentiles"] += bool(again.quantile(0.025) <= mean <= again.quantile(0.975))
    assert inside["jackknife"] >= 33 and inside["percentiles"] <= 20, inside


def test_groups_are_random_so_that_sorted_samples_do_no_harm():
    labels = torch.arange(10, dtype=torch.float64).repeat_interleave(20)[:, None]

    def mean(x):
        return float(x.mean())

    sorted_, mixed = jackknife_std(mean, labels), jackknife_std(mean, labels[torch.randperm(200)])
    assert 0.5 < sorted_ / mixed < 2
    alike = [float(part.mean()) for part in labels.tensor_split(20)]  # groups of one label each
    assert torch.tensor(alike).std() / 20**0.5 > 2 * sorted_


def test_few_groups_few_seeds_and_impossible_shares_are_refused():
    for groups in (1, 5):
        with pytest.raises(ValueError, match="groups"):
            jackknife_std(lambda x: 0.0, torch.zeros(4, 1), groups)
    for hits, n, level in ((-1, 3, 0.9), (4, 3, 0.9), (0, 0, 0.9), (1, 3, 1.0)):
        with pytest.raises(ValueError, match="expected 0 <= hits <= n"):
            share_interval(hits, n, level)
    for values in (torch.zeros(1, 3), torch.zeros(3, 1), torch.zeros(3)):
        with pytest.raises(ValueError, match="two of each"):
            seed_variances(values)
    with pytest.raises(ValueError, match="got 1"):
        over_seeds("a", [1.0])


def test_over_seeds_is_student_s_interval():
    number = over_seeds("distance", [1.0, 2.0, 3.0])
    assert number.value == 2 and number.high - 2 == pytest.approx(4.3026527 / 3**0.5, rel=1e-6)


def test_copies_are_told_from_samples_by_held_out_images():
    train, held_out, new = cloud(300, 4), cloud(200, 4, 1), cloud(150, 4, 2)
    assert abs(copying_score(new, held_out, train)[0]) < 3
    copies = torch.cat([train[:15] + 1e-3, new[15:]])  # one in ten
    assert copying_score(train[:150] + 1e-3, held_out, train)[1] > 0.99
    assert share_below(copies, held_out, train) > 0.1 and share_below(new, held_out, train) < 0.1
    with pytest.raises(ValueError, match="empty set"):
        copying_score(new[:0], held_out, train)


def test_where_the_counts_of_labels_are_fixed_they_are_no_part_of_the_deviation():
    """Independent route: the spread over fresh draws of so many of each class, and of draws with random labels."""
    generator, labels = torch.Generator().manual_seed(0), torch.arange(240) % 4

    def drawn(y):
        return 10.0 * y[:, None] + torch.randn(len(y), 1, generator=generator)

    def mean(x):
        return float(x.mean())

    fixed = torch.tensor([mean(drawn(labels)) for _ in range(400)]).std()
    free = torch.tensor([mean(drawn(torch.randint(4, (240,), generator=generator))) for _ in range(400)]).std()
    stratified = [jackknife_std(mean, drawn(labels), seed=i, strata=labels) for i in range(20)]
    plain = [jackknife_std(mean, drawn(labels), seed=i) for i in range(20)]
    assert sum(stratified) / 20 == pytest.approx(float(fixed), rel=0.15)
    assert sum(plain) / 20 == pytest.approx(float(free), rel=0.15) and free > 10 * fixed
    with pytest.raises(ValueError, match="20 groups to divide the count of every label"):
        jackknife_std(mean, drawn(labels), strata=labels.clamp(min=1)[:-1])
