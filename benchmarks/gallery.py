"""Make the gallery of docs/gallery.md from three methods on digits: `python -m benchmarks.gallery`.

Writes docs/gallery.md and docs/figures/gallery/*.svg; the runs, the data of the figures and their other
formats go to runs/gallery. Takes one to three minutes on one core.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import torch

import bivallate as bv
from bivallate.files import write_text
from bivallate.reports.diagnostics.by_name import DIAGNOSES, RUNS_NEEDED, choose, subject

DOCS = Path(__file__).parents[1] / "docs"
EPS, EPOCHS = 0.2, 20
RADII = (0.1, 0.2, 0.3)
CAPTIONS = {
    "curves": "Learning curves: loss, held-out accuracies, effective weights, learning rate, temperature, "
    "and what the sentinel saw.",
    "alignment": "Gradient alignment: the cosine between the loss's gradients at a point and near it; 1 "
    "where the loss is linear in the ball.",
    "alignment-over-epochs": "The same cosine epoch by epoch, as the sentinel saw it on held-out images.",
    "fosc": "FOSC of PGD after 1, 5 and 20 steps, and accuracy and loss of groups of equal size by it.",
    "fosc-traces": "FOSC and loss of single test images from step to step of PGD.",
    "fosc-over-epochs": "FOSC of training images under the method's own attack, early, half-way and at the "
    "end of training: of runs that keep these weights (`--set keep=2,10`).",
    "landscape": "The loss around a test image; dashed: the ball that the attack may use.",
    "classes": "Accuracy of each class, weakest first.",
    "plane": "Robust accuracy of the weakest class against that of all images, with 95 % intervals; "
    "dashed: all classes alike.",
    "confusion": "What the images of each class are taken for under attack.",
    "attacked": "Test images that the attack breaks by the widest margin and that stay right by the widest.",
    "eps": "Accuracy against the radius of the attack.",
    "training-eps": "Accuracy at the radius that each run was trained for, here Fast-AT and AT: "
    "what overfits catastrophically would fall in the last weights alone.",
    "ranks": "Where the class that PGD-10 reached stood among the clean logits.",
    "weights": "The weights of the examples of each class.",
    "weights-over-epochs": "How many examples counted, and how the weights in training were spread: "
    "bands for 90 % and for half of them, a line for the median.",
    "weights-by-margin": "The weights of the same training images against their margins, attacked and clean, "
    "in four epochs.",
    "examples": "The test images of lowest and highest weight.",
    "likelihoods": "Likelihoods of training images under attack in their principal components, shaded by "
    "weight.",
    "weight-scatter": "The weights that two methods give to the same images.",
    "transfer": "Accuracy on adversarial images made on another model; the diagonal is white-box.",
}


def main() -> None:
    """Train, draw and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/gallery"))
    parser.add_argument("--keep", action="store_true", help="draw the runs that are there, without training")
    options = parser.parse_args()
    torch.set_num_threads(1)
    threat, radii = bv.Linf(EPS), [bv.Linf(eps) for eps in RADII]
    papers = bv.methods.done_adam(threat, temperature=None)  # its weights become one-hot, as a figure shows
    methods = [bv.methods.mail_at(threat), papers, bv.methods.fast_at(threat)]
    swept = [method(radius) for method in (bv.methods.fast_at, bv.methods.at) for radius in radii]
    folders = [options.runs / method.name for method in methods]
    by_radius = [options.runs / f"{method.name}-{method.threat.eps:g}" for method in swept]
    if not options.keep:
        for method, folder in zip([*methods, *swept], [*folders, *by_radius], strict=True):
            bv.train(
                "tiny-cnn",
                "digits",
                method,
                epochs=EPOCHS,
                batch_size=64,
                out=folder,
                overwrite=True,
                progress=True,
                keep=(2, 10),
            )
    draw(folders, by_radius, options.runs / "figures")


def draw(folders: list[Path], by_radius: list[Path], place: Path) -> None:
    """Draw every diagnostic of the runs; comparisons of weights show the first two."""
    everything = subject(folders, n=359)
    special = {"weight-scatter": subject(folders[:2], n=359), "training-eps": subject(by_radius, n=359)}
    target = DOCS / "figures" / "gallery"
    target.mkdir(parents=True, exist_ok=True)
    page = (
        "# Gallery\n\nWhat `bivallate diagnose` draws, from runs on scikit-learn's digits (8 x 8 "
        f"pixels, Linf eps {EPS}, {EPOCHS} epochs): MAIL-AT, whose model is shown where only one is, "
        "DONE-Adam and Fast-AT; for accuracy over eps of training Fast-AT and AT at three radii. Made by "
        "`python -m benchmarks.gallery`. Each picture comes with its numbers, as JSON or npz, and as PNG and "
        "PDF.\n"
    )
    for name in choose((), 2):
        drawn = DIAGNOSES[name](special.get(name, everything)).save(place / name)
        shutil.copyfile(drawn, target / f"{name}.svg")
        page += f"\n## {name}\n\n{CAPTIONS[name]}\n\n"
        page += f"![{CAPTIONS[name]}](figures/gallery/{name}.svg)\n"
        runs = "RUN RUN" if name in RUNS_NEEDED else "RUN"
        page += f"\n`bivallate diagnose {runs} --what {name}`\n"
    write_text(DOCS / "gallery.md", page)
    size = sum(p.stat().st_size for p in target.glob("*.svg"))
    print(f"{DOCS / 'gallery.md'}: {len(CAPTIONS)} figures, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
