"""The checks of an audit, each computed from which points every attack of the battery left robust."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from bivallate.audits.battery import BLACK, Battery
from bivallate.audits.exact_tests import below, excess, gap
from bivallate.audits.model_checks import accuracy, learned, symptoms
from bivallate.audits.result import GAP_FLAG, WEAK_SHARE, Check
from bivallate.evaluation.preflight import Preflight
from bivallate.evaluation.statistics import wilson

__all__ = ["attack_checks", "claim_check"]

SLACK = 0.01  # share of points by which chance may let a weaker attack beat a stronger one
COLLAPSE = 0.4  # a collapsed model keeps at least this share of its clean accuracy under FGSM, others less
CLEARLY = 0.6  # and without a claim at least this share, which no plain training is seen to keep
REMAINS = 0.25  # PGD leaves a collapsed model at most this share of its accuracy under FGSM
FALLEN = 0.2  # a loss of robust accuracy within one epoch that is worth a remark


def attack_checks(
    battery: Battery, preflight: Preflight, history: list[dict[str, Any]] | None, *, claimed: bool = False
) -> Iterator[Check]:
    """Yield every check except `claim_check`.

    Args:
        battery: with all its attacks run.
        preflight: the findings on model and data.
        history: a run's metrics, one dictionary an epoch; without them its check is left out.
        claimed: whether a robust accuracy was claimed.
    """
    yield learned(battery)
    yield symptoms(battery, preflight)
    yield from _order(battery)
    yield _restarts(battery)
    yield _radii(battery)
    yield _any_image(battery)
    yield _subtle(battery)
    yield _noise(battery)
    yield from _black(battery)
    yield _rescaled(battery)
    yield _straight(battery)
    yield _collapse(battery, claimed)
    if history:
        yield _history(history)


ORDER = (
    ("fgsm", "pgd", "PGD does no worse than FGSM"),
    ("pgd-few", "pgd-more", "more steps never help the defender"),
    ("pgd", "apgd-ce", "Auto-PGD does no worse than PGD"),
)


def _order(battery: Battery) -> Iterator[Check]:
    """Check that no stronger attack breaks fewer points than a weaker one."""
    for weaker, stronger, question in ORDER:
        by, than = battery.left[weaker], battery.left[stronger]
        found = excess(by, than, SLACK)
        numbers = {
            weaker: accuracy(by),
            stronger: accuracy(than),
            "lead_of_the_weaker": found.share,
            "interval_95": list(found.interval),
        }
        text = f"{weaker} leaves {accuracy(by):.1%}, {stronger} {accuracy(than):.1%}"
        yield Check(
            f"{weaker}<={stronger}",
            question,
            "flag" if found.significant else "pass",
            numbers,
            text,
            "The gradients mislead: use losses that ignore scale, and Square" if found.significant else "",
        )


def _restarts(battery: Battery) -> Check:
    found = gap(battery.left["pgd"], battery.left["pgd-restarts"], GAP_FLAG)
    one, many = accuracy(battery.left["pgd"]), accuracy(battery.left["pgd-restarts"])
    numbers = {"one": one, "many": many, "gain": found.share, "interval_95": list(found.interval)}
    text = f"one start leaves {one:.1%}, {battery.plan.restarts} leave {many:.1%}"
    advice = "The loss is rugged: report many restarts, or AutoAttack" if found.significant else ""
    question = "is one random start nearly as good as many?"
    return Check("restarts", question, "flag" if found.significant else "pass", numbers, text, advice)


def _radii(battery: Battery) -> Check:
    pairs = (("half-eps", "pgd"), ("pgd", "double-eps"))
    steps = [excess(battery.left[small], battery.left[large], SLACK) for small, large in pairs]
    values = {name: accuracy(battery.left[name]) for name in ("half-eps", "pgd", "double-eps")}
    wrong = any(step.significant for step in steps)
    text = "eps/2, eps, 2 eps leave " + ", ".join(f"{v:.1%}" for v in values.values())
    numbers = values | {"leads_of_the_smaller": [step.share for step in steps]}
    advice = "PGD is lost in flat or rugged regions: trust only attacks that do not follow gradients"
    question = "does a larger radius never help the defender?"
    return Check("radius", question, "flag" if wrong else "pass", numbers, text, advice if wrong else "")


def _any_image(battery: Battery) -> Check:
    left = battery.left["any-image"]
    hits, n = int(left.sum()), len(left)
    found = gap(left, left & False, GAP_FLAG)  # compared with an attack that leaves no point
    numbers = {"accuracy": hits / n, "interval_95": list(wilson(hits, n))}
    text = f"{hits / n:.1%} left where every image may become any other"
    advice = "An attack that fails here fails because it sees no gradient, not because the model is robust"
    question = "does accuracy go to zero as eps grows?"
    bad = found.significant
    return Check("any-image", question, "flag" if bad else "pass", numbers, text, advice if bad else "")


def _subtle(battery: Battery) -> Check:
    score = battery.scores["subtle"]
    found = gap(score.clean, score.robust, 0.02)
    numbers = {
        "clean": score.clean_accuracy,
        "nudged": score.robust_accuracy,
        "interval_95": list(found.interval),
    }
    text = f"noise of eps {score.threat.eps:.2g} takes {found.share:.1%}"
    advice = "The accuracy hangs on exact pixel values: look for a lookup or a detector of the test points"
    question = "does noise far below a grey level leave the accuracy alone?"
    bad = found.significant
    return Check("subtle-noise", question, "flag" if bad else "pass", numbers, text, advice if bad else "")


def _noise(battery: Battery) -> Check:
    noise, white = battery.left["noise"], battery.white
    found = gap(white, noise, SLACK)
    ahead = excess(noise, battery.left["pgd-few"], SLACK)
    numbers = {
        "noise": accuracy(noise),
        "pgd-few": accuracy(battery.left["pgd-few"]),
        "broken_by_noise_alone": found.share,
        "interval_95": list(found.interval),
    }
    bad = found.significant or ahead.significant
    text = f"10 random draws leave {accuracy(noise):.1%}, and break {found.share:.1%} that no gradient does"
    advice = "Gradients that lose to chance are masked: run Square with many queries" if bad else ""
    question = "is random noise no better than gradients?"
    return Check("noise", question, "flag" if bad else "pass", numbers, text, advice)


def _black(battery: Battery) -> Iterator[Check]:
    """Check that attacks without the model's gradients find nothing that those with them miss."""
    white = battery.white
    for name in BLACK:
        if name not in battery.left:
            advice = "Name models trained on the same data: --against RUN, surrogates="
            yield Check(
                name, "do white-box attacks beat transfer?", "skipped", {}, "no surrogate given", advice
            )
            continue
        left = battery.left[name]
        alone, ahead = gap(white, left, SLACK), excess(left, white, SLACK)
        bad = alone.significant or ahead.significant
        numbers = {
            name: accuracy(left),
            "white": accuracy(white),
            "broken_by_it_alone": alone.share,
            "interval_95": list(alone.interval),
        }
        text = (
            f"it leaves {accuracy(left):.1%}, gradients {accuracy(white):.1%}; {alone.share:.1%} are its own"
        )
        advice = "Gradients are masked: report the attack that does not use them" if bad else ""
        question = f"do white-box attacks beat {name}?"
        yield Check(name, question, "flag" if bad else "pass", numbers, text, advice)


def _rescaled(battery: Battery) -> Check:
    found = excess(battery.left["rescaled"], battery.left["pgd"], GAP_FLAG)
    before, after = accuracy(battery.left["pgd"]), accuracy(battery.left["rescaled"])
    numbers = {
        "as_it_is": before,
        "rescaled": after,
        "gain": found.share,
        "interval_95": list(found.interval),
    }
    text = f"PGD leaves {before:.1%}, with logits brought to a margin of 1 {after:.1%}"
    advice = "The logits' scale hides the gradient: evaluate with DLR losses (autoattack)"
    question = "does rescaling the logits change nothing?"
    bad = found.significant
    return Check("rescaled", question, "flag" if bad else "pass", numbers, text, advice if bad else "")


def _straight(battery: Battery) -> Check:
    found = gap(battery.white, battery.left["straight"], SLACK)
    left = accuracy(battery.left["straight"])
    numbers = {"straight": left, "broken_by_it_alone": found.share, "interval_95": list(found.interval)}
    text = f"gradients through rounding and detaching leave {left:.1%}; {found.share:.1%} are theirs alone"
    advice = "A layer stops the gradient: report an attack that goes through it as the identity"
    question = "do gradients that ignore rounding and detaching find nothing new?"
    bad = found.significant
    return Check("straight", question, "flag" if bad else "pass", numbers, text, advice if bad else "")


def _collapse(battery: Battery, claimed: bool) -> Check:
    clean = battery.scores["fgsm"].clean
    fgsm, pgd = battery.left["fgsm"], battery.left["pgd"]
    full, strong, whole = accuracy(fgsm), accuracy(pgd), accuracy(clean)
    between = gap(fgsm, battery.left["fgsm-short"], GAP_FLAG)
    drop = gap(fgsm, pgd, 0.5 * full)
    numbers = {
        "clean": whole,
        "fgsm": full,
        "pgd": strong,
        "interval_95": list(drop.interval),
        "broken_by_shorter_steps_only": between.share,
    }
    bad = full >= COLLAPSE * whole and strong <= REMAINS * full and drop.significant
    text = f"FGSM leaves {full:.1%}, PGD {strong:.1%}"
    if between.significant:
        text += f"; shorter steps break {between.share:.1%} that the full step does not"
    advice = (
        "Catastrophic overfitting to one-step attacks: train with N-FGSM, GradAlign or PGD, or stop earlier"
    )
    question = "is the model robust beyond the one-step attack?"
    plain = not claimed and full < CLEARLY * whole  # plain training withstands one long step so far
    outcome = "pass" if not bad else "note" if plain else "broken"
    return Check("one-step", question, outcome, numbers, text, advice if bad and not plain else "")


def _history(history: list[dict[str, Any]]) -> Check:
    robust = [float(line["robust"]) for line in history if "robust" in line]
    falls = [(a - b, i + 2) for i, (a, b) in enumerate(itertools.pairwise(robust))]
    worst, epoch = max(falls, default=(0.0, 0))
    numbers = {"largest_fall": worst, "epoch": epoch, "best": max(robust, default=0.0)}
    question = "did held-out robustness hold through training?"
    if worst <= FALLEN:
        return Check("history", question, "pass", numbers, "no epoch lost more than a fifth")
    advice = f"Compare the weights best and last; the method lost its robustness in epoch {epoch}"
    return Check("history", question, "note", numbers, f"epoch {epoch} lost {worst:.1%}", advice)


def claim_check(battery: Battery, claimed: float | None, source: str) -> Check:
    """Compare the claimed robust accuracy with what all attacks together leave.

    Without a claim, the accuracy after plain PGD takes its place. If that is below `WEAK_SHARE` of the clean
    accuracy, a gap is no refutation: it is a flag if PGD leaves at least twice what all attacks leave, else
    a note.

    Args:
        battery: with all its attacks run.
        claimed: a robust accuracy in [0, 1].
        source: where it comes from, as the finding names it.
    """
    pgd, worst = battery.left["pgd"], battery.worst
    n, hits = len(worst), int(worst.sum())
    found = gap(pgd, worst, GAP_FLAG)
    claim = accuracy(pgd) if claimed is None else claimed
    bad = found.significant if claimed is None else below(hits, n, claim - GAP_FLAG)
    numbers = {
        "claimed": claim,
        "worst": hits / n,
        "worst_interval_95": list(wilson(hits, n)),
        "pgd_gap": found.share,
        "pgd_gap_interval_95": list(found.interval),
    }
    text = (
        f"{source} says {claim:.1%}; all attacks together leave {hits / n:.1%} ({found.share:.1%} below PGD)"
    )
    advice = "Report the strongest attack, not PGD: `bivallate evaluate RUN --attack autoattack`"
    question = "is the accuracy within 5 points of what the strongest attack leaves?"
    modest = claimed is None and claim < WEAK_SHARE * battery.scores["pgd"].clean_accuracy
    if bad:
        outcome = "broken" if not modest else "flag" if claim >= 2 * hits / n else "note"
    else:
        outcome = "note" if found.significant else "pass"
    return Check("claim", question, outcome, numbers, text, advice if outcome != "pass" else "")
