"""Training configurations: composed of the environment's, checked field by field, on the command line and in files."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from agents.cli import main
from agents.full_image.config import FullImageConfig
from agents.ram.config import PRESETS, RamConfig, preset
from agents.registry import load_run, read_config
from agents.sb3.config import Sb3Config
from agents.training.config import TrainConfig, nearest_task
from agents.training.fingerprint import describe_data
from agents.training.migrate import rename_agent
from agents.training.run_folder import FORMAT, RunError, RunFolder
from ram_gym import TASKS, GlimpseConfig, get_task
from ram_gym.tasks import Task

DATA = describe_data(GlimpseConfig(dataset="digits"))
CONFIGS: dict[str, TrainConfig] = {
    "ram": RamConfig(),
    "cnn": FullImageConfig(),
    "sb3-ppo-lstm": Sb3Config(),
}
ENVIRONMENT = {
    "dataset": "mnist",
    "data_root": "somewhere",
    "canvas_size": 80,
    "num_clutter": 5,
    "clutter_size": 7,
    "composition": "overwrite",
    "num_glimpses": 9,
    "patch_size": 6,
    "num_scales": 2,
    "scale_factor": 3,
    "scene_seed": 11,
    "image_size": 30,
}


class Begun(Exception):
    """Training would begin now, with this configuration."""


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a training command up to the training, and gives its configuration."""

    def stop(config: Any, *_: Any, **__: Any) -> None:
        raise Begun(config)

    for folder in ("ram", "full_image", "sb3"):
        monkeypatch.setattr(f"agents.{folder}.training.train", stop)

    def run(*arguments: str) -> Any:
        with pytest.raises(Begun) as begun:
            main(["train", *arguments])
        return begun.value.args[0]

    return run


@pytest.mark.parametrize("agent", ["ram", "cnn", "mlp", "sb3-ppo", "sb3-ppo-lstm"])
def test_every_field_of_the_environment_is_an_option_of_every_agent(agent: str, begin: Any) -> None:
    assert {*ENVIRONMENT, "split"} == {field.name for field in dataclasses.fields(GlimpseConfig)}
    words = [word for name, value in ENVIRONMENT.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    config = begin(agent, "--task", "digits", *words)
    assert config.env_config == GlimpseConfig(**ENVIRONMENT)
    assert (type(config.env_config), config.env_config.split) == (GlimpseConfig, "train")
    assert type(config).from_dict(json.loads(json.dumps(config.to_dict()))) == config
    few = begin(agent, "--num-scales", "2", "--task", "cluttered-100")
    assert few.env_config == get_task("cluttered-100").config.replace(num_scales=2)


def test_like_gives_the_settings_and_task_beside_it_the_environment(begin: Any, tmp_path: Path) -> None:
    stored = RamConfig(task="digits", env_config=GlimpseConfig(**ENVIRONMENT), hidden_size=7)
    RunFolder(tmp_path).create("ram", stored, DATA)
    like = begin("ram", "--like", str(tmp_path), "--num-scales", "1")
    assert like == dataclasses.replace(stored, env_config=stored.env_config.replace(data_root=None, num_scales=1))
    other = begin("ram", "--like", str(tmp_path), "--task=cluttered-60")
    assert other == dataclasses.replace(stored, task="cluttered-60", env_config=get_task("cluttered-60").config)


def test_a_task_without_a_preset_gets_that_of_the_nearest(
    begin: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def near(**overrides: Any) -> str:
        monkeypatch.setitem(TASKS, "new", Task("RamGym/New-v0", overrides, "new"))
        return nearest_task("new", PRESETS["ram"])

    foveated = {"num_scales": 3, "patch_size": 12}
    assert near(canvas_size=28) in ("digits", "mnist-28")
    assert near(canvas_size=64, **foveated) == "translated-60"
    assert near(canvas_size=90, num_clutter=1, **foveated) == "cluttered-60", "the number of scales comes first"
    assert near(canvas_size=200, num_clutter=6, num_scales=4) in ("cluttered-100", "cluttered-100x8")
    assert [nearest_task(name, PRESETS["ram"]) for name in PRESETS["ram"]] == list(PRESETS["ram"])
    near(canvas_size=64, **foveated)
    for agent in ("ram", "mlp", "sb3-ppo"):
        capsys.readouterr()
        config = begin(agent, "--task", "new")
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"new has no preset for {agent}")
        assert line.endswith("translated-60")
        assert (config.task, config.env_config) == ("new", GlimpseConfig(canvas_size=64, **foveated))
    assert begin("ram", "--task", "new").epochs == preset("translated-60").epochs


def refusal_of(folder: RunFolder, fields: dict[str, Any]) -> str:
    """What is said of a run whose stored configuration is made of these fields; one line."""
    about = json.loads((folder.path / "config.json").read_text())
    (folder.path / "config.json").write_text(json.dumps({**about, "config": fields}))
    with pytest.raises(RunError) as refused:
        read_config(folder)
    (line,) = str(refused.value).splitlines()
    return line.removeprefix(f"{folder.path}/config.json: ")


def is_right(field: dataclasses.Field, right: Any, wrong: Any) -> bool:
    """Whether a value that is wrong for most fields is right for this one."""
    if field.name == "final_location_std":
        return wrong is None or (type(wrong) in (int, float) and wrong > 0)
    if isinstance(right, float):
        least = -math.inf if field.name == "log_std_init" else 0
        most = 1 if field.name in ("location_discount", "weight_average", "gamma", "gae_lambda") else math.inf
        return type(wrong) in (int, float) and least <= wrong <= most
    return type(wrong) is type(right) and (field.name in ("device", "dataset", "data_root") or isinstance(right, bool))


WRONG = (None, "x", 1.5, True, math.nan, -math.inf, -1, 10**30, {}, [1.5], "\x1b\n")


@pytest.mark.parametrize("agent", CONFIGS)
def test_a_stored_field_of_another_type_is_one_line(agent: str, tmp_path: Path) -> None:
    config, folder = CONFIGS[agent], RunFolder(tmp_path)
    folder.create(agent, config, DATA)
    assert read_config(folder) == config
    fields = folder.read_about()["config"]
    for field in dataclasses.fields(config):
        name = field.name
        for wrong in WRONG:
            if not is_right(field, getattr(config, name), wrong):
                line = refusal_of(folder, {**fields, name: wrong})
                assert line.startswith(name), (name, wrong)
                assert ("must be" in line and "got" in line) or "env_config.dataset is missing" in line, line
        others = {key: value for key, value in fields.items() if key != name}
        if name not in config.added:
            assert refusal_of(folder, others) == f"{name} is missing; python -m agents migrate {tmp_path} adds it"
    assert refusal_of(folder, {**fields, "zzz": 1}) == "zzz is no field of this version, got 1"


def test_fields_that_stored_runs_lack_have_the_values_that_such_runs_had(tmp_path: Path) -> None:
    for config in (RamConfig(), RamConfig(glimpse_network="conv")):
        fields = json.loads(json.dumps(config.to_dict()))
        for name in RamConfig.added:
            del fields[name]
        assert RamConfig.from_dict(fields) == RamConfig()
    assert RamConfig.added == {"glimpse_network": "mlp"}
    with pytest.raises(ValueError, match="it must be an object, got None"):
        RamConfig.from_dict(None)


def test_a_stored_field_of_the_environment_is_checked_too(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create("ram", RamConfig(), DATA)
    fields = folder.read_about()["config"]
    for field in dataclasses.fields(GlimpseConfig):
        name, right = field.name, getattr(GlimpseConfig(), field.name)
        for wrong in WRONG:
            if (
                wrong is None is right
                or is_right(field, right or "", wrong)
                or (type(right) is int and wrong == 10**30)
            ):
                continue
            line = refusal_of(folder, {**fields, "env_config": {**fields["env_config"], name: wrong}})
            assert re.match(rf"(env_config.)?{name} must be .*, got ", line), line
        others = {key: value for key, value in fields["env_config"].items() if key != name}
        if name in RamConfig.added_to_env_config:
            folder.write_json("config.json", {**folder.read_about(), "config": {**fields, "env_config": others}})
            assert read_config(folder) == RamConfig()
            continue
        line = refusal_of(folder, {**fields, "env_config": others})
        assert line == f"env_config.{name} is missing; python -m agents migrate {tmp_path} adds it"
    line = refusal_of(folder, {**fields, "env_config": {**fields["env_config"], "zzz": 1}})
    assert line == "env_config.zzz is no field of this version, got 1"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RamConfig(epochs=1.5), "epochs must be a valid integer, got 1.5"),  # type: ignore[arg-type]
        (lambda: RamConfig(epochs=True), "epochs must be a valid integer, got True"),
        (lambda: RamConfig(hidden_size=10**7), "hidden_size must be less than or equal to 8192, got 10000000"),
        (lambda: RamConfig(core="rno"), "core must be 'rnn', 'lstm', 'gru' or 'custom', got 'rno'"),  # type: ignore[arg-type]
        (lambda: RamConfig(core=None), "core must be 'rnn', 'lstm', 'gru' or 'custom', got None"),  # type: ignore[arg-type]
        (
            lambda: RamConfig(learning_rate_schedule="one-cxcle"),  # type: ignore[arg-type]
            "learning_rate_schedule must be 'one-cycle', 'cosine' or 'constant', got 'one-cxcle'",
        ),
        (lambda: RamConfig(baseline="learnee"), "baseline must be 'learned' or 'leave-one-out', got 'learnee'"),  # type: ignore[arg-type]
        (lambda: RamConfig(device=None), "device must be a valid string, got None"),  # type: ignore[arg-type]
        (lambda: RamConfig(weight_average=1.0), "weight_average must be less than 1, got 1.0"),
        (lambda: RamConfig(env_config=GlimpseConfig(split="test")), "env_config.split must be 'train', got 'test'"),
        (lambda: RamConfig(env_config={}), "env_config must be an instance of GlimpseConfig, got {}"),  # type: ignore[arg-type]
        (
            lambda: RamConfig(env_config=GlimpseConfig(canvas_size=10**6)),
            "canvas_size must be less than or equal to 4096, got 1000000",
        ),
        (
            lambda: Sb3Config(env_config=GlimpseConfig(patch_size=10**6)),
            "patch_size must be less than or equal to 512, got 1000000",
        ),
        (lambda: FullImageConfig(channels=()), "channels: Tuple should have at least 1 item"),
        (lambda: Sb3Config(minibatches=10**6), "minibatches must be below 1536"),
        (lambda: Sb3Config(gamma=-0.1), "gamma must be greater than or equal to 0, got -0.1"),
    ],
)
def test_a_wrong_field_is_one_line(make: Any, message: str) -> None:
    with pytest.raises(ValueError) as refused:
        make()
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
    assert type(refused.value) is ValueError


def test_numbers_are_kept_as_what_the_annotation_says() -> None:
    config = RamConfig(weight_decay=0, learning_rate=1)  # ints for floats
    assert [type(value) for value in (config.weight_decay, config.learning_rate)] == [float, float]
    assert FullImageConfig.from_dict(json.loads(json.dumps(FullImageConfig().to_dict()))).channels == (16, 32, 64, 128)


OLD_RAM = {"task": "cluttered-60", "dataset": "fashion-mnist", "composition": "overwrite", "num_glimpses": None}
OLD_CNN = {"task": "mnist-28", "network": "cnn", "channels": [4, 8], "data_root": None}
OLD_PPO = {"task": "digits", "algorithm": "ppo", "num_glimpses": 4, "composition": "add", "n_envs": 8, "seed": 3}


def test_older_runs_are_migrated_and_refused_until_then(tmp_path: Path, capsys: Any) -> None:
    olds = {"ram": {**OLD_RAM, "data_root": "there", "hidden_size": 9}, "cnn": OLD_CNN, "ppo": OLD_PPO}
    for agent, fields in olds.items():
        (tmp_path / "deep" / agent).mkdir(parents=True)
        text = json.dumps({"agent": agent, "config": fields, "command": ["x"], "versions": {}, "hardware": {}})
        (tmp_path / "deep" / agent / "config.json").write_text(text)
        path = tmp_path / "deep" / agent
        with pytest.raises(RunError) as refused:
            read_config(RunFolder(path))
        assert str(refused.value) == (
            f"{path}/config.json has format 1 and this version reads {FORMAT}: python -m agents migrate {path} "
            "converts a run of an older version"
        )
    for changed in (3, 0):
        main(["migrate", str(tmp_path)])
        assert capsys.readouterr().out == f"3 runs, {changed} of them converted\n"
    ram, cnn, ppo = (read_config(RunFolder(tmp_path / "deep" / agent)) for agent in olds)
    changes = {"dataset": "fashion-mnist", "composition": "overwrite", "data_root": "there"}
    env_config = get_task("cluttered-60").config.replace(**changes)
    assert ram == RamConfig(task="cluttered-60", env_config=env_config, hidden_size=9)
    assert cnn == FullImageConfig(channels=(4, 8))
    env_config = get_task("digits").config.replace(num_glimpses=4)
    assert ppo == Sb3Config(algorithm="sb3-ppo", n_envs=8, seed=3, env_config=env_config)
    assert RunFolder(tmp_path / "deep" / "ram").read_about()["command"] == ["x"]


def test_stable_baselines3s_agents_are_renamed_and_refused_until_then(tmp_path: Path, capsys: Any) -> None:
    folder, config = RunFolder(tmp_path), Sb3Config(algorithm="sb3-ppo", seed=3)
    folder.create("sb3-ppo", config, describe_data(config.env_config))
    new = folder.read_about()
    folder.write_json("config.json", {**new, "agent": "ppo", "config": {**new["config"], "algorithm": "ppo"}})
    message = "a run of 'ppo', which is no agent of this version: python -m agents migrate"
    for read in (read_config, load_run):
        with pytest.raises(RunError, match=message):
            read(folder)
    for changed in (1, 0):
        main(["migrate", str(tmp_path)])
        assert capsys.readouterr().out == f"1 runs, {changed} of them converted\n"
        assert folder.read_about() == new
    native = {"agent": "ppo", "config": {"seed": 3}}
    assert rename_agent(native) == native, "an agent of that name that is not Stable-Baselines3's"


def test_what_migration_cannot_bring_up_to_date_is_named_and_left(tmp_path: Path, capsys: Any) -> None:
    for text, message in (
        (json.dumps({"agent": "dreamer", "config": {}}), "is a run of 'dreamer', which is no agent of this version"),
        (json.dumps({"agent": "ram", "config": {"task": "digits", "colour": 1}}), "colour is no field of this version"),
        (json.dumps({"agent": "ram", "config": {"task": 3}}), "task must be"),
        ("[]", "it holds no configuration"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(SystemExit) as stopped:
            main(["migrate", str(tmp_path)])
        assert stopped.value.code == 2
        assert message in capsys.readouterr().err
        assert (tmp_path / "config.json").read_text() == text
