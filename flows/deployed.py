"""The flows as a worker imports them, by the entry points of `prefect.yaml`."""

from dataworth.command.imports import many_imports

with many_imports():
    from dataworth.audit_valuation import audit_valuation
    from dataworth.demo import demo
    from dataworth.fit_curvature import fit_curvature
    from dataworth.index_corpus import index_corpus
    from dataworth.value_corpus import value_corpus

__all__ = ["audit_valuation", "demo", "fit_curvature", "index_corpus", "value_corpus"]
