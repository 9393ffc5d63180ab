"""Unknown GOOGLENET_... environment variables: a warning, or an error in strict mode."""

import pytest

from service.errors import WrongOption
from service.server import unknown_variables
from service.settings import Settings

UNKNOWN = [
    ("GOOGLENET_MAX_BATCHES", "did you mean GOOGLENET_MAX_BATCH?"),
    ("googlenet_prot", "did you mean GOOGLENET_PORT?"),  # settings ignore the case of names
    ("GOOGLENET_", "see serve --help"),
]


@pytest.mark.parametrize(("name", "suggestion"), UNKNOWN)
def test_an_unknown_variable_is_warned_of_or_refused(
    name: str, suggestion: str, caplog: pytest.LogCaptureFixture
) -> None:
    message = f"unknown environment variable {name}; {suggestion}"
    unknown_variables.check([name, "PATH"], is_strict=False)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", message)
    ]
    with pytest.raises(WrongOption) as caught:
        unknown_variables.check(["PATH", name], is_strict=True)
    assert str(caught.value) == message
    assert caught.value.exit_status == 2


def test_settings_and_the_key_of_the_client_are_known(caplog: pytest.LogCaptureFixture) -> None:
    variables = ["GOOGLENET_KEY", "googlenet_port", "NOT_GOOGLENET_X"]
    variables += [f"GOOGLENET_{name.upper()}" for name in Settings.model_fields]
    unknown_variables.check(variables, is_strict=True)
    assert not caplog.records
