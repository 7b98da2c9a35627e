"""What model files and settings say about pooling, and what of it is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from octavo_protocol.errors import ConfigError
from octavo_runtime.config import EngineConfig, PoolerConfig
from octavo_runtime.model_config import ModelConfig
from octavo_runtime.models.pooling_config import read_pooling_config
from octavo_runtime.models.runner_type import resolve_runner
from octavo_runtime.models.sentence_transformers import read_sentence_modules
from octavo_runtime.pooling import DenseHead, PoolingConfig

BERT = {
    "architectures": ["BertModel"],
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 64,
}
POOLING = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
DENSE = {
    "in_features": 8,
    "out_features": 4,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}


class Folder:
    """A model folder, written file by file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("config.json", BERT)

    def write(self, name: str, value: Any) -> None:
        (self.path / name).parent.mkdir(exist_ok=True)
        (self.path / name).write_text(json.dumps(value))

    def stages(self, *kinds: str, package: str = "sentence_transformers.models") -> None:
        names = ["" if kind == "Transformer" else f"{i}_{kind}" for i, kind in enumerate(kinds)]
        self.write(
            "modules.json",
            [
                {"idx": i, "name": str(i), "path": name, "type": f"{package}.{kind}"}
                for i, (kind, name) in enumerate(zip(kinds, names, strict=True))
            ],
        )

    def config(self, overrides: dict[str, Any] | None = None, **user: Any) -> PoolingConfig:
        config = EngineConfig(
            model=self.path, pooler_config=PoolerConfig(**user), hf_overrides=overrides or {}
        )
        model_config = ModelConfig.from_folder(self.path, overrides)
        choice = resolve_runner(config, model_config.architecture)
        return read_pooling_config(config, model_config, choice)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_sentence_transformers_folder(folder: Folder) -> None:
    folder.stages("Transformer", "Pooling", "Dense", "Normalize")
    folder.write("1_Pooling/config.json", POOLING)
    folder.write("2_Dense/config.json", DENSE)
    folder.write("sentence_bert_config.json", {"max_seq_length": 32, "do_lower_case": False})
    folder.write("config_sentence_transformers.json", {"prompts": {"query": "query: "}})

    assert folder.config() == PoolingConfig(
        tasks=("embed", "token_embed"),
        seq_pooling_type="MEAN",
        dense=(DenseHead(folder.path / "2_Dense", 8, 4, True, "Tanh"),),
        embedding_size=4,
        max_model_len=32,
        prompts=(("query", "query: "),),
    )


def test_files_of_version_6(folder: Folder) -> None:
    folder.stages(
        "Transformer", "Pooling", package="sentence_transformers.sentence_transformer.modules"
    )
    folder.write("1_Pooling/config.json", {"embedding_dimension": 8, "pooling_mode": "lasttoken"})

    config = folder.config()

    assert (config.seq_pooling_type, config.use_activation) == ("LAST", False)


def test_a_bare_encoder_gives_its_first_token_with_length_one(folder: Folder) -> None:
    assert read_sentence_modules(folder.path) is None
    assert folder.config() == PoolingConfig(
        tasks=("embed", "token_embed"), seq_pooling_type="CLS", embedding_size=8
    )


@pytest.mark.parametrize(
    ("extra", "activation", "labels"),
    [
        ({}, "softmax", ("LABEL_0", "LABEL_1")),
        ({"id2label": {"0": "only"}}, "sigmoid", ("only",)),
        ({"id2label": {"1": "b", "0": "a"}, "problem_type": "regression"}, "identity", ("a", "b")),
        ({"problem_type": "multi_label_classification"}, "sigmoid", ("LABEL_0", "LABEL_1")),
        (
            {
                "id2label": {"0": "x"},
                "sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"},
            },
            "identity",
            ("x",),
        ),
    ],
)
def test_what_a_classifier_does_with_its_logits(
    folder: Folder, extra: dict[str, Any], activation: str, labels: tuple[str, ...]
) -> None:
    folder.write("config.json", BERT | {"architectures": ["BertForSequenceClassification"]} | extra)
    config = folder.config()
    assert config == PoolingConfig(
        tasks=("classify", "token_classify"),
        seq_pooling_type="CLS",
        activation=activation,  # type: ignore[arg-type]
        labels=labels,
    )


@pytest.mark.parametrize(("said", "pooling"), [("cls", "CLS"), ("mean", "MEAN")])
def test_the_head_of_a_modernbert_takes_what_its_file_says(
    folder: Folder, said: str, pooling: str
) -> None:
    architecture = "ModernBertForSequenceClassification"
    folder.write(
        "config.json", BERT | {"architectures": [architecture], "classifier_pooling": said}
    )
    assert folder.config().seq_pooling_type == pooling


def test_a_token_classifier_has_that_task_alone(folder: Folder) -> None:
    folder.write("config.json", BERT | {"architectures": ["BertForTokenClassification"]})
    assert folder.config().tasks == ("token_classify",)


def test_settings_go_before_files(folder: Folder) -> None:
    folder.stages("Transformer", "Pooling", "Normalize")
    folder.write("1_Pooling/config.json", POOLING)

    config = folder.config(
        {"matryoshka_dimensions": [2, 4]},
        pooling_type="CLS",
        use_activation=False,
        dimensions=4,
        task="embed",
    )

    assert config == PoolingConfig(
        tasks=("embed",),
        seq_pooling_type="CLS",
        use_activation=False,
        embedding_size=8,
        matryoshka=True,
        matryoshka_dimensions=(2, 4),
        dimensions=4,
    )


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"dimensions": 4}, "no Matryoshka model"),
        ({"task": "classify"}, "BertModel has embed, token_embed"),
        ({"returned_token_ids": [0]}, "gives 0 logits"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    folder: Folder, user: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        folder.config(**user)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling max is not"),
        ("1_Pooling/config.json", {"pooling_mode": ["cls", "mean"]}, r"pooling cls\+mean is not"),
        ("1_Pooling/config.json", {"include_prompt": False}, "include_prompt"),
        ("1_Pooling/config.json", [], "must hold a JSON object"),
        ("2_Dense/config.json", DENSE | {"activation_function": "os.system"}, "system is not"),
        ("2_Dense/config.json", DENSE | {"use_residual": True}, "use_residual True is not"),
        ("2_Dense/config.json", DENSE | {"in_features": 7}, "takes 7 features, it gets 8"),
        ("2_Dense/config.json", {}, "must have in_features"),
        ("modules.json", [{"type": "a.Transformer", "path": "0_T"}], "in the folder itself"),
        ("modules.json", {"a": 1}, "not a list of sentence-transformers modules"),
    ],
)
def test_files_that_cannot_be_honoured_are_named(
    folder: Folder, file: str, content: Any, message: str
) -> None:
    folder.stages("Transformer", "Pooling", "Dense")
    folder.write("1_Pooling/config.json", POOLING)
    folder.write("2_Dense/config.json", DENSE)
    folder.write(file, content)

    with pytest.raises(ConfigError, match=message):
        folder.config()


def test_a_module_without_its_file_is_refused(folder: Folder) -> None:
    folder.stages("Transformer", "Pooling")

    with pytest.raises(ConfigError, match=r"1_Pooling/config\.json: it is missing"):
        folder.config()


@pytest.mark.parametrize(
    ("kinds", "message"),
    [
        (["Transformer", "WeightedLayerPooling"], "WeightedLayerPooling is not supported"),
        (["Transformer", "Normalize", "Pooling"], "must come in the order"),
        (["Pooling"], "must come in the order"),
    ],
)
def test_stages_that_are_not_supported_are_named(
    folder: Folder, kinds: list[str], message: str
) -> None:
    folder.stages(*kinds)

    with pytest.raises(ConfigError, match=message):
        folder.config()


@pytest.mark.parametrize("place", ["../elsewhere", "/etc", "a/../../b", "..\\windows"])
def test_no_path_leads_out_of_the_folder(folder: Folder, place: str) -> None:
    folder.write(
        "modules.json",
        [{"type": "m.Transformer", "path": ""}, {"type": "m.Pooling", "path": place}],
    )

    with pytest.raises(ConfigError, match="leads out of the folder"):
        folder.config()
