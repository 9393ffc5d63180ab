"""Types of command-line arguments: text to a value, or argparse's error."""

import argparse
import re

from service.api.auth import api_keys
from service.imaging import crops
from service.serving import rate_limits

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_UNITS = {"ms": 0.001, "s": 1.0}  # seconds


def positive(text: str) -> int:
    """Parse a whole number from 1."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def above_zero(text: str) -> float:
    """Parse a number above 0."""
    if not re.fullmatch(_NUMBER, text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def agreement(text: str) -> float:
    """Parse per cent from 50 to below 100."""
    if not re.fullmatch(_NUMBER, text) or not 50 <= float(text) < 100:  # noqa: PLR2004 - per cent
        raise argparse.ArgumentTypeError(f"{text!r} is not per cent from 50 to below 100")
    return float(text)


def duration(text: str) -> float:
    """Parse milliseconds or seconds; returns seconds."""
    match = re.fullmatch(f"({_NUMBER})(ms|s)", text)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 100ms or 0.1s")
    return float(match[1]) * _UNITS[match[2]]


def probabilities(text: str) -> list[float]:
    """Parse numbers above 0 and up to 1, separated by commas."""
    numbers = [above_zero(number) for number in text.split(",")]
    if over := [number for number in numbers if number > 1]:
        raise argparse.ArgumentTypeError(f"{over[0]} is above 1")
    return numbers


def view_plans(text: str) -> list[str]:
    """Parse names of view plans, separated by commas."""
    names = text.split(",")
    if unknown := [name for name in names if name not in crops.NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(crops.NAMES)}")
    return names


def key_name(text: str) -> str:
    """Parse the name of an API key."""
    if not re.fullmatch(api_keys.NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of letters, digits, _ and -")
    return text


def rate_limit_list(text: str) -> list[str]:
    """Parse rate limits, separated by commas."""
    limits = text.split(",")
    if invalid := [limit for limit in limits if not re.fullmatch(rate_limits.PATTERN, limit)]:
        raise argparse.ArgumentTypeError(f"{invalid[0]!r} is not like 20/second or 100000/day")
    return limits
