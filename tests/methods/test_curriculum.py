"""Curriculum AT: its levels, batch mixing, and the published rule of advance."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tests.methods.glue import EPS, THREAT, Net, agree, draws, facts, gap, minibatches, problem_of, train
from tests.reference import adaptive
from torch import Tensor, nn

import bivallate as bv
from bivallate import PGD, UserError, methods
from bivallate.lower.curriculum import BatchMixing, BoundBatchMixing, Levels, Then
from bivallate.lower.modes import attacking
from bivallate.lower.start import zero
from bivallate.noise import Noise
from bivallate.types import Batch, Clock

EPOCHS = [0, 6, 11]  # of 12: threshold c_max, 0.4 c_max, 0


# Curriculum AT


def test_curriculum_reference() -> None:
    for steps in (3, 10):
        method = methods.curriculum(THREAT, steps=steps)
        reference = partial(adaptive.curriculum, epochs=EPOCHS, control_epoch=10, steps=steps)
        agree(method, reference, epoch=EPOCHS, epochs=12)


def test_fgsm_then_pgd_is_each_in_its_epochs() -> None:
    fgsm, pgd = PGD(1, EPS, zero), PGD(3, EPS / 4)
    both, data = methods.at(THREAT).but(solver=Then(fgsm, pgd, 1 / 6)), minibatches()
    assert bv.Method.from_dict(both.to_dict()) == both
    for epoch, solver in ((0, fgsm), (1, fgsm), (2, pgd), (11, pgd)):
        ends = [
            train(Net(), m, data, epoch=epoch, epochs=12).model
            for m in (both, methods.at(THREAT).but(solver=solver))
        ]
        assert gap(*ends) == 0, epoch
    with pytest.raises(UserError, match="share must be at least 0 and at most 1, got 2"):
        Then(fgsm, pgd, 2)


def test_levels_share_the_epochs() -> None:
    levels = [int(Levels(10)(Clock(epoch=e, epochs=120))) for e in range(120)]
    assert levels == [min(10, e * 11 // 100) for e in range(120)]


def cai_draws(levels: list[int], epochs: list[int]) -> Callable[..., Tensor]:
    """The package's draws, with the factor of each part given to its rows."""
    ours = draws(0, epochs)

    def draw(purpose: str, step: int, like: Tensor, index: Tensor) -> Tensor:
        if purpose != "factor:uniform":
            return ours(purpose, step, like, index)
        order = ours("part:uniform", step, like, index).argsort(stable=True)
        size, factor = len(index) // (levels[step] + 1), torch.zeros(len(index), dtype=torch.float64)
        for place, row in enumerate(order.tolist()):
            j = min(place // size, levels[step]) if size else levels[step]
            noise = Noise(0, torch.tensor([step]), epochs[step])
            factor[row] = noise.uniform(f"factor/{j}", (), torch.float64)[0]
        return factor

    return draw


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_batch_mixing_reference(mode: Any) -> None:
    epochs, levels = [0, 1, 2, 3], [0, 1, 2, 3]
    method = methods.curriculum(
        THREAT, mode="cai", patience=0, threshold=0.0, held_out=False, attack_mode=mode
    )

    def reference(model: nn.Module, batches: Any, _: Any, **hyper: Any) -> Any:
        return adaptive.curriculum_cai(model, batches, cai_draws(levels, epochs), levels=levels, **hyper)

    left = agree(
        method, reference, batches=minibatches((9, 9, 10, 7)), epoch=epochs, epochs=4, attack_mode=mode
    )
    assert [r.logged["level"] for r in left.records] == levels


def test_a_minibatch_smaller_than_its_parts_is_attacked_at_the_last_level() -> None:
    model = Net()
    problem = problem_of(model, size=2)
    solver = BatchMixing(highest=5).bind(facts())
    assert isinstance(solver, BoundBatchMixing)
    solver.level = 5
    with attacking(model, "eval"):
        solution = solver.solve(problem)
    assert (solution.evaluations == 5).all()


def test_the_level_rule_is_the_published_one_on_one_accuracy() -> None:
    generator = torch.Generator().manual_seed(3)
    accuracies = (0.8 + 0.2 * torch.rand(120, generator=generator)).tolist()
    for patience, threshold in ((10, 0.9), (3, 0.95), (1, 0.0)):
        solver = BatchMixing(highest=1000, patience=patience, threshold=threshold).bind(facts())
        found = []
        for epoch, accuracy in enumerate(accuracies):
            solver.epoch = epoch
            solver.advance(accuracy)
            found.append(solver.level)
        expected = [level for level, _ in adaptive.cai_levels(accuracies, accuracies, patience, threshold)]
        assert found == expected
        assert found[-1] >= 2, "the rule was put to work"


def test_the_level_rule_on_held_out_data_is_the_published_one() -> None:
    generator = torch.Generator().manual_seed(5)
    trained, held = (0.8 + 0.2 * torch.rand(2, 120, generator=generator)).tolist()
    solver = BatchMixing(highest=1000, patience=3, held_out=True).bind(facts())
    found: list[tuple[int, int | None]] = []
    for epoch, pair in enumerate(zip(held, trained, strict=True)):
        best_epoch, (_, rises) = solver.best_epoch, solver.outcome(*pair, epoch)
        if rises:
            solver.rise(solver.level + 1, epoch)
        found.append((solver.level, best_epoch if rises else None))
    assert found == adaptive.cai_levels(trained, held, patience=3)
    assert found[-1][0] >= 2, "the rule was put to work"


def test_the_level_rule_measures_itself_and_resumes() -> None:
    method = methods.curriculum(THREAT, mode="cai", patience=1, threshold=0.0, held_out=False)
    data, epochs = minibatches((6, 6, 6, 3)), [0, 1, 2, 3]

    def run(stop: int | None) -> tuple[bv.method.BoundMethod, nn.Module]:
        model, bound = Net(), method.bind(facts(30))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for t, epoch in enumerate(epochs):
            if t == stop:
                state, bound = bound.state_dict(), method.bind(facts(30))
                bound.load_state_dict(copy.deepcopy(state))
            bv.train_step(model.train(), optimizer, bound, Batch(*data[t]), Clock(epoch, 4, t, 1))
        return bound, model

    whole, model = run(None)
    parted, resumed = run(2)
    assert gap(model, resumed) == 0
    assert whole.state_dict()["solver._extra_state"] == parted.state_dict()["solver._extra_state"]
    assert whole.state_dict()["solver.counts"].tolist()[1] == 3, "of the last epoch alone"


def test_batch_mixing_refuses_what_it_cannot_hear() -> None:
    mixing = methods.curriculum(THREAT, mode="cai")
    with pytest.raises(UserError, match="needs the coupling Detached"):
        mixing.but(coupling=bv.LastStep(0.1))
    with pytest.raises(UserError, match="second stream"):
        mixing.but(weighting=NeedsMeta())
    with pytest.raises(UserError, match="belongs to one run"):
        mixing.solver.solve(problem_of(Net()))


class NeedsMeta(bv.Equal):
    needs_meta = True


def test_curriculum_costs_its_level() -> None:
    records = train(Net(), methods.curriculum(THREAT), minibatches(), epoch=EPOCHS, epochs=12).records
    assert [r.passes.forward // r.examples for r in records] == [1, 7, 11]
    assert [r.passes.backward // r.examples for r in records] == [1, 7, 11]
