"""Optimizer steps of SFT, reward model and DPO, iterations of PPO and GRPO: align against TRL, same shape, same rows.

    python benchmarks/alignment/bench_alignment.py --rounds 3 --threads 1

Peers: ``trl`` TRL's trainers with gradient checkpointing off; ``trl-precomputed`` (DPO) with reference log-probs
before training; ``align`` our stages through the Trainer with its callbacks, as `align fit` runs them: DPO precomputes,
PPO has a value model of its own; ``align-on-the-fly`` (DPO) with the reference in every step; ``align-shared`` (PPO)
with the value model as a head on the policy's trunk, a different algorithm that does less work.

TRL 1.12.0 is the last release with PPO. That peer runs in its own environment:

    python -m venv PATH
    PATH/bin/pip install trl==1.12.0

Name its interpreter with --ppo-python PATH/bin/python or the variable TRL_PPO_PYTHON. Without it PPO is measured
without TRL.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from measure import Numbers, Setting, main, parser

SHAPE = {"vocab_size": 4096, "layers": 6, "heads": 6, "width": 384, "ff_width": 1024, "context": 256}
METHODS = {
    "sft": ("trl", "align"),
    "reward": ("trl", "align"),
    "dpo": ("trl", "trl-precomputed", "align", "align-on-the-fly"),
    "ppo": ("trl", "align", "align-shared"),
    "grpo": ("trl", "align"),
}
"""The peers of each"""


def settings(methods: list[str], lengths: list[str], args: argparse.Namespace) -> list[Setting]:
    """Equal for all peers: batch (rows, pairs, prompts of an iteration), group (responses to a prompt), new tokens."""
    python = {"trl": args.ppo_python} if args.ppo_python else {}
    sizes = {"ppo": {"batch": 16, "group": 1}, "grpo": {"batch": 2, "group": 8}}
    found = []
    for length in lengths:
        for method in methods:
            size = sizes.get(method, {"batch": 8, "group": 1})
            steps = args.iterations if method == "ppo" else args.steps
            peers = METHODS[method]
            if method == "ppo" and not python:
                print("ppo is measured without trl: see --ppo-python", file=sys.stderr)
                peers = peers[1:]
            # TRL's PPO shuffles, so every iteration has the same prompts. Others see each row once after the warm-up.
            rows = size["batch"] * (1 if method == "ppo" else steps)
            found.append(
                {"name": f"{method} {length}", "method": method, "lengths": length, "peers": peers, "rows": rows}
                | {"steps": steps, "warmup": args.warmup, "shape": SHAPE, "span": (16, 112), "new": 64}
                | {"python": python if method == "ppo" else {}}
                | size
            )
    return found


def _trl(setting: Setting, **variant: bool) -> Numbers:
    from trl_alignment import measure

    return measure(setting, **variant)


def _align(setting: Setting, **variant: object) -> Numbers:
    from ours_alignment import measure

    return measure(setting, **variant)


def _align_shared(setting: Setting) -> Numbers:
    from ours_alignment import measure, shared_trunk

    return measure(setting, **shared_trunk())


PEERS = {
    "trl": _trl,
    "trl-precomputed": lambda setting: _trl(setting, precomputed=True),
    "align": _align,
    "align-on-the-fly": lambda setting: _align(setting, reference_logprobs="on_the_fly"),
    "align-shared": _align_shared,
}

if __name__ == "__main__":
    p = parser(__doc__ or "", PEERS)
    p.formatter_class = type("", (argparse.RawDescriptionHelpFormatter, p.formatter_class), {})
    p.add_argument("--methods", default=",".join(METHODS), help="comma list")
    p.add_argument("--lengths", default="fixed,mixed", help="comma list; fixed: 64 + 64 tokens, mixed: 16 to 112 each")
    p.add_argument(
        "--steps", type=int, default=4, help="optimizer steps measured (GRPO: iterations), one pass over rows"
    )
    p.add_argument("--iterations", type=int, default=2, help="iterations of PPO measured")
    p.add_argument("--warmup", type=int, default=1, help="steps or iterations left out, at least 1")
    p.add_argument("--ppo-python", default=os.environ.get("TRL_PPO_PYTHON"), help="interpreter that has trl 1.12.0")
    a = p.parse_args()
    main(
        a,
        PEERS,
        settings(a.methods.split(","), a.lengths.split(","), a),
        columns=["cpu_s", "wall_s", "cpu_s_with_reference", "peak_rss_mb"],
    )
