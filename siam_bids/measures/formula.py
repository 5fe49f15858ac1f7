"""The language of `--formula`: parsed here, so that nothing in a formula is ever run as code.

    formula    = [column {"+" column}] "~" sum
    sum        = ["-"] product {("+" | "-") product}
    product    = crossing {("*" | "/") crossing}          a*b: a + b + a:b, a/b: a + a:b
    crossing   = power {":" power}                        interaction
    power      = atom ["**" whole number]                 (a + b)**2: a + b + a:b
    atom       = "0" | "1" | column | "(" sum ")" | C(column [, "reference"])
               | poly(arithmetic, degree) | function(arithmetic)
    arithmetic = numbers, columns, + - * / **, parentheses, functions
    column     = name | `any name`

Terms mean what they mean in R and patsy (Chambers and Hastie, Statistical Models in S, 1992,
chapter 2): words are categories, the intercept is there unless 0 or -1 removes it, and categories
are coded by treatment contrasts, or in full where their margin is not in the formula.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import numpy as np
import numpy.typing as npt
import pandas as pd

from siam_bids.errors import UsageError

LONGEST = 1000
"""Characters of a formula."""

MOST_TOKENS = 400
"""Names, numbers and signs of one side: arithmetic of more would nest too deeply."""

MOST_TERMS = 100
DEEPEST = 30
"""Brackets within each other."""

HIGHEST_POWER = 8
"""Of an interaction and of a polynomial."""

EXAMPLE = 'For example "~ age + C(sex) + TIV".'

Array = npt.NDArray[np.float64]


def _scaled(values: Array) -> Array:
    return np.asarray((values - values.mean()) / values.std(ddof=1))


FUNCTIONS: Mapping[str, Callable[[Array], Array]] = {
    "I": lambda values: values,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "abs": np.abs,
    "center": lambda values: values - values.mean(),
    "scale": _scaled,
}
"""What a formula may compute. `center` and `scale` are over the scans of the model (SD: n - 1)."""

_ARITHMETIC: Mapping[str, Callable[[Array, Array], Array]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "**": np.power,
}

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)(?![\w.])
      | (?P<name>[^\W\d]\w*(?:\.\w+)*)
      | `(?P<quoted>[^`]+)`
      | "(?P<text>[^"]*)" | '(?P<other_text>[^']*)'
      | (?P<sign>\*\*|[-+*/:(),=^])
    )\s*""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Factor:
    """What a term multiplies.

    Attributes
    ----------
    label
        As written, without spaces.
    columns
        Columns of the table that it uses.
    category
        Category by the one column; otherwise numbers.
    reference
        Level of a category that the others are compared with; the first one if empty.
    compute
        From a table to the values (rows, 1 or more columns); None for what stands in the column.
    """

    label: str
    columns: tuple[str, ...]
    category: bool = False
    reference: str = ""
    compute: Callable[[pd.DataFrame], Array] | None = field(default=None, compare=False)

    def values(self, table: pd.DataFrame) -> dict[str, pd.Series]:
        """Return the columns that this factor stands for, by label; unknown numbers are NaN."""
        column = self.columns[0] if self.columns else ""
        if self.category or (self.compute is None and is_words(table[column])):
            return {self.label: self._levels(table[column])}
        for name in self.columns:
            if is_words(table[name]):
                raise UsageError(
                    f"--formula: {self.label} contains numbers, but {name} contains text."
                )
        if self.compute is None:
            return {self.label: table[column].astype(np.float64)}
        with np.errstate(all="ignore"):
            values = self.compute(table)
        values = np.where(np.isfinite(values), values, np.nan).astype(np.float64)
        if values.ndim == 1:
            return {self.label: pd.Series(values, index=table.index)}
        return {
            f"{self.label}[{degree}]": pd.Series(each, index=table.index)
            for degree, each in enumerate(values.T, 1)
        }

    def _levels(self, values: pd.Series) -> pd.Series:
        numbers = not is_words(values)
        levels = [level_name(level) for level in sorted(values.dropna().unique())]
        if self.reference:
            if self.reference not in levels:
                raise UsageError(
                    f"--formula: {self.columns[0]} has no level {self.reference!r}.",
                    f"It has {', '.join(levels[:20])}.",
                )
            levels.sort(key=lambda level: level != self.reference)
        names = values.map(level_name, na_action="ignore") if numbers else values
        return pd.Series(pd.Categorical(names, categories=levels), index=values.index)


def is_words(values: pd.Series) -> bool:
    """Tell whether a column contains text."""
    return not pd.api.types.is_numeric_dtype(values)


def level_name(level: object) -> str:
    """Return a level of a category as text: 2, not 2.0."""
    return f"{level:.15g}" if isinstance(level, (int, float, np.number)) else str(level)


Term = tuple[Factor, ...]
Terms = dict[Term, None]
"""An ordered set; the term without factors is the intercept."""


@dataclass(frozen=True, kw_only=True)
class Formula:
    """A parsed formula.

    Attributes
    ----------
    text
        As given, without spaces at its ends.
    left
        Columns to explain; none for all tissues.
    right
        What stands after the tilde.
    terms
        Products of factors.
    """

    text: str
    left: tuple[str, ...]
    right: str
    terms: tuple[Term, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the right side uses."""
        return tuple(
            dict.fromkeys(name for term in self.terms for factor in term for name in factor.columns)
        )

    def design(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the design matrix: the rows of `table` that have all values, a column a parameter.

        Raises
        ------
        UsageError
            A number is asked of words, or a reference level is not there.
        """
        from formulaic import SimpleFormula
        from formulaic.parser.types import Factor as Looked, Term as Product

        table = table.dropna(subset=list(self.columns))
        factors = dict.fromkeys(factor for term in self.terms for factor in term)
        if not factors:
            return pd.DataFrame({"Intercept": 1.0}, index=table.index)
        values = {factor: factor.values(table) for factor in factors} if len(table) else {}
        data = pd.DataFrame({k: v for own in values.values() for k, v in own.items()}, table.index)
        data = _with_levels_there(data.dropna())
        if data.empty:
            return pd.DataFrame(index=data.index)
        coded = _coded(data)
        names = dict(zip(data, coded, strict=True))
        one = Looked("1", eval_method="literal")
        terms = [
            Product([Looked(names[label], eval_method="lookup") for label in labels] or [one])
            for term in self.terms
            for labels in product(*(values[factor] for factor in term))
        ]
        matrix = SimpleFormula(terms).get_model_matrix(coded, context={}, output="pandas")
        design = pd.DataFrame(matrix).astype(np.float64)
        return design.rename(columns=partial(_parameter, data))


def _with_levels_there(data: pd.DataFrame) -> pd.DataFrame:
    """Drop levels that no row has; no rows are left if a factor has fewer than two then."""
    for name in data.select_dtypes("category"):
        data[name] = data[name].cat.remove_unused_categories()
        if len(data[name].cat.categories) < 2:
            data = data.iloc[:0]
    return data


def _coded(data: pd.DataFrame) -> pd.DataFrame:
    """Rename columns to f0, f1, ... and levels to l0, l1, ...

    The library sees names and levels of ours only: it drops levels that begin with "__".
    """
    coded = data.set_axis([f"f{place}" for place in range(data.shape[1])], axis="columns")
    for name in coded.select_dtypes("category"):
        levels = range(len(coded[name].cat.categories))
        coded[name] = coded[name].cat.rename_categories([f"l{level}" for level in levels])
    return coded


def _parameter(data: pd.DataFrame, name: str) -> str:
    """Translate the name of a column of a design matrix back: f1[T.l2]:f0 to C(sex)[T.M]:age."""

    def translated(found: re.Match[str]) -> str:
        label = str(data.columns[int(found[1])])
        if not found[3]:
            return label
        return f"{label}[{found[2] or ''}{data[label].cat.categories[int(found[3])]}]"

    return re.sub(r"f(\d+)(?:\[(T\.)?l(\d+)\])?", translated, name)


def parse(text: str) -> Formula:
    """Parse a formula.

    Raises
    ------
    UsageError
        It is not of the language, or too large.
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise UsageError(f"--formula has more than {LONGEST} characters.", EXAMPLE)
    left, tilde, right = text.partition("~")
    if not tilde or not right.strip():
        raise UsageError(f"--formula {text!r} is not a formula.", EXAMPLE)
    reader = _Reader(text, right)
    terms = reader.all()
    return Formula(
        text=text, left=_Reader(text, left).names(), right=right.strip(), terms=tuple(terms)
    )


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str

    @property
    def spelled(self) -> str:
        """The token so that no other one looks like it."""
        if self.kind == "text":
            return f'"{self.text}"'
        if self.kind == "name" and (
            self.text == "Intercept" or not re.fullmatch(r"[^\W\d][\w.]*", self.text)
        ):
            return f"`{self.text}`"
        return ", " if self.text == "," else self.text


class _Reader:
    """Reads one side of a formula by recursive descent."""

    def __init__(self, formula: str, side: str) -> None:
        self._formula = formula
        self._tokens = list(self._split(side))
        self._place = self._depth = 0
        if len(self._tokens) > MOST_TOKENS:
            raise self._error(f"it has more than {MOST_TOKENS} names, numbers and signs")

    def _split(self, side: str) -> Iterator[_Token]:
        place = 0
        while place < len(side.rstrip()):
            found = _TOKEN.match(side, place)
            if not found and side[place:].lstrip().startswith("|"):
                raise self._error(
                    "random effects are not written; people who repeat get a random intercept each"
                )
            if not found:
                raise self._error(f"{side[place:].strip()[:20]!r} is not allowed in a formula")
            kind = str(found.lastgroup)
            text = "**" if found[kind] == "^" else found[kind]
            yield _Token("name" if kind == "quoted" else kind.removeprefix("other_"), text)
            place = found.end()

    def _error(self, problem: str) -> UsageError:
        shown = self._formula if len(self._formula) < 100 else self._formula[:97] + "..."
        return UsageError(f"--formula {shown!r} cannot be read: {problem}.", EXAMPLE)

    # Tokens

    def _next(self) -> _Token:
        ended = self._place >= len(self._tokens)
        return _Token("end", "its end") if ended else self._tokens[self._place]

    def _take(self) -> _Token:
        token = self._next()
        self._place += 1
        return token

    def _found(self, *signs: str) -> str:
        """Take the next token if it is one of these signs."""
        token = self._next()
        if token.kind == "sign" and token.text in signs:
            self._place += 1
            return token.text
        return ""

    def _expect(self, sign: str) -> None:
        if not self._found(sign):
            raise self._error(f"{sign!r} is missing before {self._next().text!r}")

    def _nested(self) -> None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise self._error(f"its brackets are more than {DEEPEST} deep")

    # Left side

    def names(self) -> tuple[str, ...]:
        """Read the columns to explain."""
        found: list[str] = []
        while self._next().kind != "end":
            if found:
                self._expect("+")
            token = self._take()
            if token.kind != "name":
                raise self._error("its left side is not a column of the tables")
            found.append(token.text)
        return tuple(dict.fromkeys(found))

    # Terms

    def all(self) -> Terms:
        """Read the right side to its end."""
        terms = self._sum({(): None})
        if self._next().kind != "end":
            raise self._error(f"{self._next().text!r} is not expected there")
        return terms

    def _sum(self, terms: Terms) -> Terms:
        """Read a sum that starts from some terms."""
        sign = self._found("+", "-") or "+"
        while sign:
            if self._next() == _Token("number", "0"):
                self._take()
                own: Terms = {(): None}
                sign = "-" if sign == "+" else "+"
            else:
                own = self._product()
            if sign == "+":
                terms = self._bounded([*terms, *own])
            else:
                terms = {term: None for term in terms if term not in own}
            sign = self._found("+", "-")
        return terms

    def _product(self) -> Terms:
        terms = self._crossing()
        while sign := self._found("*", "/"):
            other = self._crossing()
            if sign == "*":
                terms = self._bounded([*terms, *other, *self._interaction(terms, other)])
            else:
                whole = tuple(dict.fromkeys(factor for term in terms for factor in term))
                terms = self._bounded([*terms, *self._interaction({whole: None}, other)])
        return terms

    def _crossing(self) -> Terms:
        terms = self._power()
        while self._found(":"):
            terms = self._interaction(terms, self._power())
        return terms

    def _power(self) -> Terms:
        terms = base = self._atom()
        while self._found("**"):
            for _ in range(self._whole_number() - 1):
                terms = self._bounded([*terms, *self._interaction(terms, base)])
        return terms

    def _interaction(self, ones: Terms, others: Terms) -> Terms:
        return self._bounded(
            tuple(dict.fromkeys((*one, *other))) for one, other in product(ones, others)
        )

    def _bounded(self, terms: Iterable[Term]) -> Terms:
        """Return terms once each, whatever the order of their factors."""
        unique: dict[frozenset[Factor], Term] = {}
        for term in terms:
            unique.setdefault(frozenset(term), term)
            if len(unique) > MOST_TERMS:
                raise self._error(f"it has more than {MOST_TERMS} terms")
        return dict.fromkeys(unique.values())

    def _whole_number(self) -> int:
        token = self._take()
        if token.kind != "number" or not re.fullmatch(r"[1-9]", token.text):
            raise self._error(f"{token.text!r} is not a whole number from 1 to {HIGHEST_POWER}")
        if int(token.text) > HIGHEST_POWER:
            raise self._error(f"the power {token.text} is above {HIGHEST_POWER}")
        return int(token.text)

    def _atom(self) -> Terms:
        if self._found("("):
            self._nested()
            terms = self._sum({})
            self._expect(")")
            self._depth -= 1
            return terms
        start, token = self._place, self._take()
        if token == _Token("number", "1"):
            return {(): None}
        if token.kind != "name":
            raise self._error(f"{token.text!r} is not a column")
        if not self._found("("):
            return {(Factor(self._label(start), (token.text,)),): None}
        factor = self._call(token.text, start)
        return {(factor,): None}

    def _call(self, function: str, start: int) -> Factor:
        """Read a call after its opening bracket."""
        if function == "C":
            return self._category(start)
        if function not in (*FUNCTIONS, "poly"):
            raise self._error(
                f"{function}() is not a supported function; there are C, poly, "
                f"{', '.join(FUNCTIONS)}"
            )
        number = self._arithmetic()
        compute: Callable[[pd.DataFrame], Array]
        if function == "poly":
            self._expect(",")
            compute = _polynomial(number.compute, self._whole_number())
        else:
            compute = _applied(FUNCTIONS[function], number.compute)
        self._expect(")")
        if not number.columns:
            raise self._error(f"{self._label(start)} uses no column")
        return Factor(self._label(start), number.columns, compute=compute)

    def _category(self, start: int) -> Factor:
        column = self._take()
        if column.kind != "name":
            raise self._error(f"{column.text!r} is not a column")
        reference = ""
        if self._found(","):
            wrapped = self._next() == _Token("name", "Treatment")  # as patsy has it
            if wrapped:
                self._take()
                self._expect("(")
            if self._next().kind == "name" and self._next().text in ("ref", "reference"):
                self._take()
                self._expect("=")
            level = self._take()
            if level.kind not in ("text", "number"):
                raise self._error(f"the reference level {level.text!r} is not within quotes")
            reference = level.text
            if wrapped:
                self._expect(")")
        self._expect(")")
        return Factor(self._label(start), (column.text,), category=True, reference=reference)

    def _label(self, start: int) -> str:
        """Return what was read since `start`, in one spelling."""
        return "".join(token.spelled for token in self._tokens[start : self._place])

    # Arithmetic

    def _arithmetic(self) -> _Number:
        self._nested()
        number = self._arithmetic_product()
        while sign := self._found("+", "-"):
            number = _combined(sign, number, self._arithmetic_product())
        self._depth -= 1
        return number

    def _arithmetic_product(self) -> _Number:
        number = self._arithmetic_power()
        while sign := self._found("*", "/"):
            number = _combined(sign, number, self._arithmetic_power())
        return number

    def _arithmetic_power(self) -> _Number:
        if self._found("-"):
            self._nested()
            number = _combined("-", _constant(0.0), self._arithmetic_power())
            self._depth -= 1
            return number
        number = self._arithmetic_atom()
        if self._found("**"):
            self._nested()
            number = _combined("**", number, self._arithmetic_power())
            self._depth -= 1
        return number

    def _arithmetic_atom(self) -> _Number:
        if self._found("("):
            number = self._arithmetic()
            self._expect(")")
            return number
        token = self._take()
        if token.kind == "number":
            return _constant(float(token.text))
        if token.kind != "name":
            raise self._error(f"{token.text!r} is neither a number nor a column")
        if not self._found("("):
            return _Number(_column(token.text), (token.text,))
        if token.text not in FUNCTIONS:
            raise self._error(f"{token.text}() is not a supported function")
        number = self._arithmetic()
        self._expect(")")
        return _Number(_applied(FUNCTIONS[token.text], number.compute), number.columns)


@dataclass(frozen=True)
class _Number:
    """An arithmetic expression and the columns that it uses."""

    compute: Callable[[pd.DataFrame], Array]
    columns: tuple[str, ...]


def _constant(value: float) -> _Number:
    return _Number(lambda table: np.full(len(table), value), ())


def _column(name: str) -> Callable[[pd.DataFrame], Array]:
    return lambda table: table[name].to_numpy(dtype=np.float64)


def _applied(
    function: Callable[[Array], Array], compute: Callable[[pd.DataFrame], Array]
) -> Callable[[pd.DataFrame], Array]:
    return lambda table: function(compute(table))


def _combined(sign: str, one: _Number, other: _Number) -> _Number:
    operation = _ARITHMETIC[sign]
    return _Number(
        lambda table: operation(one.compute(table), other.compute(table)),
        tuple(dict.fromkeys((*one.columns, *other.columns))),
    )


def _polynomial(
    compute: Callable[[pd.DataFrame], Array], degree: int
) -> Callable[[pd.DataFrame], Array]:
    """Return orthonormal polynomials (rows, degree) of the values, as R's poly."""

    def polynomial(table: pd.DataFrame) -> Array:
        values = compute(table)
        centred = values - values.mean()
        powers = np.vander(centred, degree + 1, increasing=True)
        if not np.isfinite(powers).all():
            return np.full((len(values), degree), np.nan)
        basis, scale = np.linalg.qr(powers)
        return np.asarray(basis[:, 1:] * np.sign(np.diag(scale))[1:])

    return polynomial
