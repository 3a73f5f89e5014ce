"""Reduce, classify and compare features; knows feature sets, never images or engines."""

from featurepress.analysis.classifier import Classifier
from featurepress.analysis.moments import Moments
from featurepress.analysis.passes import fit
from featurepress.analysis.pca import PCA
from featurepress.analysis.sketch import Sketch

__all__ = ["PCA", "Classifier", "Moments", "Sketch", "fit"]
