"""Hedging policies as ONNX files: one trading date of one policy, from what is observed to what is held.

A graph takes the quantities that can be observed (spot, variance, prices of instruments), the number of the date and
the units held until then, in float64, and makes the features itself, by the same functions as the training. A policy
that remembers has its memory as a second input and output.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qfml import config
from qfml.errors import UserError
from qfml.export.fit_stack import library_version
from qfml.export.model_file import Export, sealed, written
from qfml.export.parity import N_POINTS, parity
from qfml.export.policy_steps import decided, next_memory, state_of, step, width_of_memory
from qfml.export.trace import Template, memory_apart, trace
from qfml.hedging import Hedger, TradingRules
from qfml.hedging.sight import Sight

__all__ = ["export_hedger"]

INPUT, MEMORY = "inputs", "state"
DEVIATIONS = 3.0  # of the spot about the forward, and of other positive numbers, among the points compared


def export_hedger(
    hedger: Hedger, to: Any, *, members: Sequence[int] | None = None, config_hash: str | None = None
) -> list[Export]:
    """Write policies as ONNX, each a step of one date: what to hold from now on.

    `inputs` (N, d) in float64 has a column for each of `Hedger.quantities`, then `date`, the number of the trading date
    from 0, then `before NAME`, the units of each instrument held until now. The outputs are `holdings` (N, K) and
    `inside` (N,): whether the date is one that trades and all numbers can be observed; where not, holdings are NaN. A
    policy that remembers takes `state` (N, S) in float32 too, zeros on the first date, and gives the one of the next.

    Each graph is compared with torch on 10,000 states spread over the dates, and on some that cannot be.

    Args:
        hedger: trained policies.
        to: the file; or one file for each member.
        members: numbers of the policies to write; None: all.
        config_hash: of the settings that they came from.

    Raises:
        UserError: a market that does not tell how its features follow from what is observed, a difference from torch,
            a place that cannot be written.
    """
    chosen = list(range(len(hedger.members))) if members is None else list(members)
    paths = [Path(each) for each in (to if isinstance(to, (list, tuple)) else [to])]
    if len(paths) != len(chosen):
        raise UserError(f"`to` must name a file for each of {len(chosen)} policies, got {len(paths)}")
    graph, template, contents, exports = _Graph(hedger), None, [], []
    points = graph.points(N_POINTS if hedger.rules.lot is None else int(1.05 * N_POINTS))  # rounding decides some lots
    for path, member in zip(paths, chosen, strict=True):
        begin = time.perf_counter()
        tensors = graph.tensors(member)
        if template is None:  # of one architecture, whatever the member
            template = graph.template(points[:3], tensors)
        model = template.filled(tensors)
        if graph.n_memory:
            memory_apart(model, INPUT, len(graph.columns), MEMORY, graph.n_memory)
        kept = graph.decided(points, member)
        agreement = parity(model.SerializeToString(), lambda x, own=member: graph.reference(x, own), kept)
        about = graph.metadata(member) | {"config_hash": config_hash, "parity": agreement.as_metadata()}
        contents.append((path, sealed(model, about)))
        what = f"a step of the policy {hedger.policy.kind!r} number {member}, seed {hedger.members[member].seed}"
        exports.append(Export(path, what, agreement, time.perf_counter() - begin))
    written(contents)
    return exports


class _Graph:
    """The function that a graph holds, and what it must equal."""

    def __init__(self, hedger: Hedger) -> None:
        self.hedger, self.sight = hedger, hedger.sight
        self.policy = hedger.policy
        self.free = replace(self.policy, rules=TradingRules())  # the rules are applied here
        self.names = self.sight.instruments
        self.quantities = hedger.quantities
        self.columns = [*self.quantities, "date", *(f"before {name}" for name in self.names)]
        self.n_memory = width_of_memory(self.free, self.sight.n_steps)

    def tensors(self, member: int) -> dict[str, Tensor]:
        """All numbers of the graph of one policy."""
        own = self.hedger.fits[member].named_parameters()
        found = {f"policy.{name}": value.detach().cpu().float()[None] for name, value in own.items() if name != "level"}
        found |= {f"sight.{name}": value for name, value in self.sight.tensors.items()}
        return found | {"last": torch.tensor(self.sight.n_steps - 1, dtype=torch.float64)}

    def template(self, example: Tensor, tensors: Mapping[str, Tensor]) -> Template:
        """One trace for all members."""
        names = ["holdings", "inside", *(["next_state"] if self.n_memory else [])]
        return trace(self.forward, example, tensors, input_name=INPUT, output_names=names)

    def parts(self, x: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor]:
        """Quantities, date, holdings before and memory of rows (N, d + S)."""
        n, k = len(self.quantities), len(self.names)
        quantities = {name: x[:, place] for place, name in enumerate(self.quantities)}
        return quantities, x[:, n], x[:, n + 1 : n + 1 + k], x[:, n + 1 + k :]

    def forward(self, x: Tensor, tensors: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Holdings (N, K), whether they are to be relied on (N,), and the memory of the next date."""
        quantities, date, before, memory = self.parts(x)
        inside = (date == date.floor()) & (date >= 0) & (date <= tensors["last"])
        inside = inside & before.isfinite().all(-1)
        if quantities:
            inside = inside & self.sight.known(quantities)
        if self.n_memory:
            inside = inside & memory.isfinite().all(-1)
        place = torch.where(inside, date, 0.0).long()
        sight = self.sight.of({name: tensors[f"sight.{name}"] for name in self.sight.tensors})
        features = sight.features(quantities, place)
        parameters = {name: tensors[f"policy.{name}"] for name in self._names}
        held, after = step(self.free, parameters, features, before.float(), place, memory.float())
        if not self.policy.rules.free:
            held = self.policy.rules._held(held)
        held = torch.where(inside[:, None], held, torch.nan)
        return (held, inside, torch.where(inside[:, None], after, torch.nan)) if self.n_memory else (held, inside)

    @property
    def _names(self) -> list[str]:
        return [name for name in self.hedger.fits[0].named_parameters() if name != "level"]

    def reference(self, x: Tensor, member: int) -> dict[str, Tensor]:
        """The same by `Hedger.hedge`, date by date."""
        quantities, date, before, memory = self.parts(x)
        known = (date == date.floor()) & (date >= 0) & (date < self.sight.n_steps) & before.isfinite().all(-1)
        known &= self.sight.known(quantities) if quantities else True
        found = {"holdings": torch.full((len(x), len(self.names)), torch.nan), "inside": known}
        after = torch.full((len(x), self.n_memory), torch.nan)
        for now in date[known].unique().tolist():
            rows = (known & (date == now)).nonzero()[:, 0]
            state = state_of(self.free, memory[rows].float(), int(now))
            seen = {name: value[rows] for name, value in quantities.items()}
            held, state = self.hedger.hedge(seen, before[rows].float(), int(now), member, state)
            found["holdings"][rows] = held
            if self.n_memory:
                after[rows] = next_memory(state, memory[rows].float())
        return found | ({"next_state": after} if self.n_memory else {})

    def decided(self, points: Tensor, member: int) -> Tensor:
        """The points whose lots are not decided by rounding: all of them without a lot."""
        if self.policy.rules.lot is None:
            return points
        free = replace(self.hedger, members=tuple(replace(one, network=self.free) for one in self.hedger.members))
        wish = _Graph(free).reference(points, member)["holdings"].nan_to_num()
        return points[decided(self.policy.rules, wish)]

    def points(self, n: int) -> Tensor:
        """States (n, d + S) spread over the dates, and a ninth as many that cannot be."""
        generator, sight = torch.Generator(), self.sight
        many = n + n // 9
        date = torch.randint(sight.n_steps, (many,), generator=generator)
        columns = [_spread(name, sight, date, generator) for name in self.quantities]
        before = torch.rand(many, len(self.names), generator=generator, dtype=torch.float64) * 2.0 - 0.5
        memory = torch.rand(many, self.n_memory, generator=generator, dtype=torch.float64) * 2.0 - 1.0
        points = torch.cat([torch.stack([*columns, date.double()], -1), before, memory], -1)
        wrong = torch.arange(many) >= n
        which = torch.randint(len(self.columns), (many,), generator=generator)
        of_date = which == len(self.quantities)
        points[wrong, which[wrong]] = torch.nan
        impossible = torch.tensor([-1.0, sight.n_steps, 0.5, torch.nan], dtype=torch.float64)
        odd = wrong & of_date
        points[odd, len(self.quantities)] = impossible[torch.arange(int(odd.sum())) % 4]
        return points[torch.randperm(many, generator=generator)]

    def metadata(self, member: int) -> dict[str, Any]:
        """What a file says of itself, in JSON types."""
        hedger, one = self.hedger, self.hedger.members[member]
        units = self.quantities | {"date": f"number of the trading date, 0 to {self.sight.n_steps - 1}"}
        units |= {f"before {name}": "units held until now, 0 on the first date" for name in self.names}
        outputs = {
            "holdings": [f"units of {name} to hold until the next date" for name in self.names],
            "inside": "whether the date trades and all numbers can be observed; holdings are NaN where not",
        }
        if self.n_memory:
            outputs["next_state"] = "`state` of the next date; zeros on the first"
        return {
            "kind": "hedging",
            "qfml": library_version(),
            "inputs": [{"name": name, "unit": units[name]} for name in self.columns],
            "window": None,
            "state": self.n_memory or None,
            "outputs": outputs,
            "instruments": list(self.names),
            "trading_dates": self.sight.times.tolist(),
            "strike": hedger.book.strike,
            "reference": float(self.sight.reference),
            "vol": float(self.sight.vol),
            "features": list(self.policy.feature_names),
            "policy": config.to_dict(self.policy),
            "book": config.to_dict(hedger.book),
            "market": config.to_dict(hedger.market) if _is_plain(hedger.market) else hedger.market.kind,
            "objective": config.to_dict(hedger.loss.objective),
            "costs": config.to_dict(hedger.loss.costs),
            "unwind": hedger.loss.unwind,
            "member": {name: getattr(one, name) for name in ("seed", "aversion", "cost_level")} | {"number": member},
        }


def _spread(name: str, sight: Sight, date: Tensor, generator: torch.Generator) -> Tensor:
    """A quantity (N,) on dates (N,), about what it may be."""
    normal = torch.randn(len(date), generator=generator, dtype=torch.float64)
    uniform = torch.rand(len(date), generator=generator, dtype=torch.float64)
    deviation = sight.vol * sight.times[-1].sqrt()
    if name in sight.factors:
        return 2.0 * uniform / sight.factors[name][date]
    if name == "spot":
        return sight.reference / sight.growth[date] * torch.exp(DEVIATIONS * deviation * (2.0 * uniform - 1.0))
    if name.startswith("running"):
        return sight.reference * torch.exp(deviation * normal)
    if name.startswith("alive"):
        return (uniform > 0.2).double()
    if name.startswith("realised_variance"):
        return 1.5 * uniform * sight.vol**2
    size = {"variance": sight.vol**2, "relative_vol": torch.ones_like(sight.vol), "realised_vol": sight.vol}[name]
    return size * torch.exp(0.5 * normal)


def _is_plain(market: Any) -> bool:
    try:
        config.to_dict(market)
    except TypeError:  # paths of an array
        return False
    return True
