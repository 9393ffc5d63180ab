"""The command line's grammar: every command with its options."""

import argparse
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from pydantic.fields import FieldInfo

from service.api.auth import api_keys, rate_limits
from service.imaging import crops
from service.settings import Settings
from service.training.options import Options

_OFFLINE = (
    *("model", "device", "precision", "model_store", "max_batch", "cpu_threads"),
    *("max_pixels", "decode_threads", "heic"),
)

_BENCH = (
    ("--seconds", 5, "seconds of each run"),
    ("--rounds", 3, "rounds of the closed loop; figures are their medians"),
    ("--requests", 10_000, "requests between the first and the last look at the memory"),
    ("--deadline", 1000, "milliseconds that random arrivals have"),
)

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"

_UNITS = {"ms": 0.001, "s": 1.0}  # seconds

_Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - what argparse gives has no other name

_METAVARS: Mapping[Any, str] = {int: "N", float: "X", float | None: "X", bool: "YES|NO"}


def build() -> argparse.ArgumentParser:
    """Give the parser; what it parsed names the function to run, as `run`."""
    parser = argparse.ArgumentParser(
        prog="googlenet-service",
        description="Name what is on an image.",
        epilog="Every option that takes a VALUE may be given in the environment instead: "
        "--port 8080 as GOOGLENET_PORT=8080.",
    )
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = verbs.add_parser(
        "serve",
        help="serve over HTTP; fetches the model if need be",
        epilog="What follows -- is for uvicorn: -- --ssl-keyfile KEY --ssl-certfile CERTIFICATE; "
        "-- --help lists it.",
    )
    _add_settings(serve, Settings.model_fields)
    serve.set_defaults(run="service.server.serve:serve", uvicorn=())

    _add_models(verbs)
    _add_keys(verbs)
    _add_train(verbs)
    _add_look(verbs)
    classify = _add_classify(verbs)
    evaluate = verbs.add_parser("evaluate", help="measure the accuracy on labelled photos")
    evaluate.add_argument("folder", type=Path, metavar="DIR")
    evaluate.add_argument(
        "--plans",
        type=_plans,
        default="single,ten",
        help="the views to evaluate with, separated by commas (default: single,ten)",
    )
    instead = evaluate.add_mutually_exclusive_group()
    instead.add_argument(
        "--compare",
        action="store_true",
        help="with the first of the views, compare every number format's answers with float32's",
    )
    instead.add_argument(
        "--table",
        action="store_const",
        dest="run",
        const="service.cli.ensemble_table:table",
        help="compare the first model and the average of all, by all of the views",
    )
    _add_settings(evaluate, _OFFLINE)
    evaluate.set_defaults(run="service.cli.evaluate:evaluate")

    bench = verbs.add_parser("bench", help="measure a service: how fast, and how near the limit")
    bench.add_argument("folder", type=Path, metavar="DIR", help="images to send")
    bench.add_argument("--url", metavar="URL", help="measure the service there, not one of its own")
    for name, default, what in _BENCH:
        text = f"{what} (default: {default})"
        bench.add_argument(name, type=_positive, default=default, metavar="N", help=text)
    bench.add_argument(
        "--slo",
        type=_positive,
        default=0,
        metavar="MS",
        help="latency objective (default: 100 where decoding and computing one image takes 13)",
    )
    _add_settings(bench, _OFFLINE)
    bench.set_defaults(run="service.cli.bench:bench")

    plan = verbs.add_parser("plan", help="say how many replicas a rate of requests needs")
    plan.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="images like those to come (default: one of 512 x 384 pixels)",
    )
    plan.add_argument(
        "--rate",
        required=True,
        type=_above_zero,
        metavar="X",
        help="requests a second, of one image",
    )
    plan.add_argument(
        "--slo",
        required=True,
        type=_duration,
        metavar="TIME",
        help="latency objective for 99 %% of them: 100ms, 0.1s",
    )
    _add_settings(plan, [*_OFFLINE, "views", "timeout_seconds"])
    plan.set_defaults(run="service.cli.plan:plan")

    for verb in (classify, evaluate, bench, plan):
        verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _add_models(verbs: _Verbs) -> None:
    models = verbs.add_parser(
        "models", help="list, fetch, import, convert, quantize, calibrate or verify models"
    )
    actions = models.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list the models and whether they can be served")
    listing.set_defaults(run="service.cli.models:list_models")
    fetch = actions.add_parser("fetch", help="download a model's weights")
    fetch.add_argument("name", metavar="NAME")
    fetch.set_defaults(run="service.cli.weights:fetch_model")
    import_ = actions.add_parser("import", help="make a file the weights of a model")
    import_.add_argument("name", metavar="NAME")
    import_.add_argument("file", metavar="FILE", type=Path)
    import_.set_defaults(run="service.cli.weights:import_model")
    convert = actions.add_parser("convert", help="convert a model for OpenVINO, which CPUs run")
    convert.add_argument("name", metavar="NAME")
    convert.set_defaults(run="service.cli.weights:convert_model")
    quantize = actions.add_parser("quantize", help="calibrate a model for int8 on images")
    quantize.add_argument("name", metavar="NAME")
    quantize.add_argument(
        "--calibrate", required=True, type=Path, metavar="DIR", help="images like those to come"
    )
    quantize.set_defaults(run="service.cli.models:quantize_model")
    calibrate = actions.add_parser("calibrate", help="fit a model's temperature to labelled photos")
    calibrate.add_argument("name", metavar="NAME")
    calibrate.add_argument("folder", type=Path, metavar="DIR")
    calibrate.set_defaults(run="service.cli.models:calibrate_model")
    verify = actions.add_parser("verify", help="check all weights against their SHA-256")
    verify.set_defaults(run="service.cli.models:verify_models")
    for action in (listing, fetch, import_, convert, quantize, verify):
        _add_settings(action, ["model_store"])
    _add_settings(calibrate, [name for name in _OFFLINE if name != "model"])


def _add_keys(verbs: _Verbs) -> None:
    verb = verbs.add_parser("keys", help="make API keys, or check a file of them")
    actions = verb.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser(
        "new", help="print a new key, and on standard error what the file of keys should have"
    )
    new.add_argument("name", type=_key_name, metavar="NAME")
    new.add_argument(
        "--limits",
        type=_limits,
        default=[],
        help="most requests in a second, minute, hour or day: 20/second,100000/day",
    )
    new.set_defaults(run="service.cli.keys:new_key")
    check = actions.add_parser("check", help="read a file of keys, and say whose they are")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run="service.cli.keys:check_keys")


def _add_train(verbs: _Verbs) -> None:
    train = verbs.add_parser("train", help="train a model on a folder of images for each class")
    train.add_argument("folder", type=Path, metavar="DIR")
    _add_options(train)
    _add_settings(train, ["model_store", "device", "precision", "max_pixels"])
    train.set_defaults(run="service.cli.train:train")


def _add_look(verbs: _Verbs) -> None:
    look = verbs.add_parser("look", help="draw what a model's feature maps have seen of an image")
    look.add_argument("photo", type=Path, metavar="FILE")
    look.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .png file to draw"
    )
    _add_settings(look, ["model", "model_store", "max_pixels"])
    look.set_defaults(run="service.cli.look:look")


def _add_classify(verbs: _Verbs) -> argparse.ArgumentParser:
    classify = verbs.add_parser("classify", help="name what is on images, without a server")
    classify.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="images, folders of them, or archives (.zip, .tar, .tar.gz)",
    )
    classify.add_argument("--top-k", type=_positive, default=5, help="how many labels (default: 5)")
    classify.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write a .parquet, .csv or .jsonl file; the same command goes on with it",
    )
    who = classify.add_mutually_exclusive_group()
    who.add_argument("--url", metavar="URL", help="let the service there do it")
    who.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: let a Ray cluster do it, whose nodes all have this googlenet-service, its store "
        "and FILE at the same paths; --cpu-threads is the CPUs of each actor (default: the "
        "smallest node's) (default: local)",
    )
    classify.add_argument(
        "--ray-address", metavar="HOST:PORT", help="the cluster (default: as Ray finds it)"
    )
    classify.add_argument(
        "--ray-actors", type=_positive, metavar="N", help="most actors (default: all that fit)"
    )
    classify.add_argument(
        "--ray-batch",
        type=_positive,
        default=256,
        metavar="N",
        help="images that an actor gets at a time (default: 256)",
    )
    classify.add_argument(
        "--key",
        default=os.environ.get("GOOGLENET_KEY"),
        help="the service's API key (default: GOOGLENET_KEY in the environment)",
    )
    classify.add_argument(
        "--wait",
        type=_above_zero,
        default=10.0,
        metavar="SECONDS",
        help="how long to wait for the first answer of the service at URL (default: 10)",
    )
    _add_settings(classify, [*_OFFLINE, "views", "max_body_bytes"])
    classify.set_defaults(run="service.cli.classify:classify")
    return classify


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _above_zero(text: str) -> float:
    if not re.fullmatch(_NUMBER, text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return float(text)


def _duration(text: str) -> float:
    """Understand milliseconds or seconds; gives seconds."""
    found = re.fullmatch(f"({_NUMBER})(ms|s)", text)
    if not found or not float(found[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0 such as 100ms or 0.1s")
    return float(found[1]) * _UNITS[found[2]]


def _plans(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in crops.NAMES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(crops.NAMES)}")
    return names


def _key_name(text: str) -> str:
    if not re.fullmatch(api_keys.NAME, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not of letters, digits, _ and -")
    return text


def _limits(text: str) -> list[str]:
    limits = text.split(",")
    if wrong := [limit for limit in limits if not re.fullmatch(rate_limits.PATTERN, limit)]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} is not like 20/second or 100000/day")
    return limits


def _add_settings(parser: argparse.ArgumentParser, names: Iterable[str]) -> None:
    """Add an option for each setting."""
    for name in names:
        _add_field(parser, name, Settings.model_fields[name], "VALUE")


def _add_options(parser: argparse.ArgumentParser) -> None:
    """Add an option for all that may be chosen of a training."""
    for name, field in Options.model_fields.items():
        if name != "folder":
            metavar = _METAVARS.get(field.annotation, "TEXT")
            _add_field(parser, name, field, metavar)


def _add_field(parser: argparse.ArgumentParser, name: str, field: FieldInfo, metavar: str) -> None:
    """Add an option for a model's field, which checks what is given and knows the default."""
    has_default = not field.is_required() and field.default not in {None, ""}
    parser.add_argument(
        "--" + (field.alias or name).replace("_", "-"),
        dest=name,
        required=field.is_required(),
        default=argparse.SUPPRESS,
        metavar=metavar,
        help=f"{field.description}" + (f" (default: {field.default})" if has_default else ""),
    )
