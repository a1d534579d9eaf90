"""Host side: tables of numbers in csv files, read strictly; lines are numbered as in an editor."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from hypertrack_jax.errors import UserError

_BAD_FIELD = re.compile(r"could not convert string .* at row (\d+), column (\d+)\.", re.DOTALL)
_LONGEST_QUOTE = 60


def read_table(
    where: str,
    data: bytes,
    columns: Mapping[str, type],
    optional: Sequence[str] = (),
    format_name: str = "the TrackML format",
) -> np.ndarray:
    """Reads some columns of a csv file.

    Columns are found by name, in upper or lower case. Blank lines are skipped; spaces around a
    field, and commas behind the last one, do no harm.

    Args:
      where: name of the file, for messages.
      data: its content.
      columns: NumPy types of the columns by name; `uint64` also takes negative numbers, with the
        same 64 bits.
      optional: columns that may be missing; the result then lacks them, too.
      format_name: what the file was expected to be, for messages.

    Returns:
      A structured array, one entry per row.

    Raises:
      UserError: the file is empty or not text, lacks a column or has it twice, or has a row of
        another length than the header or a field that is not a number of the column's type.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not a text file ({error}); fetch the file again.") from error
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    numbers = [number for number, line in enumerate(lines, 1) if line.strip()]
    rows = [lines[number - 1] for number in numbers]
    if not rows:
        raise UserError(f"{where}: the file is empty; fetch it again.")
    header = [name.strip() for name in rows[0].rstrip(", \t").lower().split(",")]
    found = {name: kind for name, kind in columns.items() if name in header}
    for name in columns:
        if header.count(name) > 1:
            raise UserError(f"{where}: the column {name!r} occurs twice; remove one of the two.")
        if name not in found and name not in optional:
            raise UserError(
                f"{where}: no column {name!r} among {_quoted(', '.join(header))}; expected a file "
                f"of {format_name}."
            )
    _require_lengths(where, rows, numbers, len(header))
    return _parse(where, rows[1:], numbers[1:], header, found)


def require_finite(table: np.ndarray, where: str) -> None:
    """Raises `UserError` for a number that is not finite; the first column names its row."""
    names = list(table.dtype.names or ())
    for name in names[1:]:
        bad = np.flatnonzero(~np.isfinite(table[name]))
        if len(bad):
            raise UserError(
                f"{where}: {name} of {names[0]} {table[names[0]][bad[0]]} is "
                f"{table[name][bad[0]]}, which is not finite; correct or remove the row."
            )


def to_csv(columns: Mapping[str, np.ndarray]) -> bytes:
    """Columns as csv; floats have the fewest digits that read back to the same value."""
    rows = zip(*(column.astype(str).tolist() for column in columns.values()), strict=True)
    return "\n".join([",".join(columns), *map(",".join, rows), ""]).encode()


def _require_lengths(
    where: str, rows: Sequence[str], numbers: Sequence[int], num_columns: int
) -> None:
    """Refuses rows with more or fewer fields than the header: their columns would be shifted."""
    for row, number in zip(rows, numbers, strict=True):
        num_fields = row.count(",") + 1
        if num_fields > num_columns:
            num_fields = max(num_columns, row.rstrip(", \t").count(",") + 1)
        if num_fields != num_columns:
            raise UserError(
                f"{where}: line {number} has {num_fields} fields where the header has "
                f"{num_columns}; correct the line, or fetch the file again."
            )


def _parse(
    where: str,
    rows: Sequence[str],
    numbers: Sequence[int],
    header: Sequence[str],
    columns: Mapping[str, type],
) -> np.ndarray:
    dtype = np.dtype(list(columns.items()))
    if not rows:
        return np.zeros(0, dtype)
    places = [header.index(name) for name in columns]
    try:
        return np.loadtxt(rows, dtype, comments=None, delimiter=",", usecols=places, ndmin=1)
    except ValueError as error:
        bad = _BAD_FIELD.fullmatch(str(error))
        if not bad:
            raise UserError(
                f"{where}: {_quoted(str(error).rstrip('.'))}; fetch the file again."
            ) from error
        row, place = int(bad[1]), int(bad[2]) - 1
        name = header[place]
        if columns[name] is np.uint64:
            signed = _parse(where, rows, numbers, header, {**columns, name: np.int64})
            return signed.view(dtype)
        is_whole = np.issubdtype(columns[name], np.integer)
        raise UserError(
            f"{where}: line {numbers[row]}: {name} is {_quoted(rows[row].split(',')[place])!r}; "
            f"expected a {'whole number of 64 bits' if is_whole else 'number'}: correct the line, "
            "or fetch the file again."
        ) from error


def _quoted(text: str) -> str:
    """A piece of a file for a message of one line."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text.strip())
    return shown if len(shown) <= _LONGEST_QUOTE else shown[:_LONGEST_QUOTE] + "…"
