"""Errors: whose fault they are agrees with their HTTP status."""

import pytest

from service.api.statuses import STATUS
from service.errors import ClientError, ServiceError


@pytest.mark.parametrize("error", STATUS)
def test_a_client_error_has_a_status_from_400_to_499(error: type[ServiceError]) -> None:
    assert issubclass(error, ClientError) == (STATUS[error].http < 500)
