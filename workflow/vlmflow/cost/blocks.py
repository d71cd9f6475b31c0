"""The parts of a model by their dimensions, and the parameters that follow from them. No torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

Linears = tuple["Linear", ...]


@dataclass(frozen=True)
class Linear:
    """A linear layer."""

    inputs: int
    outputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Entries of the matrix."""
        return self.inputs * self.outputs

    @property
    def parameters(self) -> int:
        return self.weights + self.outputs * self.bias


@dataclass(frozen=True)
class Blocks:
    """A stack of equal transformer layers."""

    layers: int
    hidden: int
    query: int
    """Width of all query heads together."""
    key_value: int
    """Width of all key heads together; that of the values is the same."""
    ffn: int
    before_attention: Linears
    """Linear layers of a layer that read its input: queries, keys and values, one by one or fused."""
    after_attention: Linears
    vectors: int
    """Parameters of a layer outside its linear layers: norms, scales."""

    @property
    def linears(self) -> Linears:
        """The linear layers of one layer."""
        return self.before_attention + self.after_attention

    @property
    def weights(self) -> int:
        """Entries of the matrices of all layers."""
        return self.layers * sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        return self.layers * (sum(linear.parameters for linear in self.linears) + self.vectors)

    def adapter_parameters(self, rank: int, dora: bool = False) -> int:
        """Of low-rank adapters on all linear layers; DoRA has a norm per row besides."""
        each = [rank * (linear.inputs + linear.outputs) + dora * linear.outputs for linear in self.linears]
        return self.layers * sum(each) if rank else 0


@dataclass(frozen=True)
class Language:
    """The language model with its token table and output matrix."""

    blocks: Blocks
    vocabulary: int
    tied: bool
    """The output matrix is the token table."""

    @property
    def table(self) -> int:
        """Parameters of the token table; the output matrix has as many."""
        return self.vocabulary * self.blocks.hidden

    @property
    def parameters(self) -> int:
        final_norm = self.blocks.hidden
        return self.blocks.parameters + final_norm + self.table * (1 if self.tied else 2)


@dataclass(frozen=True)
class Tower:
    """The vision tower; a tile is a picture, or the part of one, that goes through it at once."""

    blocks: Blocks
    read_layers: int
    """Layers up to the one whose output the projector reads; the others are never computed."""
    patches: int
    """Of a tile."""
    class_tokens: int
    patch_values: int
    """Numbers in a patch of pixels, all colours."""
    read_parameters: int
    """Outside the layers, of what the projector's input depends on."""
    unread_parameters: int
    """The others outside the layers: the last norm, pooling, tokens for masks."""

    @property
    def tokens(self) -> int:
        """What the layers see of a tile."""
        return self.patches + self.class_tokens

    @property
    def parameters(self) -> int:
        return self.blocks.parameters + self.read_parameters + self.unread_parameters

    @property
    def read(self) -> Blocks:
        """The layers that are computed."""
        return replace(self.blocks, layers=self.read_layers)

    @property
    def trainable(self) -> int:
        """Parameters that learn where the tower does."""
        return self.read.parameters + self.read_parameters


@dataclass(frozen=True)
class Projector:
    """Two layers from the tower's features to the language model's embeddings, perhaps with a norm before them."""

    linears: Linears
    norm: int
    """Parameters of the norm; 0 without."""

    @property
    def parameters(self) -> int:
        return self.norm + sum(linear.parameters for linear in self.linears)
