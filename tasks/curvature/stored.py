"""Damped inverses of a curvature that a store keeps."""

from collections.abc import Mapping

from dataworth.storage.errors import InputError
from dataworth.storage.layers import LayerStore
from dataworth.storage.ref import StoreRef
from dataworth.storage.spelling import setting
from dataworth.tasks.curvature.config import DampingConfig
from dataworth.tasks.curvature.precondition import Preconditioner, curvature_of, damped_layers

__all__ = ["damped_inverses"]


def damped_inverses(curvature: StoreRef | None, config: DampingConfig) -> Mapping[str, Preconditioner]:
    """The damped inverse of each layer's curvature; empty without a curvature.

    Raises:
        InputError: the curvature of a layer is zero under relative damping.
    """
    if curvature is None:
        return {}
    fitted = LayerStore.open(curvature)
    names = [layer.name for layer in fitted.layers]
    curvatures = {name: curvature_of({key: fitted.matrix(name, key) for key in fitted.names(name)}) for name in names}
    try:
        return damped_layers(curvatures, config)
    except ValueError as error:
        raise InputError(f"{error}; pass {setting('curvature.damping.rule')} absolute") from None
