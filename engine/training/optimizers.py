"""Optimizers for training over the rules of `engine/model/steps.py`, and one entry that makes any of them by name.

All state is one tensor per name and parameter in `optimizer.state`, so that `state_dict` and the trainer's own files
both carry a run on. Knows no model of this project and no schedules: whoever trains sets `group["lr"]`.

Shapes: F rows (outputs), D columns (inputs), N tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from engine.errors import InvalidRequest
from engine.from_file import function_of, is_file
from engine.model.orthogonal_steps import M3, POLYNOMIALS, Muon
from engine.model.steps import OBJECTIVES, Adam, DeepMomentum, DeltaMomentum, Rule, delta_gradient_descent

Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
NAMES = ("adamw", "sgd", "delta_momentum", "deep_momentum", "muon", "m3", "dgd")
CHOICES = {"objective": OBJECTIVES, "polynomial": tuple(POLYNOMIALS)}


def make_optimizer(
    name: str,
    model_or_parameters: nn.Module | Parameters,
    learning_rate: float,
    weight_decay: float = 0.0,
    **options: Any,
) -> torch.optim.Optimizer:
    """The optimizer called `name`.

    Args:
        name: one of `NAMES`, or a FILE.py with `make(model, learning_rate, **options)`. `adamw` and `sgd` are torch's
            own; the others step matrices by a rule of `engine/model` and, but for `delta_momentum`, all else with
            AdamW.
        model_or_parameters: a module, or parameters or groups as torch takes them. In a module, embeddings are no
            matrices; a group can say so of its own with `matrices=False`. `dgd` needs a module.
        learning_rate: what `group["lr"]` begins with.
        weight_decay: decoupled for all but `sgd`.
        options: the rule's constants, and `adamw_scale`; for `adamw` and `sgd` what torch takes.

    Raises:
        InvalidRequest: the name, an option or its value is unknown; the message lists what there is.
    """
    if is_file(name):
        return function_of(name, "make")(model_or_parameters, learning_rate, **options)  # type: ignore[no-any-return]
    if name not in NAMES:
        names = f"{', '.join(NAMES)}, or a FILE.py"
        raise InvalidRequest(f"there is no optimizer '{name}': choose one of {names}", param="optimizer")
    for option, choices in CHOICES.items():
        if options.get(option, choices[0]) not in choices:
            raise InvalidRequest(f"option '{option}' is one of {', '.join(choices)}", param=option)
    try:
        return _make(name, model_or_parameters, learning_rate, weight_decay, options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise InvalidRequest(f"optimizer '{name}': {str(error).partition(') ')[2]}", param="optimizer") from error


class RuleOptimizer(torch.optim.Optimizer):
    """Steps every matrix with one rule, and what is no matrix with AdamW at `adamw_scale` times the rate.

    Weight decay is decoupled: W <- (1 - lr decay) W + change. The rule's constants are the constructor's: a
    `state_dict` carries rates and state, not them.

    Args:
        parameters: as torch takes them; a group with `matrices` False leaves its matrices to AdamW as well.
        rule: for matrices [F,D].
        learning_rate, weight_decay: of all groups that bring none of their own.
        adamw_scale: factor on the rate for AdamW; None gives every tensor to the rule, a vector as one row and
            more than two dimensions as rows of all that follow the first.
    """

    def __init__(
        self,
        parameters: Parameters,
        rule: Rule,
        learning_rate: float,
        weight_decay: float = 0.0,
        adamw_scale: float | None = 1.0,
    ) -> None:
        defaults = {"lr": learning_rate, "weight_decay": weight_decay, "matrices": True}
        super().__init__(cast(Any, parameters), defaults)
        self._rule, self._adam, self._adamw_scale = rule, Adam(), adamw_scale

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of all parameters that have a gradient; returns what `closure` returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alike: dict[tuple[Rule, float, torch.Size, torch.dtype, torch.device], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None and not self._step_alone(parameter, group):
                    rule, rate = self._rule_of(parameter, group)
                    kind = (rule, rate, parameter.shape, parameter.dtype, parameter.device)
                    alike.setdefault(kind, []).append(parameter)
            for (rule, rate, *_), parameters in alike.items():
                self._apply(rule, parameters, rate, group["weight_decay"])
        return loss

    def _step_alone(self, parameter: Tensor, group: Mapping[str, Any]) -> bool:
        """Steps a parameter that has a way of its own; returns whether it has."""
        return False

    def _rule_of(self, parameter: Tensor, group: Mapping[str, Any]) -> tuple[Rule, float]:
        if self._adamw_scale is None or (parameter.dim() == 2 and group["matrices"]):
            return self._rule, group["lr"]
        return self._adam, group["lr"] * self._adamw_scale

    def _apply(self, rule: Rule, parameters: list[Tensor], rate: float, weight_decay: float) -> None:
        """One step of parameters of one shape, all at once: on a GPU as fast as one of them."""
        gradients = [_as_matrix(cast(Tensor, parameter.grad)) for parameter in parameters]
        for parameter, gradient_FD in zip(parameters, gradients, strict=True):
            if not self.state[parameter]:
                self.state[parameter].update(rule.initial(gradient_FD))
        states = [self.state[parameter] for parameter in parameters]
        together = {name: torch.stack([state[name] for state in states]) for name in states[0]}
        after, change = rule.step(together, torch.stack(gradients), rate)
        for name, value in after.items():
            torch._foreach_copy_([state[name] for state in states], list(value.unbind(0)))
        changes = [one.view_as(parameter) for one, parameter in zip(change.unbind(0), parameters, strict=True)]
        torch._foreach_mul_(parameters, 1 - rate * weight_decay)
        torch._foreach_add_(parameters, changes)


class DeltaGradientDescent(RuleOptimizer):
    """Delta Gradient Descent (eq. 56, 57) for the weights of `nn.Linear`; AdamW for every other parameter.

    W <- argmin mean_n 1/2 |W x_n - u_n|^2 + 1/(2 lr) |W - W_t|^2, u_n = -grad_{y_n} of token n's own loss, solved
    exactly for all tokens n that went through the layer since the last step: rates mean what they mean in SGD. A hook
    on each layer's forward keeps its inputs, once a gradient has reached that call's output; the gradients by y enter
    through `weight.grad` = sum_n grad_{y_n} x_n^T, so that clipping and accumulation act as they do elsewhere.

    Limits. The loss must be a mean over the N tokens that a layer sees; where it is not, `pull` sets the balance. Its
    fixed point is W x = u, not a zero gradient: outputs are drawn to the negative of their gradient, which for logits
    means within [-1, 1]. So name the head in `skip`, or set `pull` below 1 (0 is plain gradient descent). A weight
    used outside its layer's forward (tied, or through `functional.linear`), is stepped for the inputs of the layer
    alone; one shared by two layers has the inputs of both. Inputs of a step are held in memory until it is made.

    Args:
        model: whose `nn.Linear` layers to attach to; `close` detaches.
        pull: weight of the term |W x|^2; 1 is eq. 56.
        skip: names of modules (as `named_modules` says them) whose weights go to AdamW.
    """

    def __init__(
        self,
        model: nn.Module,
        learning_rate: float,
        weight_decay: float = 0.0,
        adamw_scale: float = 1.0,
        pull: float = 1.0,
        skip: Iterable[str] = (),
    ) -> None:
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
        skipped = set(skip)
        if skipped - layers.keys():
            raise InvalidRequest(f"'{min(skipped - layers.keys())}' is no linear layer of the model", param="skip")
        super().__init__(_groups(model), Adam(), learning_rate, weight_decay, adamw_scale)
        self._pull = pull
        chosen = [layer for name, layer in layers.items() if name not in skipped]
        self._inputs: dict[Tensor, list[Tensor]] = {layer.weight: [] for layer in chosen}
        self._handles: list[RemovableHandle] = [layer.register_forward_hook(self._met) for layer in chosen]

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets gradients, and the inputs they came from."""
        super().zero_grad(set_to_none)
        self._forget()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As `RuleOptimizer.step`."""
        loss = super().step(closure)
        self._forget()
        return loss

    def close(self) -> None:
        """Takes the hooks off the model."""
        for handle in self._handles:
            handle.remove()
        self._forget()

    def _step_alone(self, parameter: Tensor, group: Mapping[str, Any]) -> bool:
        inputs = self._inputs.get(parameter)
        if not inputs:
            # A layer's weight whose inputs were not met (its forward was bypassed) is a parameter like any other.
            return False
        assert parameter.grad is not None
        x_ND, rate = torch.cat(inputs).to(parameter.dtype), group["lr"]
        moved_FD = delta_gradient_descent(parameter, x_ND, parameter.grad, rate, self._pull / x_ND.shape[0])
        parameter.copy_(moved_FD - rate * group["weight_decay"] * parameter)
        return True

    def _rule_of(self, parameter: Tensor, group: Mapping[str, Any]) -> tuple[Rule, float]:
        return self._adam, group["lr"] * cast(float, self._adamw_scale)

    def _met(self, layer: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        """Of a layer's forward: its inputs count if a gradient comes back to its output."""
        weight = cast(nn.Linear, layer).weight
        if output.requires_grad and weight.requires_grad:
            output.register_hook(partial(self._keep, weight, arguments[0].detach()))  # type: ignore[no-untyped-call]

    def _keep(self, weight: Tensor, x: Tensor, gradient: Tensor) -> None:
        self._inputs[weight].append(x.reshape(-1, x.shape[-1]))

    def _forget(self) -> None:
        for inputs in self._inputs.values():
            inputs.clear()


def _make(
    name: str, source: nn.Module | Parameters, learning_rate: float, weight_decay: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    if name == "dgd":
        if not isinstance(source, nn.Module):
            raise InvalidRequest("optimizer 'dgd' needs the module, to see what its layers read", param="optimizer")
        return DeltaGradientDescent(source, learning_rate, weight_decay, **options)
    if name in ("adamw", "sgd"):
        plain = source.parameters() if isinstance(source, nn.Module) else source
        kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW if name == "adamw" else torch.optim.SGD
        return kind(plain, lr=learning_rate, weight_decay=weight_decay, **options)
    parameters = _groups(source) if isinstance(source, nn.Module) else source
    if name == "delta_momentum":
        return RuleOptimizer(parameters, DeltaMomentum(**options), learning_rate, weight_decay, adamw_scale=None)
    rules: dict[str, Callable[..., Rule]] = {"deep_momentum": DeepMomentum, "muon": Muon, "m3": M3}
    adamw_scale = options.pop("adamw_scale", 0.1 if name == "muon" else 1.0)
    return RuleOptimizer(parameters, rules[name](**options), learning_rate, weight_decay, adamw_scale)


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """All parameters, embeddings apart: their rows are met one by one, and are no map from inputs to outputs."""
    tables = {id(layer.weight) for layer in model.modules() if isinstance(layer, nn.Embedding)}
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in parameters if id(parameter) not in tables]
    others = [parameter for parameter in parameters if id(parameter) in tables]
    groups = [{"params": matrices, "matrices": True}, {"params": others, "matrices": False}]
    return [group for group in groups if group["params"]]


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, -1) if tensor.dim() < 2 else tensor.flatten(1)
