"""The optimizers by name: what each steps, how; torch's own as the measure; a run that is carried on bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from engine.errors import InvalidRequest
from engine.model.orthogonal_steps import M3
from engine.model.steps import Adam, DeltaMomentum
from engine.training.optimizers import NAMES, DeltaGradientDescent, RuleOptimizer, make_optimizer
from tests.tiny import distance

RATES = {"adamw": 0.02, "sgd": 0.2, "delta_momentum": 0.05, "deep_momentum": 0.02, "muon": 0.05, "m3": 0.05, "dgd": 0.2}
WIDTH, NUM_CLASSES = 6, 5


class Network(nn.Module):
    """Every kind of parameter: a table, matrices, biases, a gain and a filter of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(NUM_CLASSES, WIDTH)
        self.filter = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)
        self.body = nn.Sequential(nn.Linear(WIDTH, 9), nn.Tanh(), nn.LayerNorm(9))
        self.head = nn.Linear(9, NUM_CLASSES)
        self.double()

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.filter(self.table(tokens).mT).mT
        out: Tensor = self.head(self.body(x))
        return out


def _loss(model: nn.Module, seed: int) -> Tensor:
    """Tell which token comes next, in a ring."""
    tokens = torch.randint(NUM_CLASSES, (8, 7), generator=torch.Generator().manual_seed(seed))
    return functional.cross_entropy(model(tokens).flatten(0, 1), ((tokens + 1) % NUM_CLASSES).flatten())


def _train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        optimizer.zero_grad()
        loss = _loss(model, step)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def _grown(loss: Tensor) -> Tensor:
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns_and_the_loss_falls(name: str) -> None:
    model = Network()
    options: dict[str, Any] = {"pull": 0.01} if name == "dgd" else {}
    optimizer = make_optimizer(name, model, RATES[name], weight_decay=0.01, **options)
    before = copy.deepcopy(model.state_dict())
    losses = _train(model, optimizer, range(60))
    assert losses[-1] < 0.7 * losses[0]
    for key, value in model.state_dict().items():
        assert bool(torch.isfinite(value).all())
        assert not torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_the_run_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Through a file, into a fresh optimizer, at a step that is inside one of M3's chunks."""
    model = Network()
    optimizer = make_optimizer(name, model, RATES[name], weight_decay=0.01)
    _train(model, optimizer, range(13))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "run")
    expected = _train(model, optimizer, range(13, 26))
    other = Network()
    resumed = make_optimizer(name, other, 123.0)
    saved = torch.load(tmp_path / "run")
    other.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["optimizer"])
    assert _train(other, resumed, range(13, 26)) == expected
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_state_is_plain_tensors_that_the_trainer_can_save(name: str) -> None:
    model = Network().float()
    optimizer = make_optimizer(name, model, RATES[name])
    _train(model, optimizer, range(2))
    state = [
        (key, value) for entries in optimizer.state.values() for key, value in entries.items() if value is not None
    ]
    assert all(isinstance(value, Tensor) and not value.requires_grad and "|" not in key for key, value in state)
    assert {value.dtype for key, value in state if key != "step"} <= {torch.float32}


@pytest.mark.parametrize("shape", [(4, 4), (3, 8), (8, 3)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_is_torchs(shape: tuple[int, int], nesterov: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """To rounding, once torch's is kept from bfloat16; with it, to what bfloat16 leaves."""
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, *shape, generator=generator, dtype=torch.float64)
    start = torch.randn(shape, generator=generator, dtype=torch.float64)

    def trained(kind: str) -> Tensor:
        weight = start.clone().requires_grad_()
        if kind == "torch":
            theirs: torch.optim.Optimizer = torch.optim.Muon([weight], lr=0.1, weight_decay=0.2, nesterov=nesterov)
        else:
            theirs = make_optimizer("muon", [weight], 0.1, 0.2, nesterov=nesterov)
        for gradient in gradients:
            weight.grad = gradient.clone()
            theirs.step()
        return weight.detach()

    assert distance(trained("ours"), trained("torch")) <= 0.05
    monkeypatch.setattr(Tensor, "bfloat16", lambda tensor: tensor.clone())
    assert distance(trained("ours"), trained("torch")) <= 1e-12


def test_what_is_no_matrix_is_adamws() -> None:
    model, twin = Network(), Network()
    optimizer = make_optimizer("muon", model, 0.02, 0.1, adamw_scale=0.5)
    adamw = torch.optim.AdamW(twin.parameters(), lr=0.01, weight_decay=0.1)
    for step in range(4):
        _train(model, optimizer, range(step, step + 1))
        for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
            other.grad = None if parameter.grad is None else parameter.grad.clone()
        adamw.step()
    differs = {
        key for key, value in model.state_dict().items() if not torch.allclose(value, twin.state_dict()[key], atol=1e-9)
    }
    assert differs == {"body.0.weight", "head.weight"}


def test_delta_momentum_steps_everything_a_vector_as_one_row() -> None:
    vector, cube = torch.zeros(4, dtype=torch.float64), torch.zeros(2, 3, 2, dtype=torch.float64)
    parameters = [value.requires_grad_() for value in (vector, cube)]
    optimizer = make_optimizer("delta_momentum", parameters, 0.1)
    rule = DeltaMomentum()
    flat = [torch.zeros(1, 4, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.float64)]
    states = [rule.initial(value) for value in flat]
    for seed in range(3):
        for index, parameter in enumerate(parameters):
            torch.manual_seed(seed)
            parameter.grad = torch.randn_like(parameter)
            states[index], change = rule.step(states[index], parameter.grad.reshape(flat[index].shape), 0.1)
            flat[index] = flat[index] + change
        optimizer.step()
    for parameter, expected in zip(parameters, flat, strict=True):
        assert distance(parameter.detach().reshape(expected.shape), expected) <= 1e-14


def test_groups_keep_their_own_rate_decay_and_matrices() -> None:
    first, second = (torch.ones(2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    groups = [{"params": [first], "lr": 0.0, "weight_decay": 9.0}, {"params": [second], "matrices": False}]
    optimizer = RuleOptimizer(groups, M3(), 0.5, weight_decay=0.1)
    first.grad, second.grad = torch.ones_like(first), 3 * torch.ones_like(second)

    def closure() -> float:
        return 7.0

    assert optimizer.step(closure) == 7.0
    assert bool((first == 1.0).all())
    assert distance(second.detach(), torch.full((2, 2), 0.95 - 0.5, dtype=torch.float64)) <= 1e-7
    assert optimizer.state[second].keys() == Adam().initial(second).keys()


@pytest.mark.parametrize("num_rows", [2, 40])
def test_dgd_of_a_layer_is_equation_56(num_rows: int) -> None:
    """Tokens' own losses, their mean, and a layer that is called twice: both calls' inputs count."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 3).double()
    x, target = torch.randn(num_rows, 4).double(), torch.randn(num_rows, 3).double()
    optimizer = make_optimizer("dgd", layer, 0.3, 0.1)
    before = layer.weight.detach().clone()
    half = num_rows // 2
    outputs = torch.cat([layer(x[:half].view(1, half, 4)).flatten(0, 1), layer(x[half:])])
    u = -(outputs.detach() - target)
    _grown((outputs - target).square().sum(1).mean() / 2)
    optimizer.step()
    eye = torch.eye(4, dtype=torch.float64)
    expected = (before / 0.3 + u.T @ x / num_rows) @ torch.linalg.inv(eye / 0.3 + x.T @ x / num_rows)
    assert distance(layer.weight.detach(), expected - 0.3 * 0.1 * before) <= 1e-12


def test_dgd_sees_only_what_the_loss_saw_and_can_be_taken_off() -> None:
    model = nn.Linear(4, 3).double()
    optimizer = DeltaGradientDescent(model, 0.3)
    x = torch.randn(5, 4).double()

    def step(disturbed: bool) -> Tensor:
        if disturbed:
            _grown(model(3 * x).sum())
            optimizer.zero_grad()
            model(7 * x)
            with torch.no_grad():
                model(9 * x)
            _grown(model(5 * x).sum())
            optimizer.step()
        torch.manual_seed(0)
        model.reset_parameters()
        model.zero_grad()
        _grown(model(x).square().mean())
        optimizer.step()
        return model.weight.detach().clone()

    assert torch.equal(step(False), step(True))
    optimizer.close()
    _grown(model(x).square().mean())
    optimizer.step()
    assert optimizer.state[model.weight].keys() == Adam().initial(model.weight).keys()


def test_dgd_without_pull_is_sgd_and_skips_what_it_is_told_to() -> None:
    model, twin = Network(), Network()
    _train(model, make_optimizer("dgd", model, 0.1, pull=0.0, skip=["head"]), range(1))
    _train(twin, make_optimizer("sgd", twin, 0.1), range(1))
    after, expected = model.state_dict(), twin.state_dict()
    assert distance(after["body.0.weight"], expected["body.0.weight"]) <= 1e-14
    assert distance(after["head.weight"], expected["head.weight"]) > 1e-3
    with pytest.raises(InvalidRequest, match="'tail' is no linear layer"):
        make_optimizer("dgd", model, 0.1, skip=["tail"])


def test_dgds_fixed_point_is_not_the_losss() -> None:
    """On 1/2 |W x - v|^2 it stops half way (HOPE.md §3, 14): the reason for `pull`."""
    layer = nn.Linear(3, 2, bias=False).double()
    x, target = torch.randn(30, 3).double(), torch.randn(2, 3).double()
    optimizer = make_optimizer("dgd", layer, 1.0)
    for _ in range(400):
        optimizer.zero_grad()
        _grown((layer(x) - x @ target.T).square().sum(1).mean() / 2)
        optimizer.step()
    assert distance(layer.weight.detach(), target / 2) <= 1e-9


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("adam", {}, "adamw, sgd, delta_momentum, deep_momentum, muon, m3, dgd"),
        ("muon", {"polynomial": "septic"}, "quintic, cubic"),
        ("deep_momentum", {"objective": "best"}, "aligned, printed, regression"),
        ("m3", {"nesterov": True}, "'nesterov'"),
        ("sgd", {"beta": 0.9}, "'beta'"),
        ("dgd", {"beta": 0.9}, "'beta'"),
    ],
)
def test_what_is_unknown_is_refused_with_what_there_is(name: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        make_optimizer(name, Network(), 0.1, **options)


def test_dgd_needs_the_module() -> None:
    with pytest.raises(InvalidRequest, match="needs the module"):
        make_optimizer("dgd", list(Network().parameters()), 0.1)
