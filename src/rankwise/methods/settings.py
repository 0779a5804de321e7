"""Checks of settings that every kind of method has."""

from dataclasses import fields
from typing import Literal, get_args, get_origin

from rankwise.adapter import Method
from rankwise.errors import ConfigError, nearest


def is_count(value: object) -> bool:
    """Whether a setting is a whole number of at least 1; True is none."""
    return type(value) is int and value >= 1


def check_choices(method: Method) -> None:
    """Raise ConfigError for a word that is none of those its setting takes; it would pass for the default."""
    for setting in fields(method):
        value = vars(method)[setting.name]
        if get_origin(setting.type) is Literal and value not in get_args(setting.type):
            words = list(get_args(setting.type))
            raise ConfigError(f"{setting.name}={value!r} is none of {words}.{nearest(str(value), words)}")
