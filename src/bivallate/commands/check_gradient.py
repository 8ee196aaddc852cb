"""`bivallate check-gradient`."""

from __future__ import annotations

from dataclasses import asdict

from bivallate.commands.options import (
    Ball,
    Count,
    DataFolder,
    DataName,
    Flag,
    Machine,
    Seed,
    Settings,
    Several,
)
from bivallate.errors import UserError
from bivallate.terminal import say, say_json


def check_gradient(
    method: str,
    /,
    *,
    model: str = "tiny-cnn",
    data: DataName = "digits",
    ball: Ball = Ball(),  # noqa: B008  frozen
    n: Several = 16,
    directions: Count = 6,
    seed: Seed = 0,
    activation: str | None = None,
    set_: Settings = (),
    data_dir: DataFolder | None = None,
    machine: Machine = Machine(),  # noqa: B008  frozen
    json: Flag = False,
) -> None:
    """Compare the gradient of METHOD with finite differences, on your own model.

    Parameters
    ----------
    method
        name of a method, as `bivallate methods` lists them, or package.module:function of your own.
    model
        architecture, or package.module:factory.
    data
        data set whose first training examples are used.
    n
        examples.
    directions
        random directions in the space of the parameters, at most 1000.
    seed
        of the weights, of the noise and of the directions.
    activation
        relu, softplus or silu; finite differences need a smooth one to be exact. [default: softplus; a
        network of your own or of timm keeps its own]
    set_
        KEY=VALUE, as for train.
    data_dir
        where named sets are looked for. [default: BIVALLATE_DATA]
    json
        print the result as JSON.
    """
    from bivallate.commands.configuration import plan_of
    from bivallate.gradcheck import check_gradient as check
    from bivallate.run.from_config import create_model, load_data

    device = machine.prepare()
    plan = plan_of(method, None, data, ball.eps, ball.norm or "linf", None, set_).set("model.name", model)
    own = "relu" if ":" in model else "softplus"  # "relu" leaves the activations of a foreign network
    plan = plan.set("model.activation", activation if activation is not None else own)
    plan = plan if data_dir is None else plan.set("data.data_dir", data_dir)
    dataset = load_data(plan.data, seed)
    network = create_model(plan.model, dataset, seed).to(device)
    if n > len(dataset.train):
        raise UserError(f"--n is {n}, but {dataset.name} has {len(dataset.train)} training images")
    x, y = dataset.train.tensors(slice(0, n))
    found = check(network, plan.method, (x.to(device), y.to(device)), seed=seed, directions=directions)
    if json:
        say_json({**asdict(found), "ok": found.ok})
    else:
        say(found)
