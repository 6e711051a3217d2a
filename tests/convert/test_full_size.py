"""A conversion at the published size: its memory and its time.

It takes 8 GB of disk, and runs only if it is asked for:
`STGT_FULL_SIZE=1 python -m pytest -s tests/convert/test_full_size.py`
"""

import os
import subprocess
import sys
import time

import pytest
from foreign import write_vocab
from oracles import needs_torch
from processes import environment

GB = 1e9
MAKE = """
import sys
import oracles
import torch
from stgt_jax.config import GraphConfig, ModelConfig
from stgt_jax.convert.reference import leaves
from stgt_jax.models.stgt import STGT, param_shapes
from stgt_jax.convert.own import under_reference_names
from stgt_jax.convert.stored_tensor import StoredTensor
from flax.traverse_util import flatten_dict
import numpy as np

config = ModelConfig(graph=GraphConfig(variant="none"))
shapes = flatten_dict(param_shapes(STGT(config)), sep="/")
tensors = under_reference_names("x", config, {
    name: StoredTensor(leaf.shape, np.dtype("f4"), lambda: None) for name, leaf in shapes.items()})
draw = lambda tensor, dtype: torch.randn(tensor.shape, generator=generator).mul_(0.02).to(dtype)
generator = torch.Generator().manual_seed(0)
prefix = "visual_encoder."
eva = {name.removeprefix(prefix): draw(t, torch.float16) for name, t in tensors.items() if name.startswith(prefix)}
eva |= {name.replace("blocks.38", "blocks.39"): x for name, x in eva.items() if name.startswith("blocks.38.")}
torch.save(eva, sys.argv[1] + "/eva_vit_g.pth")
del eva
blip2 = {name: draw(t, torch.float32) for name, t in tensors.items() if not name.startswith(prefix)}
torch.save({"model": blip2}, sys.argv[1] + "/blip2_pretrained.pth")
"""
CONVERT = """
import sys
from experiments.commands.main import main
assert main(sys.argv[1:]) == 0
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@needs_torch
@pytest.mark.skipif(not os.environ.get("STGT_FULL_SIZE"), reason="opt-in: STGT_FULL_SIZE=1")
def test_full_size_conversion_streams(tmp_path):
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with_tests = environment() | {"PYTHONPATH": tests}
    subprocess.run([sys.executable, "-c", MAKE, str(tmp_path)], env=with_tests, check=True)
    sources = [tmp_path / "eva_vit_g.pth", tmp_path / "blip2_pretrained.pth"]
    words = ["weights", "convert", *map(str, sources), "--out", str(tmp_path / "model")]
    words += ["--vocab", str(write_vocab(tmp_path / "vocab.txt", 30522))]
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", CONVERT, *words], env=environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, done.stderr
    peak = 1024 * int(done.stdout.split("VmHWM:")[1].split()[0])
    largest = max(source.stat().st_size for source in sources)
    written = (tmp_path / "model" / "weights.safetensors").stat().st_size
    sizes = f"peak {peak / GB:.2f} GB, largest source {largest / GB:.2f} GB"
    print(f"{written / GB:.2f} GB written in {seconds:.0f} s; {sizes}")
    assert peak < largest + GB
