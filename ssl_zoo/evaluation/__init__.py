"""Evaluation: a pure metric on features, then a thin callback that sees features and labels only."""

from ssl_zoo.evaluation.bayes import NaiveBayes
from ssl_zoo.evaluation.dense import IoU, confusion, dense_linear, encode_maps, mean_iou
from ssl_zoo.evaluation.health import Health
from ssl_zoo.evaluation.knn import KNN
from ssl_zoo.evaluation.linear import LinearProbe
from ssl_zoo.evaluation.neighbours import Neighbours
from ssl_zoo.evaluation.recorder import ScoreRecorder
from ssl_zoo.evaluation.report import Report

__all__ = ["KNN", "Health", "IoU", "LinearProbe", "NaiveBayes", "Neighbours", "Report", "ScoreRecorder", "confusion",
           "dense_linear", "encode_maps", "mean_iou"]
