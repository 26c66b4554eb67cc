"""Write the weights of the shipped swiss-roll network as a script, which the laboratory's page loads when asked to."""

import base64
import json
from pathlib import Path

import numpy as np
from torch import nn

from dpm.experiments.registry import load_model


def weights_script() -> str:
    """Weight and bias of each layer in turn, as base64 of float16, in which they are stored."""
    layers = [layer for layer in load_model("swiss_roll", "best").p.network.mlp if isinstance(layer, nn.Linear)]
    tensors = [tensor.detach().numpy() for layer in layers for tensor in (layer.weight, layer.bias)]
    texts = [base64.b64encode(np.float16(tensor).tobytes()).decode() for tensor in tensors]
    return f"const SWISS_ROLL_WEIGHTS = {json.dumps(texts)};\n"


def write_weights(path: Path) -> None:
    """Write that script."""
    path.write_text(weights_script(), encoding="utf8")
