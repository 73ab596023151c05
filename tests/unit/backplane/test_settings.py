"""The settings' table: read from the environment and flags, refused in one clear line."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backplane.errors import ConfigurationError
from backplane.keys import TIERS
from backplane.settings import ENV_PREFIX, Settings, flag_of, load, reference

ROOT = Path(__file__).parents[3]
ROWS = dataclasses.fields(Settings)


def refusal(environ: dict[str, str] | None = None, flags: dict[str, str | None] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environ or {}, flags or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestSources:
    def test_nothing_set_gives_the_defaults(self) -> None:
        """Every setting has a default that is usable."""
        assert load({}, {}) == Settings()

    def test_the_environment_is_read(self) -> None:
        """Each type is parsed from its text."""
        settings = load(
            {
                "ORCHESTRATOR_PORT": "9000",
                "ORCHESTRATOR_HEARTBEAT_S": ".5",
                "ORCHESTRATOR_ALLOW_INSECURE": "Yes",
                "ORCHESTRATOR_ENVIRONMENT": "prod",
                "ORCHESTRATOR_QUEUE_PRIORITY": "9,8,7,0",
                "ORCHESTRATOR_AUTH": "none",
            },
            {},
        )
        assert (settings.port, settings.heartbeat_s, settings.allow_insecure) == (9000, 0.5, True)
        assert (settings.environment, settings.auth) == ("prod", "none")
        assert settings.queue_priority == (9, 8, 7, 0)
        assert settings.keys().actions("free") == "nooble4:prod:agent_execution_service:actions:free"

    def test_flags_win_over_the_environment(self) -> None:
        """What is typed at the command is meant; None is a flag that was not given."""
        environ = {"ORCHESTRATOR_PORT": "9000", "ORCHESTRATOR_HOST": "::1"}
        settings = load(environ, {"port": "9001", "host": None})
        assert (settings.port, settings.host) == (9001, "::1")

    def test_other_variables_are_nobodys_business(self) -> None:
        """Only the project's own prefix is looked at."""
        assert load({"PORT": "x", "ORCHESTRATORPORT": "x", "MY_ORCHESTRATOR_PORT": "x"}, {}) == Settings()

    @pytest.mark.parametrize("text", ["1", "true", "TRUE", "yes"])
    def test_true(self, text: str) -> None:
        """The usual spellings of true."""
        assert load({"ORCHESTRATOR_ALLOW_INSECURE": text}, {}).allow_insecure is True

    @pytest.mark.parametrize("text", ["0", "false", "False", "no"])
    def test_false(self, text: str) -> None:
        """The usual spellings of false; the safety catch is not opened by the word false."""
        assert load({"ORCHESTRATOR_ALLOW_INSECURE": text}, {}).allow_insecure is False


class TestRefusals:
    def test_an_unknown_name_is_refused_with_a_suggestion(self) -> None:
        """A misspelt setting never has the silent effect of its default."""
        line = refusal({"ORCHESTRATOR_REDIS_ULR": "redis://x"})
        assert line == "ORCHESTRATOR_REDIS_ULR is not a setting; did you mean ORCHESTRATOR_REDIS_URL?"

    def test_an_unknown_name_like_no_other_is_refused_without_one(self) -> None:
        """No wild guesses."""
        assert refusal({"ORCHESTRATOR_XYZZY": "1"}) == "ORCHESTRATOR_XYZZY is not a setting"

    @pytest.mark.parametrize("name", ["ORCHESTRATOR_port", "ORCHESTRATOR_"])
    def test_other_spellings_are_unknown(self, name: str) -> None:
        """Names are upper case and whole."""
        assert refusal({name: "9000"}).startswith(f"{name} is not a setting")

    @pytest.mark.parametrize(
        ("name", "text", "said"),
        [
            ("PORT", "", "must be a whole number"),
            ("PORT", "80.5", "must be a whole number"),
            ("PORT", "8080 ", "must be a whole number"),
            ("PORT", "٣", "must be a whole number"),
            ("PORT", "1_000", "must be a whole number"),
            ("PORT", "9" * 5000, "must be a whole number"),
            ("PORT", "0", "from 1 to 65535 port"),
            ("PORT", "65536", "from 1 to 65535 port"),
            ("PORT", "-1", "from 1 to 65535 port"),
            ("ACTIONS_QUEUE_MAX", "0", "at least 1 actions"),
            ("HEARTBEAT_S", "soon", "must be a number"),
            ("HEARTBEAT_S", "nan", "must be a number"),
            ("HEARTBEAT_S", "inf", "must be a number"),
            ("HEARTBEAT_S", "-1", "must be a number"),
            ("HEARTBEAT_S", "0.1", "from 0.2 to 600 s"),
            ("HEARTBEAT_S", "601", "from 0.2 to 600 s"),
            ("ALLOW_INSECURE", "maybe", "must be true or false (1 or 0)"),
            ("AUTH", "off", "must be one of jwt, none"),
            ("AUTH", "NONE", "must be one of jwt, none"),
            ("LOG_LEVEL", "", "must be one of debug, info, warning, error"),
            ("QUEUE_PRIORITY", "1,2,3", "four whole numbers"),
            ("QUEUE_PRIORITY", "1,2,3,4,5", "four whole numbers"),
            ("QUEUE_PRIORITY", "1,2,3,x", "four whole numbers"),
            ("QUEUE_PRIORITY", "", "four whole numbers"),
            ("QUEUE_PRIORITY", "1,2,3,-4", "at least 0"),
            ("TASK_TIMEOUT_S", "1,2,0,4", "at least 1 s"),
        ],
    )
    def test_bad_values(self, name: str, text: str, said: str) -> None:
        """A bad value is refused with its name and what it must be, from environment and flag alike."""
        line = refusal({ENV_PREFIX + name: text})
        assert line.startswith(f"{ENV_PREFIX}{name}=")
        assert said in line
        line = refusal(flags={name.lower(): text})
        assert line.startswith(f"{flag_of(name.lower())}=")
        assert said in line

    def test_bad_templates_stop_the_start(self) -> None:
        """A template that cannot work is found when settings are read, not by the first callback."""
        assert "CALLBACKS_QUEUE_TEMPLATE" in refusal({"ORCHESTRATOR_CALLBACKS_QUEUE_TEMPLATE": "callbacks"})
        assert "KEY_PREFIX" in refusal({"ORCHESTRATOR_KEY_PREFIX": "orchestrator"})

    @given(st.sampled_from([row.name for row in ROWS]), st.text(max_size=20))
    def test_any_text_is_a_value_or_refused(self, name: str, text: str) -> None:
        """No value of any setting raises anything but ConfigurationError."""
        with suppress(ConfigurationError):
            load({ENV_PREFIX + name.upper(): text}, {})


class TestTiers:
    @pytest.mark.parametrize(
        ("name", "values"),
        [
            ("estimated_time_s", (30, 20, 10, 5)),
            ("task_timeout_s", (30, 60, 120, 300)),
            ("queue_priority", (4, 3, 2, 1)),
        ],
    )
    def test_the_contracts_defaults(self, name: str, values: tuple[int, ...]) -> None:
        """What the contract promises per tier, in the order of the tiers."""
        assert tuple(Settings().for_tier(name, tier) for tier in TIERS) == values

    def test_a_list_is_in_the_order_of_the_tiers(self) -> None:
        """free first, enterprise last."""
        settings = load({"ORCHESTRATOR_TASK_TIMEOUT_S": "1,2,3,4"}, {})
        assert settings.for_tier("task_timeout_s", "free") == 1
        assert settings.for_tier("task_timeout_s", "enterprise") == 4


class TestTable:
    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
    def test_every_row_is_whole(self, row: dataclasses.Field[object]) -> None:
        """A meaning, a group, and a default that its own limits accept when it is written out."""
        assert row.metadata["meaning"].endswith(".")
        assert row.metadata["group"]
        shown = ",".join(map(str, row.default)) if isinstance(row.default, tuple) else str(row.default)
        assert getattr(load({ENV_PREFIX + row.name.upper(): shown}, {}), row.name) == row.default

    @pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
    def test_names_of_quantities_say_their_unit(self, row: dataclasses.Field[object]) -> None:
        """Nobody has to guess whether a time is in s or ms."""
        told = row.metadata["unit"].rpartition("/")[2]  # messages/s is a rate, and its name says per_s
        for unit in ("s", "ms", "bytes"):
            assert (told == unit) == (row.name.rpartition("_")[2] == unit)

    def test_the_page_in_the_docs_is_the_generated_one(self) -> None:
        """docs/settings.md was generated after the last change of the table."""
        page = ROOT / "docs" / "settings.md"
        assert page.exists(), "generate docs/settings.md from backplane.settings.reference()"
        assert page.read_text("utf-8") == reference()

    def test_the_page_names_every_setting_once(self) -> None:
        """Nothing is left out, whatever its group, and no row breaks its table."""
        rows = [line for line in reference().splitlines() if line.startswith(f"| `{ENV_PREFIX}")]
        assert sorted(rows) == sorted(set(rows))
        assert {line.split("`")[1] for line in rows} == {ENV_PREFIX + row.name.upper() for row in ROWS}
        assert {line.replace(r"\|", "").count("|") for line in rows} == {6}
