"""GPTQ and AWQ: 4-bit weights calibrated on text, by llm-compressor in a separate environment.

llm-compressor pins an older transformers than the rest of align uses, so it runs as a program: the source is written as
float weights, a job file points to them and has the calibration texts as token ids, and its output replaces them.
"""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from align.export.export_settings import ExportSettings
from align.export.safetensors_dir import write_hf
from align.export.source import Source
from align.io.families import family_of
from align.tokenizer import Tokenizer

JOB = Path(__file__).with_name("llmcompressor_job.py")
_GROUPS = (128, 64, 32)
"""Group sizes (weights per scale) that common kernels support, widest first"""
_INSTALL = (
    "python -m venv quantizer && quantizer/bin/pip install llmcompressor, then --quantizer_python quantizer/bin/python"
)


def check_calibrated(source: Source, settings: ExportSettings) -> None:
    """Refuse what llm-compressor can't quantize, before anything is written.

    Raises:
        ValueError: texts or the environment are missing, or the architecture or a row width is not supported.
    """
    name = settings.quantize
    if not settings.calibration:
        raise ValueError(f"--quantize {name} needs calibration texts: give --calibration FILE")
    if settings.quantizer_python is None:
        raise ValueError(f"--quantize {name} runs in a separate environment: {_INSTALL}")
    if family_of(source.network.config).model_type == "gpt2":
        raise ValueError(
            f"{source.name}: GPT2LMHeadModel has Conv1D layers, which {name} does not quantize; use --format gguf"
        )
    if source.scalar:
        raise ValueError(f"{source.name}: a reward model; {name} is for language models, use --quantize int8")
    _group_size(source)
    probe = "import llmcompressor"
    try:
        done = subprocess.run([settings.quantizer_python, "-c", probe], capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"--quantizer_python {settings.quantizer_python}: {error.strerror}: {_INSTALL}") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["it failed"]
        raise ValueError(f"--quantizer_python {settings.quantizer_python}: {reason[0]}: {_INSTALL}")


def write_calibrated(source: Source, directory: Path, settings: ExportSettings) -> None:
    """Write a transformers directory in the compressed-tensors format.

    Raises:
        ValueError: llm-compressor failed; the message has its last line.
        OSError: the disk is full.
    """
    assert settings.quantizer_python is not None
    with TemporaryDirectory(dir=directory) as scratch:
        plain, out, job = (Path(scratch, name) for name in ("plain", "quantized", "job.json"))
        plain.mkdir()
        write_hf(source, plain, settings)
        rows = calibration_rows(source.tokenizer, settings.calibration, source.network.config.context)
        request = {
            "model": str(plain.resolve()),
            "out": str(out.resolve()),
            "method": settings.quantize,
            "group_size": _group_size(source),
            "ignore": ["lm_head"],
            "rows": rows,
        }
        job.write_text(json.dumps(request), encoding="utf-8")
        done = subprocess.run(
            [settings.quantizer_python, str(JOB), str(job)], capture_output=True, text=True, check=False, cwd=scratch
        )
        if done.returncode:
            reason = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            raise ValueError(f"{settings.quantize}: llm-compressor failed: {reason[0]}")
        source.tokenizer.save(directory)
        for path in (*out.glob("model*.safetensors*"), out / "config.json", out / "generation_config.json"):
            path.chmod(job.stat().st_mode)
            path.rename(directory / path.name)


def calibration_rows(
    tokenizer: Tokenizer, texts: Sequence[str | list[dict[str, str]]], context: int
) -> list[list[int]]:
    """Token ids of calibration texts, rendered as in training and truncated to the context.

    Args:
        tokenizer: of the source.
        texts: texts, or chats that end with a response.
        context: maximum row length, tokens.
    """
    rows = [
        [*tokenizer.opening_ids, *tokenizer.encode(text)] if isinstance(text, str) else tokenizer.render_chat(text).ids
        for text in texts
    ]
    return [row[:context] for row in rows if len(row) > 1]


def _group_size(source: Source) -> int:
    """The widest group size that divides every row width.

    Raises:
        ValueError: none does.
    """
    config = source.network.config
    widths = {config.width, config.heads * config.resolved_head_width, config.resolved_ff_width}
    for size in _GROUPS:
        if not any(width % size for width in widths):
            return size
    raise ValueError(
        f"{source.name}: row widths are {', '.join(map(str, sorted(widths)))}; gptq and awq need multiples of "
        f"{_GROUPS[-1]}: use --quantize int8"
    )
