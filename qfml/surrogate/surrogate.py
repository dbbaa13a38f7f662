"""`Surrogate`: a trained network that stands for a pricing engine inside its box, and says so outside of it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pricers as pr
from pricers.parallel import side_by_side
from qfml import config
from qfml.engine.fit import Fit
from qfml.errors import ConfigError, DataError
from qfml.networks import Network
from qfml.surrogate.conformal import ErrorBound
from qfml.surrogate.coordinates import Coordinates, reference_deviation
from qfml.surrogate.files import read_surrogate, write_surrogate
from qfml.surrogate.problem import Problem
from qfml.surrogate.quoting import Name, greeks_of, price_of, rows_of
from qfml.surrogate.rows import input_rows
from qfml.surrogate.tangents import ROWS_AT_A_TIME, log_reference_slopes, outputs, outputs_and_slopes, pulled_back
from qfml.surrogate.target import Target

BLOCK = 25_000  # rows of what is done to each by itself: with fewer the time goes into Python
ON_ERROR = ("raise", "flag")
MONEYNESS_SLACK = 1e-6  # of the range of standardised moneyness: by rounding in float32


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a surrogate answers.

    Attributes:
        value: (N,), in the unit of the target; NaN on rows outside of the box.
        inside: (N,), whether a row lies in the box.
        bound: the error that fresh points inside keep, None where it was not measured.
    """

    value: Tensor
    inside: Tensor
    bound: ErrorBound | None


@dataclass(frozen=True, eq=False)
class Surrogate:
    """A trained network in place of a pricing engine.

    Args:
        problem: what it stands for, and the box in which it was trained.
        target: what its network puts out.
        fits: the networks whose mean predicts; one where the best seed does.
        bound: the error that fresh points keep.
        report: how it came to be: seconds, rows, errors, hash of the labels.
        moneyness: of a box with deltas, the least and greatest log-moneyness of the labels over the reference vol and
            the root of the expiry: rows beyond lie outside of the box, whatever delta the network's own vol gives them.
            None if it is not known, or not needed.

    Example:
        >>> import qfml, qfml.surrogate as qs
        >>> from qfml.engine import Muon
        >>> problem = qs.Problem(
        ...     model={"kind": "black_scholes"},
        ...     instrument={"kind": "european"},
        ...     box={"vol": qs.Range(0.1, 0.4), "expiry": qs.Range(0.5, 2.0), "strike": qs.Range(0.8, 1.2)},
        ...     target="price",
        ... )
        >>> import tempfile
        >>> labels = qs.LabelSettings(n_points=256, seed=0, strikes_per_law=2)
        >>> folder = tempfile.mkdtemp()
        >>> files = qs.make_labels(problem, labels, folder)
        >>> table = qs.read_labels(qs.labels_folder(problem, labels, folder))
        >>> quick = qs.SurrogateTraining(
        ...     network=qfml.MLP(hidden=(16, 16), activation="silu"),
        ...     trainer=qfml.Trainer(max_epochs=30, batch_size=64, optimizer=Muon(lr=1e-2, weight_decay=0.0)),
        ...     n_seeds=1,
        ... )
        >>> surrogate = qs.fit_surrogate(problem, table, quick)
        >>> answer = surrogate.predict([[0.2, 1.0, 1.0], [0.9, 1.0, 1.0]], errors="flag")
        >>> bool(abs(answer.value[0] - 0.0797) < 0.01), answer.inside.tolist()
        (True, [True, False])
    """

    problem: Problem
    target: Target
    fits: tuple[Fit, ...]
    bound: ErrorBound | None = None
    report: dict[str, Any] = field(default_factory=dict)
    moneyness: tuple[float, float] | None = None

    @property
    def network(self) -> Network:
        """The specification that all fits share."""
        return self.fits[0].network

    @property
    def hash(self) -> str:
        """16 hex digits that change with problem, network, parameters or labels."""
        digest = hashlib.sha256(config.config_hash(self.description).encode())
        digest.update(repr(self.moneyness).encode())
        for fit in self.fits:
            digest.update(fit.parameters.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    # ------------------------------------------------------------------ numbers

    def predict(self, inputs: Any, errors: str = "raise") -> Prediction:
        """The target at rows of inputs, in float32; nothing is extrapolated.

        Args:
            inputs: (N, d) in natural units, columns as `problem.inputs`; or a mapping from the names of the inputs to
                numbers and arrays that broadcast.
            errors: "raise" refuses rows outside of the box; "flag" gives them NaN and `inside` False.

        Raises:
            DataError: another number of columns, a NaN, a row outside of the box (with "raise").
        """
        if errors not in ON_ERROR:
            raise ConfigError(f"`errors` must be one of {', '.join(ON_ERROR)}, got {errors!r}")
        rows = self.rows(inputs)
        with torch.no_grad():
            value, outside = self.unchecked(rows)
        if errors == "raise" and bool(outside.any()):
            self._refuse(rows, value, outside)
        return Prediction(value.masked_fill(outside, math.nan), ~outside, self.bound)

    def value_and_gradient(self, inputs: Any, errors: str = "raise") -> tuple[Tensor, Tensor]:
        """The target (N,) and its derivatives in the inputs (N, d), in natural units; nothing is extrapolated.

        Args:
            inputs: as in `predict`. A tensor of float32 is answered in float32, all else in float64.
            errors: as in `predict`; with "flag" both answers are NaN on rows outside of the box.

        Raises:
            DataError: as `predict`.
        """
        outside = ~self.predict(inputs, errors).inside
        narrow = isinstance(inputs, Tensor) and inputs.dtype == torch.float32
        rows = self.rows(inputs).to(torch.float32 if narrow else torch.float64)
        value, gradient = self.unchecked_value_and_gradient(rows)
        return value.masked_fill(outside, math.nan), gradient.masked_fill(outside[:, None], math.nan)

    def unchecked_values(self, inputs: Tensor) -> Tensor:
        """The target (N,) at `inputs` (N, d), in their dtype: one differentiable function of plain torch.

        Rows outside of the box are extrapolated without a word: `predict` checks them. This is what the export and
        derivatives are built on.
        """
        reference = self._reference(inputs)
        features = Coordinates(self.problem)(inputs, reference)
        learnt = [self.network.forward(stacked, features[None])[0] for stacked in self._parameters(inputs.dtype, True)]
        return self._decoded(learnt, inputs, reference)

    def unchecked_value_and_gradient(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """`value_and_gradient` of a tensor of rows, in its dtype, where the box is not checked.

        Written out layer by layer, without a graph. Rows outside of the box are extrapolated without a word.
        """
        own = inputs.split(ROWS_AT_A_TIME)
        with side_by_side(inputs.device, len(own)) as run:
            blocks = list(run(self._value_and_gradient, own))
        return torch.cat([value for value, _ in blocks]), torch.cat([gradient for _, gradient in blocks])

    def inside(self, inputs: Any) -> Tensor:
        """Whether each row lies in the box, (N,)."""
        return self.predict(inputs, errors="flag").inside

    # ------------------------------------------------------------------ asked as an engine is

    def price(self, instrument: Any, model: Any, market: Any, errors: str = "raise") -> Tensor:
        """Prices in cash of a batch of `pricers` objects, float64; as `pricers.price`.

        Args:
            instrument: of the problem's kind, with its fixed terms.
            model: likewise.
            market: any, for an implied vol; else one of the problem's rates.
            errors: as in `predict`.

        Raises:
            DataError: another instrument, model or fixed term than the surrogate's; a row outside of the box.
        """
        with torch.no_grad():
            rows, shape = rows_of(self.problem, instrument, model, market)
            value = self.predict(rows, errors).value
            return price_of(self.problem, value, (instrument, model, market), shape)

    def implied_vol(self, instrument: Any, model: Any, market: Any, errors: str = "raise") -> Tensor:
        """Black implied vols of European options, annual, decimal; NaN where a price has none. See `price`."""
        if self.problem.target == "implied_vol":
            rows, shape = rows_of(self.problem, instrument, model, market)
            return self.predict(rows, errors).value.double().view(shape)
        if not isinstance(instrument, pr.European):
            raise DataError(f"implied vols are of European options, got {type(instrument).__name__}: take `price`")
        price = self.price(instrument, model, market, errors)
        forward, discount = market.forward(instrument.expiry), market.discount(instrument.expiry)
        terms = (price, forward, instrument.strike, instrument.expiry, discount)
        return pr.implied_vol(*terms, option=instrument.option, errors="nan")

    def greeks(
        self, instrument: Any, model: Any, market: Any, wrt: Sequence[Name], errors: str = "raise"
    ) -> dict[Name, Tensor]:
        """Derivatives of the price, float64, by names of fields; second order by pairs; as `pricers.greeks`.

        Args:
            instrument: of the problem's kind, with its fixed terms.
            model: likewise.
            market: see `price`.
            wrt: names of fields (`spot`, `v0`, `strike`, ...), and pairs of names such as ("spot", "spot"). They must
                vary in the box; the spot may also be what prices scale with, and a vol by the strike over the forward
                gives derivatives in the market's rates too.
            errors: as in `predict`.

        Raises:
            DataError: as `price`; a field that did not vary.
        """
        triple = (instrument, model, market)
        rows, shape = rows_of(self.problem, *triple)
        inside = self.predict(rows, errors).inside.view(shape)

        def price(moved: Any) -> Tensor:
            return price_of(self.problem, self.unchecked_values(rows_of(self.problem, *moved)[0]), moved, shape)

        found = greeks_of(self.problem, price, triple, shape, wrt)
        return {name: value.masked_fill(~inside, math.nan) for name, value in found.items()}

    def rows(self, inputs: Any) -> Tensor:
        """Rows of inputs (N, d) in float64 from what a caller gives; see `predict`."""
        return input_rows(self.problem, inputs)

    def unchecked(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Values (N,) in float32, outside of the box too, and which rows lie outside; blocks side by side on the cores.

        Args:
            rows: (N, d) in natural units, float64.
        """
        value = torch.empty(len(rows), dtype=torch.float32)
        outside = torch.empty(len(rows), dtype=torch.bool)

        def one(start: int) -> None:
            with torch.no_grad():
                block = rows[start : start + BLOCK]
                narrow = torch.empty(block.shape[::-1], dtype=torch.float32)  # each column lies in one piece
                narrow = narrow.copy_(block.t()).t()
                reference = self._reference(narrow)
                own = self._fast(narrow, reference)
                by_axis = self.problem.outside(block, own if self._needs_vol else None)
                value[start : start + len(block)] = own
                lost = by_axis.any(1) | ~own.isfinite() | self._beyond_labels(narrow, reference)
                outside[start : start + len(block)] = lost

        starts = range(0, len(rows), BLOCK)
        with side_by_side(rows.device, len(starts)) as run:
            list(run(one, starts))
        return value, outside

    @property
    def moneyness_limits(self) -> Tensor | None:
        """The ends (2,) of `moneyness`, float64, with what rounding may move; None without."""
        if self.moneyness is None:
            return None
        slack = MONEYNESS_SLACK * max(map(abs, self.moneyness))
        return torch.tensor([self.moneyness[0] - slack, self.moneyness[1] + slack], dtype=torch.float64)

    def _beyond_labels(self, rows: Tensor, reference: Tensor | None = None) -> Tensor:
        """Which rows (N,) lie further from the money than any label did; `reference` vols (N,) if known already."""
        limits = self.moneyness_limits
        if limits is None:
            return torch.zeros(len(rows), dtype=torch.bool)
        z = rows[:, self._strike] / reference_deviation(self.problem, rows, reference)
        return ~((z >= limits[0]) & (z <= limits[1]))

    @property
    def _strike(self) -> int:
        """The column of inputs that tells strikes of one law apart."""
        return next(i for i, axis in enumerate(self.problem.coordinates) if axis.is_strike)

    @property
    def _needs_vol(self) -> bool:
        return any(axis.argument == "delta" for axis in self.problem.coordinates)

    def _fast(self, inputs: Tensor, reference: Tensor | None) -> Tensor:
        features = Coordinates(self.problem)(inputs, reference)
        learnt = [outputs(self.network, parameters, features) for parameters in self._parameters(inputs.dtype)]
        return self._decoded(learnt, inputs, reference)

    def _decoded(self, learnt: list[Tensor], inputs: Tensor, reference: Tensor | None) -> Tensor:
        values = [self.target.decode(one, inputs, reference) for one in learnt]
        return values[0] if len(values) == 1 else torch.stack(values).mean(0)

    def _reference(self, inputs: Tensor) -> Tensor | None:
        """The reference vols (N,), where coordinates or target are measured in them."""
        needed = Coordinates(self.problem).standardised is not None or self.target.by_reference
        return self.problem.reference_vol(inputs) if needed else None

    @torch.no_grad()
    def _value_and_gradient(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        reference = self._reference(inputs)
        by_inputs = None if reference is None else log_reference_slopes(self.problem, inputs)
        features = Coordinates(self.problem)(inputs, reference)
        values, gradients = [], []
        for parameters in self._parameters(inputs.dtype):
            learnt, slopes = outputs_and_slopes(self.network, parameters, features)
            pulled = pulled_back(self.problem, inputs, slopes, reference, by_inputs)
            values.append(self.target.decode(learnt, inputs, reference))
            own = self.target.decode_gradient(values[-1], pulled, inputs, reference, by_inputs)
            gradients.append(own)
        if len(values) == 1:
            return values[0], gradients[0]
        return torch.stack(values).mean(0), torch.stack(gradients).mean(0)

    def _parameters(self, dtype: torch.dtype, stacked: bool = False) -> list[dict[str, Tensor]]:
        """Each network's parameters by name, in a dtype; cast once."""
        cache: dict[torch.dtype, list[dict[str, Tensor]]] = self.__dict__.setdefault("_cast", {})
        if dtype not in cache:
            named = [fit.named_parameters() for fit in self.fits]
            cache[dtype] = [{name: value.detach().to("cpu", dtype) for name, value in one.items()} for one in named]
        return [{name: value[None] for name, value in one.items()} for one in cache[dtype]] if stacked else cache[dtype]

    def _refuse(self, rows: Tensor, value: Tensor, outside: Tensor) -> None:
        """Say which row lies outside of which range, by the first one."""
        row = int(outside.nonzero()[0])
        first = rows[row : row + 1]
        by_axis = self.problem.outside(first, value[row : row + 1].double() if self._needs_vol else None)[0]
        count = f"{int(outside.sum())} of {len(rows)} rows lie outside of the box; first row {row}"
        if not bool(by_axis.any()) and bool(self._beyond_labels(first).any()):
            assert self.moneyness is not None
            z = float(first[0, self._strike] / reference_deviation(self.problem, first)[0])
            raise DataError(
                f"{count}: log_moneyness {float(first[0, self._strike]):g} is {z:.4g} reference deviations from the "
                f"money, and the labels lay between {self.moneyness[0]:.4g} and {self.moneyness[1]:.4g}; price such "
                "rows with `pricers`, train on a wider box, or pass errors='flag' to get NaN for them"
            )
        if not bool(by_axis.any()):
            raise DataError(f"the surrogate gives no number on {count}: inputs {first[0].tolist()}")
        axis = int(by_axis.nonzero()[0])
        name, limits = list(self.problem.box.items())[axis]
        shown = f"{name} {float(first[0, axis]):g}"
        if name == "delta" and bool(value[row].isfinite()):
            columns = self.problem.columns(first)
            shown = f"delta {float(self.problem.delta(columns, value[row : row + 1].double())):.4g}"
            shown += f" (log_moneyness {float(first[0, axis]):g})"
        raise DataError(
            f"{count}: {shown}, and the surrogate knows {limits.low:g} to {limits.high:g}; it does not extrapolate: "
            "price such rows with `pricers`, train on a wider box, or pass errors='flag' to get NaN for them"
        )

    # ------------------------------------------------------------------ files

    def save(self, folder: str | Path) -> None:
        """Write the surrogate into a new folder: safetensors, JSON and a manifest of their hashes.

        Raises:
            CheckpointError: the folder exists, or cannot be written.
        """
        write_surrogate(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> Surrogate:
        """Read what `save` wrote, every hash checked.

        Args:
            folder: that was saved into, or of a finished run of the task `surrogate`, which keeps its own.

        Raises:
            CheckpointError: a changed byte, a file of another version, or no surrogate.
        """
        return read_surrogate(cls, Path(folder))

    @property
    def description(self) -> dict[str, Any]:
        """What the hash stands for, beside the parameters."""
        return {
            "problem": config.to_dict(self.problem),
            "inputs": list(self.problem.inputs),  # a hash of the box does not see its order
            "target": {"kind": self.target.kind, "scale": self.target.scale},
            "network": config.to_dict(self.network),
            "labels": self.report.get("labels"),
        }
