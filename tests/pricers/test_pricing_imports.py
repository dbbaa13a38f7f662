"""What `import pricers` loads: torch and the standard library, and the shape annotations."""

import subprocess
import sys


def test_pricers_stands_on_torch_alone():
    strangers = (
        "qfml pandas polars scipy sklearn matplotlib onnx onnxruntime pydantic yaml QuantLib mpmath torch._inductor"
    )
    code = f"import sys, pricers; print([name for name in {strangers.split()} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
