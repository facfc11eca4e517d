"""Heat maps of the parts of a picture that support a class, and overlays of them on the picture."""

import keras
import matplotlib
import numpy as np
from keras import ops

from kmed.errors import DataError, ModelError
from kmed.models.combined import members_of
from kmed.models.layers import Attention, Tokens
from kmed.models.registry import MODELS, family_of

COLOR_MAP = "inferno"  # its brightness increases evenly, so it is readable with any colour vision
DIMMED = 0.6  # brightness of the picture below, so that hot areas are the brightest even in bright pictures
BATCH_PIXELS = 2**17  # per batch of a convolutional network, whose activations all stay in memory
BATCH_BYTES = 2**27  # attention weights per batch of a transformer; the gradient keeps several copies of them


def explain(model: keras.Model, images, class_indices=None) -> np.ndarray:
    """Returns float32 (N, H, W) in [0, 1], how strongly each pixel's surroundings support a class.

    Convolutional networks: Grad-CAM of the logit on the last map (Selvaraju et al., 2017). Since the
    head is linear in the map's mean, a logit's gradient is its column of the head's weights / (h * w)
    at every cell, so Grad-CAM is CAM (Zhou et al., 2016) up to a factor and needs no gradient:
    relu(sum over channels of map * weight). The map is coarse, with one cell per 32 pixels; between
    the centres of the cells it is interpolated bilinearly.

    vit: the relevance of each patch to the class token (Chefer et al., 2021, eq. 5 and 6): over the
    blocks R <- R + mean over heads of relu(A * dlogit/dA) R, with A the attention weights.

    Each map is divided by its largest value, so the strength of two maps, of other pictures or classes,
    cannot be compared. A map with the same value everywhere, because nothing supports the class or
    everything does equally, becomes all zeros. A nearly uniform map carries as little information as it
    seems to: an EfficientNet trained for few steps gave such maps, perhaps because squeeze-and-excitation
    spreads information over the whole picture.

    Of an ensemble, the maps of its members for the class are averaged, each divided by its largest value first, since
    the members' logits have different scales. With views of a picture, it is explained as it is.

    Pictures are explained a few at a time. A vit needs the most memory: about 3 GB for one picture of
    1,201 tokens (240x320) with 6 blocks of 16 heads, and a sixteenth of that at half the side.

    Args:
      model: a keras.Model of `build_model`, new, trained, or loaded from its .keras file; or that of an ensemble.
      images: uint8 or float (N, H, W, 3), raw pixels in [0, 255], in the model's size.
      class_indices: (N,) integers in [0, K), or one for all pictures; None: the most probable class of each.
    Raises: DataError: pictures of another shape or range. ModelError: a model that kmed did not build, a
      class it does not know, or a vit on a backend other than TensorFlow and JAX.
    Example:
      >>> heat = explain(model, images)
      >>> picture = overlay(images[0], heat[0])
    """
    members = members_of(model)
    for member in members:
        _check_model(member)
    images = _check_images(images, model.input_shape[1:])
    class_indices = _check_classes(class_indices, len(images), model.output_shape[-1])
    if members == [model]:
        return _explain_member(model, images, class_indices)
    if class_indices is None:
        logits_of = keras.Model(model.inputs, model.get_layer("head").output)
        class_indices = _most_probable(np.concatenate([logits_of.predict_on_batch(image[None]) for image in images]))
    maps = [_explain_member(member, images, class_indices) for member in members]
    return _to_unit(np.mean(maps, axis=0))


def _explain_member(model, images, class_indices) -> np.ndarray:
    """Returns what `explain` returns for a model of `build_model`; the arguments have been checked."""
    family = family_of(model.name)
    explainer, batch_size = _EXPLAINERS[family.explained_by]
    maps_of, size = explainer(model), batch_size(model)
    heat = np.zeros(images.shape[:3], np.float32)
    for start in range(0, len(images), size):
        batch = slice(start, start + size)
        scaled = model.get_layer("normalize")(images[batch])
        heat[batch] = maps_of(scaled, None if class_indices is None else class_indices[batch])
    return _to_unit(heat)


def overlay(image, heatmap, opacity: float = 0.7) -> np.ndarray:
    """Returns uint8 (H, W, 3), the picture in dimmed grey under the heat in colour.

    The colour covers the picture in proportion to the heat. Where the heat is 0 only the picture is
    visible, in grey, so that its own colours are not mistaken for heat.

    Args:
      image: uint8 or float (H, W, 3) in [0, 255].
      heatmap: float (H, W) in [0, 1].
      opacity: opacity of the colour where the heat is 1, in [0, 1].
    Raises: DataError: shapes that do not fit, or values outside their range.
    """
    image = _check_images(np.asarray(image)[None], (None, None, 3))[0]
    heat = np.asarray(heatmap, np.float32)
    if heat.shape != image.shape[:2]:
        raise DataError(
            f"heatmap must have the picture's height and width, {image.shape[:2]}. Received: shape={heat.shape}."
        )
    if not ((heat >= 0) & (heat <= 1)).all():
        raise DataError(f"heatmap must be in [0, 1]. Received: values from {heat.min()} to {heat.max()}.")
    if not 0 <= opacity <= 1:
        raise DataError(f"opacity must be in [0, 1]. Received: opacity={opacity}.")
    grey = DIMMED * image @ np.array([0.299, 0.587, 0.114], np.float32)  # (H, W), luma as in ITU-R BT.601
    color = matplotlib.colormaps[COLOR_MAP](heat)[..., :3] * 255  # (H, W, 3)
    share = opacity * heat[..., None]
    return np.round((1 - share) * grey[..., None] + share * color).astype(np.uint8)


def explain_and_overlay(model: keras.Model, images, class_indices=None) -> tuple[np.ndarray, np.ndarray]:
    """Returns (heat, overlays): what `explain` returns, and an overlay of each map, uint8 (N, H, W, 3).

    Args and raises: as in `explain`.
    """
    heat = explain(model, images, class_indices)
    overlays = [overlay(image, heatmap) for image, heatmap in zip(images, heat, strict=True)]
    return heat, np.array(overlays, np.uint8).reshape(*heat.shape, 3)


# ----- convolutional networks -----


def _class_activation(model):
    """Returns a function of a batch that returns its class activation maps (N, H, W), at least 0."""
    family = family_of(model.name)
    kernel = ops.convert_to_numpy(model.get_layer("head").kernel)  # (C, K)
    size = model.input_shape[1:3]

    def maps_of(scaled, class_indices):
        maps = model.get_layer("backbone")(scaled, training=False)
        if class_indices is None:
            class_indices = _most_probable(_logits(model, maps))
        maps = ops.convert_to_numpy(ops.cast(maps, "float32"))  # (N, h, w, C)
        cells = np.einsum("nhwc,cn->nhw", maps, kernel[:, class_indices])
        return _spread(np.maximum(cells, 0), size, family.cell_step, [family.offset(side) for side in size])

    return maps_of


def _batch_by_pixels(model):
    """Returns the number of pictures that a convolutional network explains at once."""
    return max(1, BATCH_PIXELS // (model.input_shape[1] * model.input_shape[2]))


# ----- transformers -----


def _relevance(model):
    """Returns a function of a batch that returns (N, H, W), the patches' relevance to the class token, at least 0."""
    backbone = model.get_layer("backbone")
    attentions = _attentions(model)
    num_tokens = attentions[0].output.shape[1]
    rows, columns = next(layer.grid for layer in backbone.layers if isinstance(layer, Tokens))
    step = model.input_shape[1] // rows

    def chosen_logits(gates, scaled, chosen):
        features = _run_gated(backbone, scaled, dict(zip([layer.name for layer in attentions], gates, strict=True)))
        return ops.sum(_logits(model, features) * chosen)

    gradients_of = _differentiate(chosen_logits)

    def maps_of(scaled, class_indices):
        if class_indices is None:
            class_indices = _most_probable(_logits(model, backbone(scaled, training=False)))
        chosen = np.eye(model.output_shape[-1], dtype=np.float32)[class_indices]  # (N, K)
        ones = [ops.ones((len(chosen), layer.num_heads, num_tokens, num_tokens), "float32") for layer in attentions]
        relevance = np.eye(num_tokens, dtype=np.float32)[None]  # (1, T, T), then (N, T, T)
        # With gates of 1 on the attention weights A, the gradient with respect to a gate is A * dlogit/dA.
        for product in gradients_of(ones, scaled, chosen):
            relevance = relevance + np.maximum(ops.convert_to_numpy(product), 0).mean(axis=1) @ relevance
        cells = relevance[:, 0, 1:].reshape(-1, rows, columns)
        return _spread(cells, model.input_shape[1:3], step, [(step - 1) / 2] * 2)

    return maps_of


def _attentions(model):
    return [layer for layer in model.get_layer("backbone").layers if isinstance(layer, Attention)]


def _run_gated(backbone, scaled, gates):
    """Returns the backbone's output, with the attention weights of each named layer multiplied by its gates."""
    known = {id(backbone.input): scaled}
    for layer in backbone.layers:  # in the order of computation
        if isinstance(layer, keras.layers.InputLayer):
            continue
        inputs = keras.tree.map_structure(lambda tensor: known[id(tensor)], layer.input)
        gated = {"gates": gates[layer.name]} if layer.name in gates else {}
        known[id(layer.output)] = layer(inputs, **gated)
    return known[id(backbone.output)]


def _differentiate(function):
    """Returns a function of the same arguments that returns the gradients with respect to the first one's arrays."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def gradients_of(arrays, *others):
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(arrays)
                value = function(arrays, *others)
            return tape.gradient(value, arrays)

        return gradients_of
    if backend == "jax":
        import jax

        return jax.jit(jax.grad(function))
    raise ModelError(f"Explaining a vit needs TensorFlow or JAX for its gradients. Keras runs on {backend}.")


def _batch_by_attention(model):
    """Returns the number of pictures that a transformer explains at once."""
    weights = sum(layer.num_heads * layer.output.shape[1] ** 2 for layer in _attentions(model))
    return max(1, BATCH_BYTES // (4 * weights))


# ----- both -----

# {Family.explained_by: (what makes the function of a batch, what counts the pictures of a batch)}
_EXPLAINERS = {
    "class_activation": (_class_activation, _batch_by_pixels),
    "relevance": (_relevance, _batch_by_attention),
}


def _logits(model, features):
    """Returns float32 (N, K), the output of the head for that of the backbone."""
    return model.get_layer("head")(model.get_layer("pool")(features))


def _most_probable(logits):
    """Returns int (N,), by logits, since two large ones may have sigmoids that both round to 1."""
    return np.argmax(ops.convert_to_numpy(logits), axis=-1)


def _spread(cells, image_size, step, offsets):
    """Returns (N, H, W), interpolated bilinearly between cells centred at pixels step * i + the axis' offset."""
    down, across = (
        _between(size, count, step, offset)
        for size, count, offset in zip(image_size, cells.shape[1:], offsets, strict=True)
    )
    return np.einsum("yi,nij,xj->nyx", down, cells, across, optimize=True)


def _between(size, count, step, offset):
    """Returns (size, count), each pixel's shares of its two nearest cells; beyond the outermost, of that one only."""
    place = np.clip((np.arange(size) - offset) / step, 0, count - 1)  # in cells
    return np.maximum(1 - np.abs(place[:, None] - np.arange(count)), 0).astype(np.float32)


def _to_unit(heat):
    """Returns each map divided by its largest value; zeros if it is the same everywhere, up to rounding."""
    highest = heat.max(axis=(1, 2), keepdims=True)
    lowest = heat.min(axis=(1, 2), keepdims=True)
    varies = highest - lowest > 1e-5 * highest
    return np.divide(heat, highest, out=np.zeros_like(heat), where=varies)


# ----- checks -----


def _check_model(model) -> None:
    """Raises ModelError unless kmed built the model."""
    wanted = ("normalize", "backbone", "pool", "head")
    present = [layer.name for layer in getattr(model, "layers", [])]
    if missing := [name for name in wanted if name not in present]:
        raise ModelError(
            f"explain needs a model made by kmed.build_model: this one has no layer {missing[0]!r}. "
            f"Its layers: {', '.join(present[:6]) or 'none'}."
        )
    if model.name not in MODELS:
        raise ModelError(f"explain needs a model made by kmed.build_model. Received: one named {model.name!r}.")


def _check_images(images, shape):
    """Returns float32 (N, H, W, 3). Raises DataError unless `images` have this shape and raw pixels."""
    images = np.asarray(images)
    fits = images.ndim == 4 and all(want in (None, side) for want, side in zip(shape, images.shape[1:], strict=True))
    if not fits:
        expected = ", ".join("HWC"[axis] if side is None else str(side) for axis, side in enumerate(shape))
        raise DataError(f"Pictures must be (N, {expected}) here. Received: shape={images.shape}.")
    if not (np.issubdtype(images.dtype, np.integer) or np.issubdtype(images.dtype, np.floating)):
        raise DataError(f"Pictures must be uint8 or float. Received: dtype={images.dtype}.")
    if images.size and not (images.min() >= 0 and images.max() <= 255):  # NaN fails both
        raise DataError(f"Pixels must be in [0, 255]. Received: values from {images.min()} to {images.max()}.")
    return images.astype(np.float32)


def _check_classes(class_indices, num_images, num_classes):
    """Returns int64 (N,), or None. Raises ModelError if a class does not exist."""
    if class_indices is None:
        return None
    indices = np.asarray(class_indices)
    if indices.shape not in ((), (num_images,)) or not (np.issubdtype(indices.dtype, np.integer) or not indices.size):
        raise ModelError(
            f"class_indices must be one integer per picture, {num_images} here, or one integer for all. "
            f"Received: shape={indices.shape}, dtype={indices.dtype}."
        )
    wrong = indices[(indices < 0) | (indices >= num_classes)]
    if wrong.size:
        raise ModelError(f"class_indices must be between 0 and {num_classes - 1} here. Received: {wrong[0]}.")
    return np.broadcast_to(indices, (num_images,)).astype(np.int64)
