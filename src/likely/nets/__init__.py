"""The single crossing of data layout and architecture: `net(space, role, size, ...)`.

Nets know nothing of probability; families know no convolution. What each role computes:

    causal    ints x [B, *shape] -> parameters of each entry given those before it, [B, *shape, out];
              has init_state(n, given) and step(state, x_i) -> (state, parameters [n, out])
    bidirectional (ints x, how much of each is hidden), [B, *shape] -> parameters of each entry by what is seen, [B, *shape, out]
    encoder   x [B, *shape] -> [B, out]
    decoder   latents z [B, in] -> [B, *shape, out]
    denoiser  (reals u [B, C, *rest], t [B], in [0, 1] or a log-SNR over 4) -> [B, out * C, *rest]; u may have `extra` channels more
    energy    reals u [B, *shape] -> [B, out]
    generator noise z [B, inputs] -> reals [B, out * C, *rest]
    coupling  reals u [B, *shape] -> [B, out, moved]: out parameters of each entry where `moves` is true
    ordered   reals u [B, n] -> [B, out, n]: out parameters of each entry given those before it;
              has init_state(n, given) and step(state, u_i) -> parameters [n, out]

Every net accepts `given` through `nets.conditioning`.
"""

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Any

from likely.errors import UsageError, nearest

if TYPE_CHECKING:
    from torch import nn

    from likely.space import Space

__all__ = ["NETS", "default", "net", "net_options", "net_words"]

# (role, layout) -> {word: "module:Class"}; the first word is the default, chosen by measurement.
NETS: dict[tuple[str, str], dict[str, str]] = {
    ("coupling", "grid"): {"conv": "likely.nets.coupling:ConvCoupling", "mlp": "likely.nets.coupling:MLPCoupling"},
    ("coupling", "columns"): {"mlp": "likely.nets.coupling:MLPCoupling"},
    ("ordered", "columns"): {"mlp": "likely.nets.masked_mlp:MaskedMLP"},
    ("causal", "grid"): {
        "gated-pixelcnn": "likely.nets.causal.gated:GatedPixelCNN",
        "pixelcnn++": "likely.nets.causal.pixelcnnpp:PixelCNNPlusPlus",
        "pixelcnn": "likely.nets.causal.pixelcnn:PixelCNN",
        "made": "likely.nets.causal.made:MADE",
        "transformer": "likely.nets.causal.transformer:CausalTransformer",
        "any-order": "likely.nets.causal.any_order:AnyOrder",
    },
    ("causal", "columns"): {
        "made": "likely.nets.causal.made:MADE",
        "transformer": "likely.nets.causal.transformer:CausalTransformer",
        "rnn": "likely.nets.causal.rnn:RecurrentNet",
        "any-order": "likely.nets.causal.any_order:AnyOrder",
    },
    ("causal", "sequence"): {
        "transformer": "likely.nets.causal.transformer:CausalTransformer",
        "dilated": "likely.nets.causal.dilated:DilatedConvolutions",
        "rnn": "likely.nets.causal.rnn:RecurrentNet",
        "any-order": "likely.nets.causal.any_order:AnyOrder",
    },
    ("bidirectional", "grid"): {
        "unet": "likely.nets.bidirectional:UNetOverVectors",
        "transformer": "likely.nets.bidirectional:BidirectionalTransformer",
    },
    ("bidirectional", "columns"): {
        "mlp": "likely.nets.bidirectional:MLPOverVectors",
        "transformer": "likely.nets.bidirectional:BidirectionalTransformer",
    },
    ("bidirectional", "sequence"): {
        "transformer": "likely.nets.bidirectional:BidirectionalTransformer",
        "unet1d": "likely.nets.bidirectional:UNet1dOverVectors",
    },
    ("encoder", "grid"): {
        "auto": "likely.nets.autoencoder:grid_encoder",
        "dense": "likely.nets.autoencoder:DenseEncoder",
        "conv": "likely.nets.autoencoder:ConvEncoder",
    },
    ("encoder", "columns"): {"dense": "likely.nets.autoencoder:DenseEncoder"},
    ("encoder", "sequence"): {"conv": "likely.nets.autoencoder:ConvEncoder"},
    ("decoder", "grid"): {
        "auto": "likely.nets.autoencoder:grid_decoder",
        "dense": "likely.nets.autoencoder:DenseDecoder",
        "conv": "likely.nets.autoencoder:ConvDecoder",
    },
    ("decoder", "columns"): {"dense": "likely.nets.autoencoder:DenseDecoder"},
    ("decoder", "sequence"): {"conv": "likely.nets.autoencoder:ConvDecoder"},
    ("denoiser", "grid"): {"unet": "likely.nets.unet:UNet", "dit": "likely.nets.dit:DiT"},
    ("denoiser", "sequence"): {"unet1d": "likely.nets.unet:UNet", "transformer": "likely.nets.dit:DiT"},
    ("denoiser", "columns"): {"mlp": "likely.nets.denoiser:MLPDenoiser", "plain": "likely.nets.denoiser:PlainDenoiser"},
    ("denoiser", "set"): {"set-transformer": "likely.nets.set_transformer:SetTransformer"},
    ("energy", "grid"): {
        "auto": "likely.nets.energy:grid_energy",
        "dense": "likely.nets.energy:MLPEnergy",
        "conv": "likely.nets.energy:ConvEnergy",
    },
    ("energy", "columns"): {"dense": "likely.nets.energy:MLPEnergy"},
    ("generator", "grid"): {
        "auto": "likely.nets.generator:grid_generator",
        "dense": "likely.nets.generator:MLPGenerator",
        "conv": "likely.nets.generator:ConvGenerator",
    },
    ("generator", "columns"): {"dense": "likely.nets.generator:MLPGenerator"},
}

_OF_FAMILIES = ("times", "extra")  # options of denoisers that are for families to choose: how many times, and inputs without an output


def net(
    space: "Space", role: str, size: str = "small", *, word: str | None = None, given: "Space | None" = None, out: int, **options: Any
) -> "nn.Module":
    """Build the net for a role on a space's layout.

    Args:
        word: another net than the default, such as "gated-pixelcnn".
        given: space of what it is conditioned on.
        out: parameters per output.
        options: of the net's constructor, such as width and depth.

    Raises: UsageError for an unknown word or option, or a layout that no net of the role serves.
    """
    words = NETS.get((role, space.layout))
    if words is None:
        raise UsageError(f"No {role} net serves {space.layout} data.")
    word = word or default(role, space.layout)
    if word not in words:
        raise UsageError(f"Unknown {role} net '{word}' for {space.layout} data.", nearest(word, words))
    build = _build(words[word])
    known = _options(build)
    for option in options:
        if option not in (*known, *_OF_FAMILIES) and not _passes_on(build):
            raise UsageError(f"The {role} net '{word}' has no option '{option}'.", nearest(option, known) if known else "It has none.")
    return build(space, given=given, size=size, out=out, **options)


def default(role: str, layout: str) -> str:
    """The net of a role that is chosen where none is asked for."""
    return next(iter(NETS[role, layout]))


def net_options(role: str) -> dict[str, inspect.Parameter]:
    """Options of the nets of a role, by name; each net takes some of them."""
    paths = {path for (r, _), words in NETS.items() if r == role for path in words.values()}
    return {name: option for path in sorted(paths) for name, option in _options(_build(path)).items()}


def net_words(role: str) -> dict[str, tuple[str, ...]]:
    """What each option of a role that is a word can be: `net` itself, and those of the nets."""
    each = {word: path for (r, _), words in NETS.items() if r == role for word, path in words.items()}
    return {"net": tuple(each)} | {name: words for path in each.values() for name, words in getattr(_build(path), "words", {}).items()}


def _build(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _options(build: Any) -> dict[str, inspect.Parameter]:
    """The keyword-only arguments of a net's own."""
    parameters = inspect.signature(build).parameters.values()
    return {p.name: p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ("given", "size", "out", *_OF_FAMILIES)}


def _passes_on(build: Any) -> bool:
    """Whether it is a choice among nets, which hands its options on."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(build).parameters.values())
