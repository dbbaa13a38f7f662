"""Where the numbers of a training can be recorded: files, TensorBoard, Weights & Biases, MLflow.

Each tracker is a callback: `trainer.fit_many(members, loss, ds, callbacks=[JsonLines("training.jsonl")])`. One object
records one call of `fit_many`.
"""

from qfml.engine.tracking.base import Tracker
from qfml.engine.tracking.files import Csv, JsonLines
from qfml.engine.tracking.services import MLflow, TensorBoard, WeightsAndBiases

TRACKERS: dict[str, type] = {cls.kind: cls for cls in (JsonLines, Csv, TensorBoard, WeightsAndBiases, MLflow)}

__all__ = ["TRACKERS", "Csv", "JsonLines", "MLflow", "TensorBoard", "Tracker", "WeightsAndBiases"]
