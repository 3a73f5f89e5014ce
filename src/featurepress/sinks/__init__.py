"""Write features."""

from featurepress.sinks.base import Account, PartWriter, Row, Sink
from featurepress.sinks.parquet import ParquetSink

__all__ = ["Account", "ParquetSink", "PartWriter", "Row", "Sink"]
