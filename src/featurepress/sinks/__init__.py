"""Write features."""

from featurepress.sinks.base import Account, PartWriter, Row, Sink, StandingPart
from featurepress.sinks.parquet import ParquetSink

__all__ = ["Account", "ParquetSink", "PartWriter", "Row", "Sink", "StandingPart"]
