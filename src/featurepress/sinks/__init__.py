"""Write features."""

from featurepress.sinks.base import Account, Sink
from featurepress.sinks.parquet import ParquetSink

__all__ = ["Account", "ParquetSink", "Sink"]
