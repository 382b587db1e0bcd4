"""The flows as a worker imports them, by the entry points of `prefect.yaml`."""

from flows.imports import many_imports

with many_imports():
    from flows.audit_valuation import audit_valuation
    from flows.demo import demo
    from flows.fit_curvature import fit_curvature
    from flows.index_corpus import index_corpus
    from flows.value_corpus import value_corpus

__all__ = ["audit_valuation", "demo", "fit_curvature", "index_corpus", "value_corpus"]
