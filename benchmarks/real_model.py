"""LoRA on a pretrained model: optimizer steps of SFT and DPO, iterations of GRPO, align against TRL with peft.

    python benchmarks/real_model.py PATH --rounds 2 --threads 1 --out benchmarks/results/real_model.json

PATH is a Hugging Face directory with weights, tokenizer and chat template that both sides can read. Peers: ``trl``
TRL's trainers with peft, gradient checkpointing off; ``trl-precomputed`` (DPO) with reference log-probs before
training; ``align`` our stages through the Trainer with its callbacks, as `align fit` runs them, where DPO precomputes;
``align-on-the-fly`` (DPO) with the reference in every step; ``align-bfloat16`` (GRPO) with `rollout.dtype: bfloat16`.

Equal on both sides: weights, float32, rank, alpha and matrices of the adapters, AdamW, gradient clipping at 1.0, and
conversations of random words with exact numbers of tokens. GRPO samples the same number of tokens for every response;
without KL (``grpo``) neither side runs a reference, with it (``grpo-kl``) both run it once per iteration.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "alignment"))
from measure import Numbers, Setting, main, parser

METHODS = {
    "sft": {"peers": ("trl", "align"), "batch": 6},
    "dpo": {"peers": ("trl", "trl-precomputed", "align", "align-on-the-fly"), "batch": 4},
    "grpo": {"peers": ("trl", "align", "align-bfloat16"), "batch": 2, "group": 8, "kl_coef": 0.0},
    "grpo-kl": {"peers": ("trl", "align", "align-bfloat16"), "batch": 2, "group": 8, "kl_coef": 0.05},
}
"""The peers of each, and rows, pairs or prompts of a step; with ``group``, responses to each prompt"""


def settings(args: argparse.Namespace) -> list[Setting]:
    """What is equal for all peers."""
    span = (48, 48) if args.quick else (100, 100)
    found = []
    for name in args.methods.split(","):
        method = METHODS[name]
        steps = 1 if args.quick or "group" in method else args.steps
        found.append(
            {"name": name, "method": name.split("-")[0], "model": str(args.model.resolve()), "rank": args.rank}
            | {"warmup": 1, "steps": steps, "rows": method["batch"] * steps, "span": span}
            | {"new": 16 if args.quick else 64}
            | method
        )
    return found


def _trl(setting: Setting, **variant: bool) -> Numbers:
    from trl_real import measure

    return measure(setting, **variant)


def _align(setting: Setting, **variant: object) -> Numbers:
    from ours_real import measure

    return measure(setting, **variant)


PEERS = {
    "trl": _trl,
    "trl-precomputed": lambda setting: _trl(setting, precomputed=True),
    "align": _align,
    "align-on-the-fly": lambda setting: _align(setting, reference_logprobs="on_the_fly"),
    "align-bfloat16": lambda setting: _align(setting | {"dtype": "bfloat16"}),
}

if __name__ == "__main__":
    p = parser(__doc__ or "", PEERS)
    p.formatter_class = type("", (argparse.RawDescriptionHelpFormatter, p.formatter_class), {})
    p.add_argument("model", type=Path, nargs="?", help="a Hugging Face directory")
    p.add_argument("--methods", default=",".join(METHODS), help="comma list")
    p.add_argument("--rank", type=int, default=16, help="of the adapters; alpha is twice that")
    p.add_argument("--steps", type=int, default=2, help="optimizer steps measured after one of warm-up; GRPO: one")
    p.add_argument("--quick", action="store_true", help="one step, parts of 48 tokens, 16 new tokens: tries the script")
    a = p.parse_args()
    if not (a.child or a.model):
        p.error("give the directory of a model")
    main(
        a,
        PEERS,
        [] if a.child else settings(a),
        columns=["cpu_s", "wall_s", "cpu_s_with_reference", "peak_rss_mb"],
    )
