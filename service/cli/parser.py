"""The command-line parser: every command with its arguments.

It names the function of a command as `run`, to be imported only when the command is run.
"""

import argparse
import os
from pathlib import Path
from typing import TypeAlias

from service.cli import argument_types as types
from service.cli.model_options import OFFLINE, add_settings, add_training
from service.server.unknown_variables import CLIENT_KEY
from service.settings import Settings

_Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - what argparse gives has no other name

_BENCH = (
    ("--seconds", 5, "seconds of each run"),
    ("--rounds", 3, "rounds of the closed loop; results are their medians"),
    ("--requests", 10_000, "requests between the two measurements of memory"),
    ("--deadline", 1000, "deadline of requests that arrive at random, in milliseconds"),
)


def build() -> argparse.ArgumentParser:
    """Build the parser; the arguments it parses have the function of the command as `run`."""
    parser = argparse.ArgumentParser(
        prog="googlenet-service",
        description="Image classification service.",
        epilog="Every option that takes a VALUE may be given in the environment instead: "
        "--port 8080 as GOOGLENET_PORT=8080.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_serve(commands)
    _add_doctor(commands)
    _add_models(commands)
    _add_keys(commands)
    _add_train(commands)
    _add_look(commands)
    _add_classify(commands)
    _add_evaluate(commands)
    _add_bench(commands)
    _add_plan(commands)
    return parser


def _add_serve(commands: _Commands) -> None:
    serve = commands.add_parser("serve", help="serve over HTTP; downloads missing weights")
    add_settings(serve, Settings.model_fields)
    serve.set_defaults(run="service.server.serve:serve")


def _add_doctor(commands: _Commands) -> None:
    doctor = commands.add_parser(
        "doctor", help="check this machine and these settings, and print what serve would choose"
    )
    add_settings(doctor, Settings.model_fields)
    doctor.set_defaults(run="service.cli.doctor.doctor:doctor")


def _add_models(commands: _Commands) -> None:
    models = commands.add_parser(
        "models", help="list, fetch, import, convert, quantize, calibrate or verify models"
    )
    actions = models.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="list models and whether their weights are present")
    listing.set_defaults(run="service.cli.models:list_models")
    fetch = _add_model_action(actions, "fetch", "download the weights of a model")
    fetch.set_defaults(run="service.cli.weights:fetch_model")
    import_ = _add_model_action(actions, "import", "install a file as the weights of a model")
    import_.add_argument("file", metavar="FILE", type=Path)
    import_.set_defaults(run="service.cli.weights:import_model")
    convert = _add_model_action(actions, "convert", "convert a model for OpenVINO on CPUs")
    convert.set_defaults(run="service.cli.weights:convert_model")
    quantize = _add_model_action(actions, "quantize", "quantize a model to int8 with sample images")
    quantize.add_argument(
        "--calibrate", required=True, type=Path, metavar="DIR", help="images like those to classify"
    )
    quantize.set_defaults(run="service.cli.models:quantize_model")
    purpose = "fit a model's temperature, stopping rule and label sets to labelled photos"
    calibrate = _add_model_action(actions, "calibrate", purpose)
    calibrate.add_argument("folder", type=Path, metavar="DIR")
    calibrate.add_argument(
        "--agreement",
        type=types.agreement,
        default=99.5,
        metavar="PERCENT",
        help="images whose first label by the views `adaptive` is that of all ten (default: 99.5)",
    )
    calibrate.add_argument(
        "--paper",
        action="store_true",
        help="fit the views `adaptive:paper`, too, which takes all 144 views of each photo",
    )
    calibrate.set_defaults(run="service.cli.calibrate:calibrate_model")
    verify = actions.add_parser("verify", help="check all weights against their SHA-256")
    verify.set_defaults(run="service.cli.models:verify_models")
    for action in (listing, fetch, import_, convert, quantize, verify):
        add_settings(action, ["model_store"])
    add_settings(calibrate, [name for name in OFFLINE if name != "model"])


def _add_model_action(actions: _Commands, name: str, summary: str) -> argparse.ArgumentParser:
    action = actions.add_parser(name, help=summary)
    action.add_argument("name", metavar="NAME")
    return action


def _add_keys(commands: _Commands) -> None:
    keys = commands.add_parser("keys", help="create API keys, or check a file of them")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser(
        "new", help="print a new key, and its entry for the file of keys on standard error"
    )
    new.add_argument("name", type=types.key_name, metavar="NAME")
    new.add_argument(
        "--limits",
        type=types.rate_limit_list,
        default=[],
        help="most requests in a second, minute, hour or day: 20/second,100000/day",
    )
    new.set_defaults(run="service.cli.keys:new_key")
    check = actions.add_parser("check", help="validate a file of keys, and list their names")
    check.add_argument("file", type=Path, metavar="FILE")
    check.set_defaults(run="service.cli.keys:check_keys")


def _add_train(commands: _Commands) -> None:
    train = commands.add_parser("train", help="train a model on a folder of images for each class")
    train.add_argument("folder", type=Path, metavar="DIR")
    add_training(train)
    add_settings(train, ["model_store", "device", "precision", "max_pixels"])
    train.set_defaults(run="service.cli.train:train")


def _add_look(commands: _Commands) -> None:
    look = commands.add_parser("look", help="draw the parts of an image that feature maps react to")
    look.add_argument("photo", type=Path, metavar="FILE")
    look.add_argument(
        "--out", required=True, type=Path, metavar="FILE", help="the .png file to draw"
    )
    add_settings(look, ["model", "model_store", "max_pixels"])
    look.set_defaults(run="service.cli.look:look")


def _add_classify(commands: _Commands) -> None:
    classify = commands.add_parser("classify", help="classify images without a server")
    classify.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="images, folders of them, or archives (.zip, .tar, .tar.gz)",
    )
    classify.add_argument(
        "--top-k", type=types.positive, default=5, help="number of labels (default: 5)"
    )
    classify.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="write a .parquet, .csv or .jsonl file; the same command resumes it",
    )
    place = classify.add_mutually_exclusive_group()
    place.add_argument("--url", metavar="URL", help="classify with the service at this URL")
    place.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="ray: classify on a Ray cluster, whose nodes all have this googlenet-service, its "
        "store and FILE at the same paths; --cpu-threads is the CPUs of each actor (default: the "
        "smallest node's) (default: local)",
    )
    _add_ray(classify)
    _add_client(classify)
    add_settings(classify, [*OFFLINE, "views", "max_body_bytes"])
    _add_json(classify)
    classify.set_defaults(run="service.cli.classify:classify")


def _add_ray(classify: argparse.ArgumentParser) -> None:
    classify.add_argument(
        "--ray-address", metavar="HOST:PORT", help="address of the cluster (default: Ray's own)"
    )
    classify.add_argument(
        "--ray-actors", type=types.positive, metavar="N", help="most actors (default: all that fit)"
    )
    classify.add_argument(
        "--ray-batch",
        type=types.positive,
        default=256,
        metavar="N",
        help="images sent to an actor at a time (default: 256)",
    )


def _add_client(classify: argparse.ArgumentParser) -> None:
    classify.add_argument(
        "--key",
        default=os.environ.get(CLIENT_KEY),
        help=f"API key for the service at URL (default: {CLIENT_KEY} in the environment)",
    )
    classify.add_argument(
        "--wait",
        type=types.above_zero,
        default=10.0,
        metavar="SECONDS",
        help="longest wait for the first response of the service at URL (default: 10)",
    )


def _add_evaluate(commands: _Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="measure the accuracy on labelled photos")
    evaluate.add_argument("folder", type=Path, metavar="DIR")
    evaluate.add_argument(
        "--plans",
        type=types.view_plans,
        default="single,ten",
        help="view plans to evaluate, separated by commas (default: single,ten)",
    )
    mode = evaluate.add_mutually_exclusive_group()
    mode.add_argument(
        "--compare",
        action="store_true",
        help="compare the results of every number format with float32's, with the first view plan",
    )
    mode.add_argument(
        "--table",
        action="store_const",
        dest="run",
        const="service.cli.ensemble_table:table",
        help="compare the first model with the average of all models, with every view plan",
    )
    mode.add_argument(
        "--specificity",
        type=types.probabilities,
        metavar="P,...",
        help="accuracy and information gain of the most specific labels that are as probable as "
        "each of these, with the first view plan",
    )
    add_settings(evaluate, OFFLINE)
    _add_json(evaluate)
    evaluate.set_defaults(run="service.cli.evaluate:evaluate")


def _add_bench(commands: _Commands) -> None:
    bench = commands.add_parser("bench", help="measure the throughput and latency of a service")
    bench.add_argument("folder", type=Path, metavar="DIR", help="images to send")
    bench.add_argument(
        "--url", metavar="URL", help="measure the service at this URL (default: a new one)"
    )
    for name, default, summary in _BENCH:
        text = f"{summary} (default: {default})"
        bench.add_argument(name, type=types.positive, default=default, metavar="N", help=text)
    bench.add_argument(
        "--slo",
        type=types.positive,
        default=0,
        metavar="MS",
        help="latency objective (default: 100 where decoding and computing one image takes 13)",
    )
    add_settings(bench, OFFLINE)
    _add_json(bench)
    bench.set_defaults(run="service.cli.bench:bench")


def _add_plan(commands: _Commands) -> None:
    plan = commands.add_parser("plan", help="compute the replicas that a request rate needs")
    plan.add_argument(
        "folder",
        nargs="?",
        type=Path,
        metavar="DIR",
        help="images like those to classify (default: one of 512 x 384 pixels)",
    )
    plan.add_argument(
        "--rate",
        required=True,
        type=types.above_zero,
        metavar="X",
        help="requests a second, of one image each",
    )
    plan.add_argument(
        "--slo",
        required=True,
        type=types.duration,
        metavar="TIME",
        help="latency objective for 99 %% of them: 100ms, 0.1s",
    )
    add_settings(plan, [*OFFLINE, "views", "timeout_seconds"])
    _add_json(plan)
    plan.set_defaults(run="service.cli.plan:plan")


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")
