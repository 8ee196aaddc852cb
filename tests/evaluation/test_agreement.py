"""AutoAttack agrees with pyautoattack on a few points; benchmarks/autoattack.py has the full table."""

from __future__ import annotations

import pytest
import torch

import bivallate as bv
from bivallate.evaluation import attack_and_score
from bivallate.evaluation.named_attacks import ensemble
from bivallate.lower.apgd import APGD
from bivallate.lower.fab import FAB
from bivallate.lower.square import Square

POINTS, STEPS, QUERIES, TARGETS = 50, 15, 100, 2
WHOLE = ensemble("whole", APGD(STEPS), FAB(STEPS), Square(QUERIES, edges=False), TARGETS)
STAGES = {stage.name: stage for stage in WHOLE.stages}


@pytest.fixture(scope="module")
def reference():
    return pytest.importorskip("pyautoattack", reason="needs the test extra pyautoattack").AutoAttack


def public(reference, model, points, threat, names):
    """Robust accuracy by the public code with the same budgets."""
    adversary = reference(model, norm=type(threat).__name__, eps=threat.eps, seed=0, version="standard")
    adversary.attacks_to_run, adversary.verbose = list(names), False
    adversary.apgd.n_iter = adversary.apgd_targeted.n_iter = adversary.fab.n_iter = STEPS
    for attack in (adversary.apgd, adversary.apgd_targeted):
        attack.n_iter_orig = STEPS
        attack.n_iter_2, attack.n_iter_min, attack.size_decr = int(0.22 * STEPS), 1, 1
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = TARGETS
    adversary.apgd.n_restarts = 1
    adversary.square.n_queries = QUERIES
    with torch.random.fork_rng():
        found, _ = adversary.run_standard_evaluation(*points, batch_size=POINTS)
    with torch.no_grad():
        return float((model(found).argmax(1) == points[1]).float().mean())


@pytest.mark.parametrize("threat", [bv.Linf(0.1), bv.L2(0.5), bv.L1(2.0)], ids=["linf", "l2", "l1"])
def test_stages_and_whole_agree_with_the_public_code(reference, robust_model, held_out, threat):
    points = held_out[0][:POINTS], held_out[1][:POINTS]
    robust_model.eval()
    try:
        clean = attack_and_score(robust_model, points, threat, "clean").clean_accuracy
        for name, stage in STAGES.items():
            ours = attack_and_score(robust_model, points, threat, stage).robust_accuracy
            theirs = public(reference, robust_model, points, threat, [name])
            assert theirs < clean, "the attack breaks something"
            assert abs(ours - theirs) <= 2 / POINTS + 1e-6, name
        whole = attack_and_score(robust_model, points, threat, WHOLE)
        assert whole.robust_accuracy <= public(reference, robust_model, points, threat, STAGES) + 1e-6
    finally:
        robust_model.train()
