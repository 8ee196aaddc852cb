"""Escape untrusted text for a terminal, HTML, Markdown, LaTeX, a figure or a file name.

Names of runs, classes, attacks and columns, alarms and values of configurations come from files that others
wrote. The package's own text passes through the same functions and comes out unchanged.
"""

from __future__ import annotations

import hashlib
import html as html_module
import re
import shlex
from typing import Any

# Characters that move the cursor, change the reading direction, are invisible, or cannot be written in UTF-8.
# Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e0fff]"
)
_MARKDOWN = re.compile(r"([\\|*_`<>\[\]~$#&])")
_TEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com\d|lpt\d)(\.|$)")  # names of devices on Windows


def visible(text: Any) -> str:
    """Write out control characters, direction marks and lone surrogates as escapes.

    Line breaks and tabs stay. For terminals and logs; the other functions begin with it.

    Example:
        >>> print(visible("cat\\x1b[2J\\u202etac"))
        cat\\x1b[2J\\u202etac
    """
    return _UNSEEN.sub(lambda found: _written(found[0]), str(text))


def _written(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def line(text: Any, limit: int = 0) -> str:
    """As `visible`, in one line; beyond `limit` characters (0: no limit) the middle is left out.

    Example:
        >>> line("a class\\nof flowers", 12)
        'a cla…lowers'
    """
    one = " ".join(visible(text).split("\n")).replace("\t", " ")
    if not limit or len(one) <= limit:
        return one
    head = (limit - 1) // 2
    return f"{one[:head]}…{one[head + 1 - limit :]}"


def command(*words: Any) -> str:
    """A bivallate command, quoted so that it can be pasted into a shell.

    Example:
        >>> print(command("report", "runs/a b"))
        bivallate report 'runs/a b'
    """
    return shlex.join(["bivallate", *map(str, words)])


def torchrun(processes: int | str, line: str) -> str:
    """A bivallate command on several processes of one machine.

    `--` keeps torchrun, which accepts abbreviated options, from taking `--n` or `--log` for its own.

    Example:
        >>> print(torchrun(2, "bivallate resume runs/a"))
        torchrun --nproc-per-node=2 -m -- bivallate resume runs/a
    """
    return f"torchrun --nproc-per-node={processes} -m -- {line}"


def html(text: Any) -> str:
    """Escape for the text and the quoted attributes of an HTML element."""
    return html_module.escape(visible(text), quote=True)


def coded(text: Any) -> str:
    """Escape a sentence for HTML; commands between backticks become code elements.

    Example:
        >>> print(coded("see `bivallate audit` <b>"))
        see <code>bivallate audit</code> &lt;b&gt;
    """
    return re.sub("`([^`]+)`", r"<code>\1</code>", html(text))


def markdown(text: Any) -> str:
    """Escape for a line or a table cell of Markdown."""
    return _MARKDOWN.sub(r"\\\1", line(text))


def tex(text: Any) -> str:
    """Escape for a line or a table cell of LaTeX."""
    return "".join(_TEX.get(c, c) for c in line(text))


def file_name(text: Any, limit: int = 60) -> str:
    """Turn text into one component of a path, of letters, digits, `.`, `_` and `-`.

    The result is never hidden, a device of Windows or the folder above. A name beyond `limit` characters is
    cut and ends with a hash, so that different names stay different.

    Example:
        >>> file_name("pgd-20"), file_name("../../x"), file_name("")
        ('pgd-20', '_.._x', '_')
    """
    name = re.sub(r"^[.-]+|[.]+$", "", re.sub(r"[^\w.-]+", "_", str(text)))
    name = f"_{name}" if not name or _RESERVED.match(name) else name
    if len(name) <= limit:
        return name
    mark = hashlib.blake2b(str(text).encode("utf-8", "surrogatepass"), digest_size=6).hexdigest()
    return f"{name[: limit - len(mark) - 1]}_{mark}"
