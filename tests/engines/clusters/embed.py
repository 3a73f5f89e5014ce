"""Embed a folder in a process of its own: embed.py KIND SOURCE OUT [SETTING=VALUE of Spark ...].

KIND is ``local``, ``ray``, ``connect``, or a master of Spark. Embedded model, float32, labels, small parts.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import featurepress as fp
from featurepress import engines
from featurepress.engines import Engine

OPTIONS: dict[str, Any] = {
    "model": "embedded",
    "precision": "float32",
    "labels": "parent",
    "images_per_part": int(os.environ.get("IMAGES_PER_PART", "100")),
    "max_failures": 1.0,
}


def engine_of(kind: str, settings: dict[str, str]) -> Engine | None:
    if kind == "local":
        return None
    if kind == "ray":
        import ray

        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        return engines.Ray()
    if kind == "connect":
        from pyspark.sql import SparkSession

        builder = SparkSession.builder.remote("local[2]")
        for name, value in {"spark.connect.grpc.binding.address": "127.0.0.1", **settings}.items():
            builder = builder.config(name, value)
        return engines.Spark(builder.getOrCreate())
    return engines.Spark(master=kind, conf=settings)


def main() -> None:
    kind, source, out, *more = sys.argv[1:]
    settings = {name: value for name, _, value in (text.partition("=") for text in more)}
    engine = engine_of(kind, settings)
    features = fp.embed(source, out, engine=engine, **OPTIONS)
    print(features.manifest)
    if engine is not None:
        engine.close()


if __name__ == "__main__":
    main()
