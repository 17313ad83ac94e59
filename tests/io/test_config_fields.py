"""config.json with fields removed, set to null or added: what transformers makes of it is what we make of it.

Each network has random weights, loaded into the network that the edited file describes, in both programs.
"""

import json
from dataclasses import fields as dataclass_fields

import pytest
import torch
import transformers
from naming import naming
from transformers.initialization import no_init_weights

from align.io.directory import load_network, save_network
from align.io.families import TWINS, config_from, family_of
from align.io.families.family import ConfigJson
from align.io.location import read_config
from align.model.config import GPTConfig
from align.model.gpt import GPT
from align.model.rope_scaling import YarnScaling

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
KINDS = {
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "smollm3": "SmolLM3",
    "olmo2": "Olmo2",
    "gemma2": "Gemma2",
    "gemma3_text": "Gemma3Text",
    "gpt2": "GPT2",
    "gpt_neox": "GPTNeoX",
}
# Away from the defaults, so that a field that is removed or null makes a difference.
ROTARY = SHAPE | {"num_key_value_heads": 2, "rms_norm_eps": 0.01, "rope_parameters": {"rope_theta": 300.0}}
WINDOWED = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}
GEMMA = ROTARY | {"head_dim": 16, "sliding_window": 5, "query_pre_attn_scalar": 20}
STATED = {
    "llama": ROTARY,
    "mistral": ROTARY | {"head_dim": 6, "sliding_window": 5},
    "qwen2": ROTARY | WINDOWED,
    "qwen3": ROTARY | WINDOWED | {"head_dim": 6},
    "smollm3": ROTARY | {"no_rope_layers": [0, 1, 1, 0]},
    "olmo2": ROTARY,
    "gemma2": GEMMA | {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0},
    "gemma3_text": GEMMA
    | {"final_logit_softcapping": 2.0, "sliding_window_pattern": 3}
    | {"rope_parameters": {kind: {"rope_theta": 300.0} for kind in ("full_attention", "sliding_attention")}},
    "gpt2": {"vocab_size": 40, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 64, "layer_norm_epsilon": 0.01},
    "gpt_neox": SHAPE
    | {"layer_norm_eps": 0.01, "use_parallel_residual": False, "hidden_act": "gelu_new"}
    | {"rope_parameters": {"rope_theta": 300.0, "partial_rotary_factor": 0.5}},
}
SIZES = {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"}
SIZES |= {"n_embd", "n_layer", "n_head", "n_inner"}
"""Without these no weights fit; ``test_defaults`` has their defaults"""
IDS = torch.randint(3, 40, (1, 30), generator=torch.Generator().manual_seed(6))


class Both:
    """A family's file, and both networks that files like it describe."""

    def __init__(self, family, directory):
        self.kind = getattr(transformers, f"{KINDS[family]}Config")
        self.path = directory / "config.json"
        self.theirs = self.network(stated(family))
        with torch.no_grad():
            for parameter in self.theirs.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.2)
        self.theirs.save_pretrained(directory)
        self.file = json.loads(self.path.read_text())
        ours = load_network(directory, dtype=torch.float64)
        self.config = ours.config
        self.ours = ours.state_dict()
        self.ours.setdefault("lm_head.weight", self.ours["model.embed_tokens.weight"])
        self.logits = self.expected(self.file)

    def config_of(self, file):
        """Ours."""
        return config_from(ConfigJson(file, self.path))

    def network(self, file):
        """That of transformers, without its weights."""
        config = self.kind.from_dict(json.loads(json.dumps(file)))
        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        model.tie_weights()
        return model.double().eval()

    @torch.no_grad()
    def expected(self, file):
        """The logits of transformers; None where it refuses the file, or the weights do not fit it."""
        try:
            network = self.network(file)
            network.load_state_dict(self.theirs.state_dict())
            return network(IDS).logits
        except Exception:  # of any kind: many are not written for the reader
            return None

    @torch.no_grad()
    def found(self, file):
        """Our logits."""
        network = GPT(self.config_of(file)).double().eval()
        network.load_state_dict({name: self.ours[name] for name in network.state_dict()})
        return network(IDS)

    def unlike(self, edits, *, everywhere=False):
        """The edits after which transformers loads the file, and we don't or logits differ.

        Args:
            edits: files by name.
            everywhere: transformers must load all.
        """
        wrong = []
        for name, file in edits.items():
            if (expected := self.expected(file)) is None:
                assert not everywhere, name
            else:
                try:
                    difference = (self.found(file) - expected).abs().max().item()
                except (ValueError, RuntimeError) as error:
                    difference = str(error)
                if not (isinstance(difference, float) and difference < 1e-4):
                    wrong.append((name, difference))
        return wrong

    def same(self, file):
        """Whether both programs read it as the unchanged file."""
        try:
            theirs = self.kind.from_dict(json.loads(json.dumps(file))).to_dict()
            return theirs == self.kind.from_dict(dict(self.file)).to_dict() and self.config_of(file) == self.config
        except Exception:  # as above
            return False


def stated(family):
    """A file."""
    kind = getattr(transformers, f"{KINDS[family]}Config")
    return json.loads(kind(**STATED[family]).to_json_string()) | {"model_type": family}


@pytest.fixture(scope="module")
def both(request, tmp_path_factory):
    """Of the family, made once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = Both(family, tmp_path_factory.mktemp(family))
        return made[family]

    return make


@pytest.mark.parametrize("family", KINDS)
def test_every_field_removed_or_null(both, family):
    """Wherever transformers loads the file, logits agree."""
    both = both(family)
    assert both.unlike({"unchanged": both.file}, everywhere=True) == []
    ignored = SIZES | {"architectures", "model_type", "transformers_version", "dtype"}
    names = [name for name in both.file if name not in ignored and "_token_id" not in name]
    assert len(names) > 8
    edits = {f"without {name}": {k: v for k, v in both.file.items() if k != name} for name in names}
    edits |= {f"{name}: null": both.file | {name: None} for name in names}
    assert both.unlike({name: file for name, file in edits.items() if not both.same(file)}) == []


@pytest.mark.parametrize("family", TWINS, ids=lambda family: family.model_type)
def test_defaults(family):
    """Of transformers' class, with fields aside that its code reads, that are ours, or that the family never reads."""
    own = {"embedding_std", "sliding_window_pattern", "head_dim", "attention_bias", "hidden_act"}
    theirs = {
        field.name: field.default
        for field in dataclass_fields(getattr(transformers, f"{KINDS[family.model_type]}Config"))
        if field.name in family.defaults
    }
    assert {name: value for name, value in family.defaults.items() if name in theirs} == theirs
    assert family.defaults.keys() - theirs.keys() <= own


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
BASE = {"rope_theta": 300.0}
SCALED = {
    "rope_scaling beside rope_parameters": {"rope_scaling": {"type": "linear", "factor": 4} | BASE},
    "rope_scaling: yarn beside": {"rope_scaling": YARN | BASE},
    "both, equal": {"rope_scaling": YARN | BASE, "rope_parameters": YARN | BASE},
    "before transformers 5": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3}},
    "context of yarn above": {"original_max_position_embeddings": 8, "rope_parameters": YARN | BASE},
    "context of llama3 above": {"original_max_position_embeddings": 8, "rope_parameters": LLAMA3 | BASE},
    "context above without effect": {"original_max_position_embeddings": 8},
    "context of llama3 nowhere": {"rope_parameters": LLAMA3 | BASE},
    "context of yarn nowhere": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0} | BASE},
    "factor of yarn: null": {"rope_parameters": YARN | BASE | {"factor": None}},
    "beta_fast: 0": {"rope_parameters": YARN | BASE | {"beta_fast": 0}},
    "mscale": {"rope_parameters": YARN | BASE | {"mscale": 0.7, "mscale_all_dim": 1.2}},
    "base nowhere": {"rope_parameters": {"rope_type": "linear", "factor": 2.0}},
}
FULL = {"layer_types": ["full_attention"] * 4}
NESTED = {"sliding_attention": {"rope_theta": 50.0}}
ADDED = {
    "qwen2": {"all full": FULL, "head_dim": {"head_dim": 8}},
    "smollm3": {"interval": {"no_rope_layers": None, "no_rope_layer_interval": 2}},
    "gemma2": {"pattern": {"layer_types": None, "sliding_window_pattern": 3}, "all full": FULL},
    "gemma3_text": {
        "pattern": {"layer_types": None, "sliding_window_pattern": 2},
        "all full": FULL,
        "before transformers 5": {
            "rope_parameters": None,
            "rope_theta": 500.0,
            "rope_local_base_freq": 70.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        "yarn": {"rope_parameters": NESTED | {"full_attention": YARN | BASE}},
        "merged": {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        "no base": {"rope_parameters": NESTED, "rope_theta": 90.0},
    },
    "gpt2": {"alias": {"n_head": None, "num_attention_heads": 2}, "both": {"num_attention_heads": 4}},
    "gpt_neox": {
        "older": {"rope_parameters": None, "rotary_pct": 0.25, "rotary_emb_base": 50},
        "oldest": {"rope_parameters": None},
        "head_dim": {"head_dim": 8},
    },
}


@pytest.mark.parametrize("family", KINDS)
def test_fields_added(both, family):
    """What transformers' precedence gives."""
    both = both(family)
    rotary = {} if family in ("gpt2", "gemma3_text") else SCALED
    if family == "gpt_neox":  # the other half of what its rope_parameters state
        share = {"partial_rotary_factor": 0.5}
        rotary = {
            name: {key: value | share if value and key.startswith("rope_") else value for key, value in change.items()}
            for name, change in SCALED.items()
        }
    changes = rotary | ADDED.get(family, {})
    edits = {
        name: {key: value for key, value in (both.file | change).items() if (key, value) != ("n_head", None)}
        for name, change in changes.items()
    }
    assert both.unlike(edits, everywhere=True) == []


@pytest.mark.parametrize("family", ["mistral", "qwen2", "qwen3", "gemma2", "gemma3_text"])
def test_a_missing_window_is_that_of_transformers(tmp_path, family):
    """4,096, longer than the rows of the tests above; null is none."""
    file = {name: value for name, value in stated(family).items() if name != "sliding_window"}
    kind = getattr(transformers, f"{KINDS[family]}Config")
    windows = [config_from(ConfigJson(edited, tmp_path)).window for edited in (file, file | {"sliding_window": None})]
    assert windows == [kind.from_dict(dict(file)).sliding_window, None]
    assert windows[0] == 4096


CONTRADICTIONS = [
    ("llama", {"rope_theta": 500.0}, ("rope_theta", "500.0", "rope_parameters.rope_theta", "300.0")),
    ("llama", {"rope_scaling": LLAMA3 | BASE, "rope_parameters": YARN | BASE}, ("rope_parameters", "rope_scaling")),
    ("llama", {"rope_scaling": None, "rope_parameters": YARN | BASE}, ("rope_scaling is None", "rope_parameters")),
    ("llama", {"rope_scaling": {}, "rope_parameters": YARN | BASE}, ("rope_scaling is {}", "rope_parameters")),
    ("llama", {"rope_scaling": LLAMA3}, ("rope_parameters.rope_theta", "300.0", "10000.0")),
    ("gemma3_text", {"rope_local_base_freq": 5.0}, ("rope_local_base_freq", "5.0", "sliding_attention.rope_theta")),
    ("gpt2", {"num_attention_heads": 2}, ("n_head", 4, "num_attention_heads", 2)),
    ("gpt_neox", {"rotary_pct": 1.0}, ("rotary_pct", "1.0", "0.5")),
    ("gpt_neox", {"rope_parameters": None, "rope_theta": 77.0}, ("rope_theta", "77.0", "rotary_emb_base", "10000.0")),
]
REFUSED = [
    *((family, {"is_causal": value}, ("is_causal", value)) for family in KINDS for value in (False, None)),
    ("llama", {"per_layer_config": {"0": {"head_dim": 4}}}, ("per_layer_config", "'head_dim'")),
    ("llama", {"rms_norm_eps": "1e-6"}, ("rms_norm_eps", "'1e-6'")),
    ("llama", {"rms_norm_eps": None}, ("rms_norm_eps", "None")),
    ("llama", {"tie_word_embeddings": "false"}, ("tie_word_embeddings", "'false'")),
    ("llama", {"num_hidden_layers": 4.0}, ("num_hidden_layers", "4.0")),
    ("llama", {"rope_parameters": {"rope_theta": "1e4"}}, ("rope_parameters.rope_theta", "'1e4'")),
    ("llama", {"rope_parameters": YARN | {"factor": "2"}}, ("rope_parameters.factor", "'2'")),
    ("llama", {"rope_parameters": YARN | {"truncate": "no"}}, ("rope_parameters.truncate", "'no'")),
    ("mistral", {"sliding_window": 0}, ("sliding_window", 0)),
    ("qwen2", {"layer_types": "full_attention"}, ("layer_types", "'full_attention'")),
    ("smollm3", {"no_rope_layers": []}, ("no_rope_layers", "[]", 4)),
    ("smollm3", {"no_rope_layer_interval": 0, "no_rope_layers": None}, ("no_rope_layer_interval", 0)),
    (
        "smollm3",
        {"layer_types": ["sliding_attention"] * 4, "sliding_window": 5},
        ("layer_types", "'sliding_attention'"),
    ),
    ("gemma2", {"query_pre_attn_scalar": 0}, ("query_pre_attn_scalar", 0)),
    ("gemma3_text", {"attn_logit_softcapping": 5.0}, ("attn_logit_softcapping", "5.0", "None")),
    ("gemma3_text", {"rope_parameters": YARN}, ("rope_parameters", "'yarn'")),
    (
        "gemma3_text",
        {"rope_parameters": {"full_attention": YARN | {"truncate": False}}},
        ("rope_parameters.full_attention.truncate", "False"),
    ),
    ("gpt_neox", {"head_dim": 12}, ("head_dim", 12, 8)),
]


@pytest.mark.parametrize(("family", "change", "parts"), CONTRADICTIONS + REFUSED, ids=str)
def test_what_contradicts_or_is_not_supported_is_named(tmp_path, family, change, parts):
    """In one line, with file, field and value."""
    file = stated(family) | change
    path = tmp_path / "config.json"
    with pytest.raises(ValueError, match=naming(path, *parts)) as error:
        config_from(ConfigJson(file, path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rope_theta", "rope_scaling", "rope_parameters"])
def test_an_edit_of_one_field_that_we_wrote_is_used_or_refused(tmp_path, name):
    """We write a RoPE setting in several fields, for readers of all ages."""
    scaling = YarnScaling(factor=2.0, original_context=16)
    shape = {"vocab_size": 40, "layers": 1, "heads": 2, "width": 16, "context": 64}
    save_network(GPT(GPTConfig(**shape, rope_scaling=scaling)), tmp_path, bos_id=0, eos_ids=[1], pad_id=2)
    before = read_config(tmp_path)
    path = tmp_path / "config.json"
    file = json.loads(path.read_text())
    edited = file[name] * 2 if name == "rope_theta" else file[name] | {"factor": 4.0}
    path.write_text(json.dumps(file | {name: edited}))
    with pytest.raises(ValueError, match=naming(path, "which has priority")):
        read_config(tmp_path)
    changed = {"rope_scaling": edited, "rope_parameters": file["rope_parameters"] | {"factor": 4.0}}
    if name != "rope_theta":
        path.write_text(json.dumps(file | changed))
        assert read_config(tmp_path).rope_scaling == YarnScaling(factor=4.0, original_context=16)
    assert before.rope_scaling == scaling


def test_a_soft_cap_of_scores_is_no_gemma3():
    """transformers ignores it there."""
    gemma3 = {"norm_placement": "both", "norm_offset": True, "scale_embeddings": True, "feed_forward": "geglu"}
    config = GPTConfig(**gemma3, qk_norm="head")
    assert family_of(config).model_type == "gemma3_text"
    capped = GPTConfig(**gemma3, qk_norm="head", attention_softcap=2.0)
    assert family_of(capped).architecture == "AlignGPT"
