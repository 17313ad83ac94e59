"""Quantize a directory with llm-compressor; a script for the python of an environment that has it.

Usage: ``PYTHON llmcompressor_job.py JOB.json`` with ``model`` and ``out`` (directories), ``method`` (gptq or awq),
``group_size``, ``ignore`` (modules not to quantize) and ``rows`` (token ids of calibration texts). Does not import
align, which that environment lacks.
"""

import json
import sys
from pathlib import Path
from typing import Any


def recipe(job: dict[str, Any]) -> list[Any]:
    """The steps llm-compressor applies to the model.

    Args:
        job: see the module.

    Returns:
        Modifiers: GPTQ, or AWQ scaling and round-to-nearest; both to symmetric 4-bit groups.
    """
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    # Symmetric: compressed-tensors 0.20 does not read the packed zero points that 0.19 writes.
    weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=job["group_size"], symmetric=True)
    groups = {"config_groups": {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}}
    if job["method"] == "gptq":
        from llmcompressor.modifiers.gptq import GPTQModifier

        return [GPTQModifier(**groups, ignore=job["ignore"])]
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform import AWQModifier

    return [AWQModifier(), QuantizationModifier(**groups, ignore=job["ignore"])]


def main(path: str) -> None:
    """Run a job.

    Args:
        path: of its JSON file.
    """
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot

    if not torch.accelerator.is_available():
        # AWQ pins memory for an accelerator, which torch refuses where there is none.
        torch.Tensor.pin_memory = lambda tensor: tensor  # type: ignore[assignment,misc]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    rows = job["rows"]
    oneshot(
        model=job["model"],
        tokenizer=job["model"],
        dataset=Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(row) for row in rows]}),
        recipe=recipe(job),
        max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows),
        shuffle_calibration_samples=False,
        output_dir=job["out"],
    )


if __name__ == "__main__":
    main(sys.argv[1])
