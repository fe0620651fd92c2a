"""Adapters: few weights that are trained inside a backbone whose own weights stay. The contract."""

from abc import ABC, abstractmethod
from typing import ClassVar

from framework.backbone import Backbone


class Adapter(ABC):
    """Few weights that are trained inside a backbone whose own weights stay."""

    mark: ClassVar[str]
    """What is in the names of the adapter's parameters, and in no others."""

    @abstractmethod
    def adapt(self, backbone: Backbone) -> None:
        """Put the adapter into a backbone, in place; at first the features stay as they are.

        Its parameters belong to the stages of the layers that they are in.

        Raises:
            ConfigError: The backbone has no layer for it.
        """

    @abstractmethod
    def merge(self, backbone: Backbone) -> None:
        """Fold the adapter into the weights of the backbone, in place; the features stay as they are."""

    def adapts(self, name: str) -> bool:
        """Tell whether a parameter of that name is the adapter's."""
        return self.mark in name
