"""The parts of the sandbox's gold reward, averaged over a file of chats or of samples.

python benchmarks/gold_parts.py runs/tiny/samples/samples.jsonl
"""

import json, statistics, sys
from align.sandbox import gold_reward

pairs = []
for line in open(sys.argv[1]):
    row = json.loads(line)
    prompt, response = (m["content"] for m in row["messages"]) if "messages" in row else (row["prompt"], row["text"])
    pairs.append(gold_reward(prompt, response))
for part in pairs[0]._fields:
    print(part, round(statistics.mean(getattr(gold, part) for gold in pairs), 3))
print("well-formed texts", sum(g.grammar == 1 for g in pairs) / len(pairs), len(pairs))
