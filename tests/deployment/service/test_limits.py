"""What the service holds at a time is counted, and given back."""

import pytest

from kmed.deployment.service.limits import BODIES, MB, Limits, Refusal, Room
from kmed.errors import ConfigError


@pytest.mark.parametrize("name", ["max_body", "max_pixels", "max_pictures", "max_queue", "timeout"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_limit_is_above_zero(name, value):
    with pytest.raises(ConfigError, match=rf"{name} must be above 0. Received: {name}={value}"):
        Limits(**{name: value})


def test_requests_are_counted_and_let_go_whatever_happens():
    room = Room(Limits(max_queue=2))
    with room.admitted(), room.admitted(), pytest.raises(Refusal, match="2 requests") as caught, room.admitted():
        pytest.fail("a third request was admitted")
    assert caught.value.status == 429 and caught.value.headers == {"Retry-After": "1"}
    with pytest.raises(ZeroDivisionError), room.admitted() as held:
        held.grow(10)
        raise ZeroDivisionError
    assert room.requests == room.bytes == 0


def test_a_body_and_all_bodies_together_have_a_limit():
    room = Room(Limits(max_body=1, max_queue=100))
    with room.admitted() as held:
        held.grow(MB)
        with pytest.raises(Refusal, match="may have 1 MB") as caught:
            held.grow(1)
        assert caught.value.status == 413
    held = [room.admitted() for _ in range(BODIES)]
    for one in held:
        one.__enter__().grow(MB)
    with room.admitted() as last, pytest.raises(Refusal, match="fill the memory") as caught:
        last.grow(1)
    assert caught.value.status == 429 and room.bytes == BODIES * MB
    for one in held:
        one.__exit__(None, None, None)
    assert room.requests == room.bytes == 0
