"""Every flag's value is checked before anything else is done, whichever script has the flag."""

import importlib
from pathlib import Path

import pytest
from absl import flags

from hypertrack_jax.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "experiments"


@pytest.fixture
def check(monkeypatch):
    """Checks flags as a command line gives them; returns their values."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    check_flags = importlib.import_module("flag_values").check_flags

    def checked(*arguments: str) -> dict:
        values = flags.FlagValues()
        for name in ("save_tag", "workdir", "noise_ratio", "compilation_cache"):
            flags.DEFINE_string(name, None, "", flag_values=values)
        fractions = ("rfactor_end", "real_share")
        for name in (*fractions, "learning_rate", "min_count", "pileup", "temperature"):
            flags.DEFINE_float(name, None, "", flag_values=values)
        for name in ("seed", "num_processes", "num_steps"):
            flags.DEFINE_integer(name, None, "", flag_values=values)
        for name in ("rfactors", "edge_threshold", "event_end", "test_end", "ncell", "peers"):
            flags.DEFINE_list(name, None, "", flag_values=values)
        values(["script", *arguments])
        check_flags(values)
        return values.flag_values_dict()

    return checked


@pytest.mark.parametrize(
    "argument",
    [
        *("--temperature=nan", "--temperature=inf", "--learning_rate=1e30", "--learning_rate=0"),
        *("--rfactor_end=nan", "--rfactor_end=-1", "--rfactor_end=2", "--rfactor_end=0"),
        *("--rfactors=0.1,nan", "--rfactors=0.1,inf", "--rfactors=0.1,much", "--rfactors=1,,1"),
        *("--edge_threshold=0.5,1.5", "--noise_ratio=nan", "--noise_ratio=1", "--noise_ratio=some"),
        *("--seed=9223372036854775808", "--num_steps=-9223372036854775809"),
        *("--event_end=10000000000000", "--event_end=5,-1", "--pileup=1e12", "--pileup=0"),
        *("--num_processes=100000", "--min_count=0", "--min_count=65536", "--ncell=", "--workdir="),
        *("--save_tag=", "--save_tag=.", "--save_tag=../x", "--save_tag=a/b", "--save_tag=/x"),
        *("--real_share=0", "--real_share=2", "--test_end=-1", "--test_end=7,much"),
        "--workdir=~nosuchuser/x",
    ],
)
def test_a_wrong_value_is_told_in_one_sentence(check, argument):
    with pytest.raises(UserError) as raised:
        check(argument)
    told = str(raised.value)
    assert told.startswith(argument.split("=")[0] + "=")
    assert told.endswith(".") and "\n" not in told


def test_right_values_pass(check):
    check(
        *("--temperature=-1e9", "--learning_rate=1", "--rfactor_end=1", "--rfactors=0.01,1"),
        *("--edge_threshold=0,1", "--noise_ratio=none", "--seed=9223372036854775807"),
        *("--event_end=0,999999999", "--num_processes=1", "--min_count=0.01", "--ncell=16384"),
        *("--save_tag=pile-up 2.1", "--workdir=some where", "--peers=", "--compilation_cache="),
    )
    assert check("--noise_ratio=-1")["noise_ratio"] == "-1"


def test_paths_may_begin_with_the_home(check, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert check("--workdir=~/work")["workdir"] == "/home/somebody/work"
