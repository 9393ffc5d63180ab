"""What a check has found: lines to print, and problems with their remedies."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_WIDTH = 80  # columns


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, and what to do about it; each a sentence without a full stop."""

    sentence: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Finding:
    """The lines on one subject, and what is wrong with it."""

    subject: str
    lines: Sequence[str]
    problems: Sequence[Problem] = ()


def text(findings: Sequence[Finding]) -> Iterator[str]:
    """Lay out what was found in lines of 80 columns, the problems at the end."""
    for finding in findings:
        for number, line in enumerate(finding.lines):
            yield _wrapped(f"{'' if number else finding.subject:<10}", line)
    problems = _distinct(problem for finding in findings for problem in finding.problems)
    yield f"\n{len(problems) or 'No'} problem{'' if len(problems) == 1 else 's'}"
    for number, problem in enumerate(problems, 1):
        yield _wrapped(f"{number:>2}. ", problem.sentence)
        yield _wrapped("    Remedy: ", problem.remedy)


def _distinct(problems: Iterable[Problem]) -> list[Problem]:
    """Keep the first problem of each sentence: loading fails for what is wrong with a file."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.sentence, problem)
    return [*first.values()]


def _wrapped(start: str, line: str) -> str:
    return textwrap.fill(
        line,
        _WIDTH,
        initial_indent=start,
        subsequent_indent=" " * len(start),
        break_long_words=False,
        break_on_hyphens=False,
    )
