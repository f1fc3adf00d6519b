"""One account, as a person with a pencil would keep it: a list of movements, and sums over it.

Nothing is stored that can be summed up. What a bucket holds, what a grant has left, what a hold
still reserves and what a budget counted is each time added up from all movements since the
beginning. It shares no code with the ledger: it is written from the rules, to disagree with it.
"""

from __future__ import annotations

from calendar import monthrange
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from zoneinfo import ZoneInfo

OVERDRAFT = "~overdraft"
FOREVER = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
TICK = timedelta(microseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BUCKETS = ("issued", "available", "held", "used", "expired")


@dataclass
class Move:
    """Units that went from one bucket to another on one line, and for whose charge."""

    wallet: str
    line: str
    source: str
    target: str
    units: Fraction
    charge: str | None = None


@dataclass
class Written:
    """One entry as the rules demand it."""

    seq: int
    kind: str
    at: datetime
    effective_at: datetime
    request_id: str | None
    ref: str | None
    wallet: str
    units: Fraction
    moves: list[Move]
    shortfall: Fraction
    deadline: datetime | None
    buckets: dict[str, Fraction]
    right: dict[str, object] | None = None


@dataclass
class Lot:
    """A grant: never forgotten here, whatever became of it."""

    id: str
    wallet: str
    units: Fraction
    category: str = "paid"
    priority: int = 0
    effective_at: datetime = EPOCH
    expires_at: datetime | None = None
    applies_to: tuple[str, ...] = ()
    begun: bool = True
    voided: Written | None = None
    told: datetime = EPOCH

    def over(self, at: datetime) -> bool:
        """Return whether its last moment has passed."""
        return self.expires_at is not None and self.expires_at <= at

    def pays_for(self, operation: str | None) -> bool:
        """Return whether it may pay for this operation; `a.*` stands for all below `a.`."""
        if not self.applies_to:
            return True
        for name in self.applies_to:
            if name == operation:
                return True
            if name.endswith(".*") and (operation or "").startswith(name[:-1]):
                return True
        return False

    def rank(self) -> tuple[int, datetime, bool, datetime, str]:
        """Return its place in the burn order."""
        end = self.expires_at or datetime.max.replace(tzinfo=UTC)
        return (self.priority, end, self.category != "promo", self.effective_at, self.id)


@dataclass
class Charge:
    """A consume or a hold: what was asked for, and for a hold how it stands."""

    id: str
    seq: int
    at: datetime
    wallet: str
    operation: str | None
    model: str | None
    tags: dict[str, str]
    units: Fraction
    is_hold: bool = False
    attributes: dict[str, str] | None = None
    deadline: datetime = FOREVER
    at_deadline: str = "release"
    doubt: bool = False
    ending: Written | None = None
    asked: tuple[Fraction | None, object] = (None, None)


@dataclass
class Cap:
    """A budget: it counts what was charged after it was set."""

    name: str
    cap: Fraction
    period: str
    window: timedelta | None
    match: dict[str, str]
    wallet: str
    since: int


@dataclass
class Series:
    """A recurring grant: its terms, the number of the next occurrence, the grant that runs.

    `until` is when that grant ends, where the next follows it, whatever the zone is by then.
    """

    terms: dict[str, object]
    next: int
    current: str | None = None
    until: datetime | None = None
    owner: str | None = None
    waits: bool = False


@dataclass
class Right:
    """An entitlement: what it brings, how it stands, and what the clock will do to it.

    `brings` is all that another plan would replace: product, features, grants, every, count,
    anchor. `then` takes its place at `then_at`.
    """

    name: str
    kind: str
    status: str
    brings: dict[str, object]
    starts_at: datetime
    trial_ends_at: datetime | None = None
    ends_at: datetime | None = None
    paid_until: datetime | None = None
    then: dict[str, object] | None = None
    then_at: datetime | None = None

    def shown(self) -> dict[str, object]:
        """Return what an entry about it must say, a copy that does not change with it."""
        return {
            "name": self.name,
            "kind": self.kind,
            "status": self.status,
            "product": self.brings["product"],
            "features": self.brings["features"],
            "anchor": self.brings["anchor"],
            "starts_at": self.starts_at,
            "trial_ends_at": self.trial_ends_at,
            "ends_at": self.ends_at,
            "paid_until": self.paid_until,
            "next": None if self.then is None else self.then["product"],
            "next_at": self.then_at,
        }

    def due(self) -> datetime | None:
        """Return when the clock changes it next."""
        tried = self.trial_ends_at if self.status == "trialing" else None
        dates = [one for one in (self.ends_at, self.then_at, tried) if one is not None]
        return min(dates, default=None)


@dataclass
class Account:
    """Everything that ever happened to one account, and the rules that need no request."""

    name: str
    written: list[Written] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    lots: dict[str, Lot] = field(default_factory=dict)
    charges: dict[str, Charge] = field(default_factory=dict)
    settles: dict[str, str] = field(default_factory=dict)
    caps: dict[str, Cap] = field(default_factory=dict)
    series: dict[str, Series] = field(default_factory=dict)
    warnings: dict[str, tuple[str, int]] = field(default_factory=dict)
    limits: dict[str, Fraction] = field(default_factory=dict)
    rights: dict[str, Right] = field(default_factory=dict)
    redeemed: list[str] = field(default_factory=list)
    tried: set[object] = field(default_factory=set)
    status: str = "open"
    zone: str = "UTC"
    late_settlement: bool = False
    late_usage: timedelta = timedelta(days=35)
    early_usage: timedelta = timedelta(minutes=5)

    # ------------------------------------------------------------ sums

    @property
    def time(self) -> datetime:
        """The time of the last entry: an account's time never runs backwards."""
        return self.written[-1].at if self.written else EPOCH

    def buckets(self, wallet: str) -> dict[str, Fraction]:
        """Return the five buckets; issued counts up as units leave it."""
        sums = dict.fromkeys(BUCKETS, Fraction(0))
        for move in self.moves:
            if move.wallet == wallet:
                sums[move.source] -= move.units
                sums[move.target] += move.units
        sums["issued"] = -sums["issued"]
        return sums

    def left(self, line: str, wallet: str, bucket: str = "available") -> Fraction:
        """Return what is in one bucket on one line: the overdraft's may be negative."""
        moves = [m for m in self.moves if m.line == line and m.wallet == wallet]
        gone = sum((m.units for m in moves if m.source == bucket), Fraction(0))
        return sum((m.units for m in moves if m.target == bucket), Fraction(0)) - gone

    def reserved(self, charge: str) -> dict[str, Fraction]:
        """Return what a hold still has of each line, in the order it took them."""
        lines: dict[str, Fraction] = {}
        for move in self.moves:
            if move.charge != charge:
                continue
            if move.target == "held":
                lines[move.line] = lines.get(move.line, Fraction(0)) + move.units
            elif move.source == "held":
                lines[move.line] -= move.units
        return {line: units for line, units in lines.items() if units}

    def paid(self, charge: str) -> dict[str, Fraction]:
        """Return what each line paid and did not get back, in the order it first paid."""
        lines: dict[str, Fraction] = {}
        for move in self.moves:
            if move.charge != charge:
                continue
            if move.target == "used":
                lines[move.line] = lines.get(move.line, Fraction(0)) + move.units
            elif move.source == "used":
                lines[move.line] -= move.units
        return lines

    def counted(self, charge: Charge) -> Fraction:
        """Return what a charge counts as in a budget: all that it took and did not give back."""
        taken = ("held", "used")
        total = Fraction(0)
        for move in self.moves:
            if move.charge == charge.id:
                total += move.units * ((move.target in taken) - (move.source in taken))
        return total

    def headroom(self, wallet: str) -> Fraction:
        """Return how much may still be drawn on the overdraft."""
        limit = self.limits.get(wallet, Fraction(0))
        return max(limit + self.left(OVERDRAFT, wallet), Fraction(0))

    # ------------------------------------------------------------ who pays

    def draw(
        self, wallet: str, operation: str | None, units: Fraction, at: datetime, *, owe: bool = True
    ) -> tuple[list[tuple[str, Fraction]], Fraction]:
        """Return who pays how much, in burn order, the overdraft last; and what is missing."""
        payers = [
            (lot.id, self.left(lot.id, wallet))
            for lot in sorted(self.lots.values(), key=Lot.rank)
            if lot.wallet == wallet and lot.begun and not lot.over(at) and lot.pays_for(operation)
        ]
        most = self.headroom(wallet) if owe else self.left(OVERDRAFT, wallet)
        payers.append((OVERDRAFT, most))
        drawn = []
        for line, most in payers:
            taken = min(most, units)
            if taken > 0:
                drawn.append((line, taken))
                units -= taken
        return drawn, units

    def spendable(self, wallet: str, operation: str | None, at: datetime) -> Fraction:
        """Return what could be drawn for this operation."""
        drawn, _ = self.draw(wallet, operation, Fraction(10**40), at)
        return sum((units for _, units in drawn), Fraction(0))

    def home(self, line: str, at: datetime) -> str:
        """Return the bucket that held units of this line return to."""
        if line == OVERDRAFT:
            return "available"
        if self.lots[line].voided:
            return "issued"
        return "expired" if self.lots[line].over(at) else "available"

    def issue(self, lot: Lot) -> list[Move]:
        """Return how a grant's units come in: one without restrictions repays what is owed."""
        owed = max(-self.left(OVERDRAFT, lot.wallet), Fraction(0))
        repaid = min(owed, lot.units) if not lot.applies_to else Fraction(0)
        parts = [(OVERDRAFT, repaid), (lot.id, lot.units - repaid)]
        return [Move(lot.wallet, line, "issued", "available", n) for line, n in parts if n]

    def returns(self, hold: Charge, at: datetime) -> list[Move]:
        """Return how all that a hold still has goes back."""
        return [
            Move(hold.wallet, line, "held", self.home(line, at), units, hold.id)
            for line, units in self.reserved(hold.id).items()
        ]

    # ------------------------------------------------------------ budgets

    def tightest(self, charge: Charge, at: datetime) -> Fraction | None:
        """Return the least room of all budgets that this charge would count in."""
        rooms = []
        for cap in self.caps.values():
            node = _node(cap, charge)
            if node is None:
                continue
            spent = Fraction(0)
            for other in self.charges.values():
                if other.seq > cap.since and _node(cap, other) == node:
                    spent += self.counted(other) if self._same_window(cap, other.at, at) else 0
            rooms.append(max(cap.cap - spent, Fraction(0)))
        return min(rooms, default=None)

    def _same_window(self, cap: Cap, then: datetime, at: datetime) -> bool:
        """Return whether what was counted then still counts now."""
        if cap.period == "total":
            return True
        if cap.period == "rolling":
            assert cap.window is not None
            size = max(cap.window // 60, TICK)  # counted in sixtieths, dropped whole
            begun = (then - EPOCH) // size * size + EPOCH
            return begun + size > at - cap.window
        one, two = (moment.astimezone(ZoneInfo(self.zone)).date() for moment in (then, at))
        if cap.period == "day":
            return one == two
        if cap.period == "week":
            return one.isocalendar()[:2] == two.isocalendar()[:2]
        return (one.year, one.month) == (two.year, two.month)

    # ------------------------------------------------------------ writing

    def write(
        self,
        kind: str,
        at: datetime,
        wallet: str,
        units: Fraction | int = 0,
        moves: list[Move] | None = None,
        *,
        request_id: str | None = None,
        ref: str | None = None,
        effective_at: datetime | None = None,
        shortfall: Fraction | int = 0,
        deadline: datetime | None = None,
        right: Right | None = None,
    ) -> Written:
        """Write an entry: its movements happen now, the buckets afterwards are summed up."""
        moves = moves or []
        self.moves += moves
        written = Written(
            seq=len(self.written) + 1,
            kind=kind,
            at=max(at, self.time),
            effective_at=effective_at or max(at, self.time),
            request_id=request_id,
            ref=ref,
            wallet=wallet,
            units=Fraction(units),
            moves=moves,
            shortfall=Fraction(shortfall),
            deadline=deadline,
            buckets=self.buckets(wallet),
            right=None if right is None else right.shown(),
        )
        self.written.append(written)
        return written

    # ------------------------------------------------------------ the clock

    def due_by(self, at: datetime) -> bool:
        """Return whether the clock has something to do by then."""
        return any(due[0] <= at for due in self._due())

    def advance(self, at: datetime) -> None:
        """Do what fell due by `at`, one thing after the other, the earliest first."""
        while True:
            due = min(self._due(), default=None)
            if due is None or due[0] > at:
                return
            when, sort, name = due
            ends = (self._end_hold, self._turn, self._renew, self._expire)
            (*ends, self._begin, self._warn)[sort](name, when, at)

    def _due(self) -> list[tuple[datetime, int, str]]:
        """Return what the clock will bring: when, of what sort, and its name.

        At one instant holds end, then entitlements change or end, then grants renew, then grants
        expire, then grants begin, and last their owners are warned that they expire soon.
        """
        due = [
            (hold.deadline, 0, hold.id)
            for hold in self.charges.values()
            if hold.is_hold and hold.ending is None
        ]
        for name, right in self.rights.items():
            turns_at = right.due()
            if turns_at is not None:
                due.append((turns_at, 1, name))
        for name, series in self.series.items():
            when = series.until or occurrence(series, series.next, self.zone)
            if not series.waits and when < min(
                FOREVER, _moment(series.terms["ends_at"]) or FOREVER
            ):
                due.append((when, 2, name))
        for lot in self.lots.values():
            if not lot.begun and not lot.voided:
                due.append((lot.effective_at, 4, lot.id))
            elif lot.expires_at is not None and self.left(lot.id, lot.wallet):
                due.append((lot.expires_at, 3, lot.id))
                for wallet, days in self.warnings.values():
                    when = lot.expires_at - timedelta(days=days)
                    if wallet == lot.wallet and when > max(lot.told, lot.effective_at):
                        due.append((when, 5, lot.id))
        return due

    def _end_hold(self, name: str, when: datetime, at: datetime) -> None:
        hold = self.charges[name]
        if hold.doubt and hold.at_deadline == "settle":
            rest = self.reserved(name).items()
            moves = [Move(hold.wallet, line, "held", "used", n, name) for line, n in rest]
            kind = "settle"
        else:
            moves = self.returns(hold, when)
            kind = "hold_expired"
        units = sum((move.units for move in moves), Fraction(0))
        hold.asked = (units, None)
        hold.ending = self.write(kind, at, hold.wallet, units, moves, ref=name, effective_at=when)

    def _turn(self, name: str, when: datetime, at: datetime) -> None:
        """End an entitlement, put it on what was to come, or end its trial."""
        right = self.rights[name]
        kind = "entitlement"
        before = right.brings["product"]
        if right.ends_at is not None and right.ends_at <= when:
            kind = "entitlement_ended"
        elif right.then is not None and right.then_at is not None and right.then_at <= when:
            anchors = right.brings["anchor"], right.then["anchor"]
            right.brings, right.then, right.then_at = right.then, None, None
            if anchors[0] != anchors[1]:
                right.brings["anchor"] = local(when, self.zone)
        else:
            right.status, right.trial_ends_at = "active", None
        self.write(kind, at, "credits", ref=f"~{name}/entitlement", effective_at=when, right=right)
        if kind == "entitlement_ended":
            self.drop(name)
        else:
            self.run_grants(right, when, anew=right.brings["product"] != before)

    def drop(self, name: str) -> None:
        """Have an entitlement bring nothing any more."""
        self.rights.pop(name, None)
        self.series = {n: one for n, one in self.series.items() if one.owner != name}

    def run_grants(self, right: Right, when: datetime, *, anew: bool) -> None:
        """Have the grants of an entitlement come as it says; past periods bring nothing."""
        before = {n: one for n, one in self.series.items() if one.owner == right.name}
        self.series = {n: one for n, one in self.series.items() if one.owner != right.name}
        for brought in _list(right.brings["grants"]):
            name = f"{right.name}/{brought['name']}"
            ends = [one for one in (right.ends_at, right.paid_until) if one is not None]
            terms = {**brought, "anchor": right.brings["anchor"], "category": "plan"}
            series = Series({**terms, "ends_at": min(ends, default=None)}, 0, owner=right.name)
            series.waits = right.status in ("paused", "past_due")
            series.next = period_at(series, when, self.zone)
            old = before.get(name)
            if old is not None:
                series.current = old.current
                shape = ("anchor", "every", "count")
                goes_on = not anew or old.until == when
                if goes_on and all(old.terms[key] == series.terms[key] for key in shape):
                    series.until = old.until if series.next <= old.next else None
                    series.next = max(series.next, old.next)
            self.series[name] = series

    def period_end(self, right: Right, at: datetime) -> datetime:
        """Return when the period of an entitlement at hand ends."""
        shape = ("anchor", "every", "count")
        for series in self.series.values():
            until = series.until
            if series.owner != right.name or until is None or until <= at:
                continue
            if all(series.terms[key] == right.brings[key] for key in shape):
                return until
        period = Series({key: right.brings[key] for key in ("anchor", "every", "count")}, 0)
        return occurrence(period, period_at(period, at, self.zone) + 1, self.zone)

    def brings(self, feature: str) -> object:
        """Return the value of a feature that its entitlements bring, None where none does."""
        found = []
        for right in sorted(self.rights.values(), key=lambda one: (one.starts_at, one.name)):
            features = right.brings["features"]
            assert isinstance(features, dict)
            if right.status != "paused" and feature in features:
                found.append(features[feature])
        if not found:
            return None
        texts = [one for one in found if isinstance(one, str)]
        if "unlimited" in texts:
            return "unlimited"
        return texts[-1] if texts else max(found)

    def _renew(self, name: str, when: datetime, at: datetime) -> None:
        series = self.series[name]
        terms = series.terms
        wallet = str(terms["wallet"])
        units, most, least = (
            _fraction(terms[key]) for key in ("units", "rollover_max", "rollover_min")
        )
        current = self.lots.get(series.current or "")
        left = Fraction(0)
        if current is not None and current.wallet == wallet:
            left = self.left(current.id, wallet)
        carried = Fraction(0)
        if current is not None:
            carried = min(most, max(left, self._lost(current, wallet, when), least))
        nth = max(series.next, period_at(series, when, self.zone))
        lot = Lot(
            id=f"~{name}/{len(self.written) + 1}",
            wallet=wallet,
            units=units + carried,
            category=str(terms["category"]),
            priority=int(str(terms["priority"])),
            effective_at=when,
            expires_at=occurrence(series, nth + 1, self.zone),
            applies_to=tuple(terms["applies_to"]),  # type: ignore[arg-type]  # a list of names
        )
        moves = self.issue(lot)
        moved = min(left, carried)
        if current is not None and moved:
            moves.append(Move(wallet, current.id, "available", "issued", moved))
        if current is not None and left > moved:
            moves.append(Move(wallet, current.id, "available", "expired", left - moved))
        self.lots[lot.id] = lot
        self.write("grant_renewed", at, wallet, lot.units, moves, ref=lot.id, effective_at=when)
        series.next = nth + 1
        series.current, series.until = lot.id, lot.expires_at
        over = lot.expires_at and lot.expires_at >= (_moment(terms["ends_at"]) or FOREVER)
        if over and series.owner is None:
            del self.series[name]

    def _lost(self, lot: Lot, wallet: str, when: datetime) -> Fraction:
        """Return what a grant lost when it ended just then: a late renewal carries it over."""
        if lot.wallet != wallet:
            return Fraction(0)
        ends = (one for one in self.written if one.kind == "grant_expired" and one.ref == lot.id)
        return sum((one.units for one in ends if one.effective_at == when), Fraction(0))

    def _expire(self, name: str, when: datetime, at: datetime) -> None:
        lot = self.lots[name]
        units = self.left(name, lot.wallet)
        moves = [Move(lot.wallet, name, "available", "expired", units)]
        self.write("grant_expired", at, lot.wallet, units, moves, ref=name, effective_at=when)

    def _warn(self, name: str, when: datetime, at: datetime) -> None:
        lot = self.lots[name]
        lot.told = when
        units = self.left(name, lot.wallet)
        written = self.write("grant_expiring", at, lot.wallet, units, ref=name, effective_at=when)
        written.deadline = lot.expires_at

    def _begin(self, name: str, when: datetime, at: datetime) -> None:
        lot = self.lots[name]
        lot.begun = True
        moves = self.issue(lot)
        self.write("grant_activated", at, lot.wallet, lot.units, moves, ref=name, effective_at=when)


# ---------------------------------------------------------------- calendar, the long way


def occurrence(series: Series, n: int, zone: str) -> datetime:
    """Return when the n-th occurrence falls due, counted from the anchor."""
    anchor = _moment(series.terms["anchor"])
    assert anchor is not None
    steps = n * int(str(series.terms["count"]))
    every = series.terms["every"]
    day = anchor.date()
    try:
        if every in ("day", "week"):
            day += timedelta(days=steps * (7 if every == "week" else 1))
        else:
            months = day.year * 12 + day.month - 1 + steps * (12 if every == "year" else 1)
            year, month = months // 12, months % 12 + 1
            day = date(year, month, min(day.day, monthrange(year, month)[1]))
    except (ValueError, OverflowError):
        return FOREVER
    return datetime.combine(day, anchor.time(), tzinfo=ZoneInfo(zone)).astimezone(UTC)


def period_at(series: Series, at: datetime, zone: str) -> int:
    """Return the number of the period at hand; 0 where the first is still to come."""
    n = 0
    while occurrence(series, n + 1, zone) <= at:
        n += 1
    return n


def end_of_day(day: date, zone: str) -> datetime:
    """Return the first instant after that day in that zone."""
    after = day + timedelta(days=1)
    return datetime.combine(after, time.min, tzinfo=ZoneInfo(zone)).astimezone(UTC)


def _node(cap: Cap, charge: Charge) -> tuple[str, ...] | None:
    """Return the node of the budget that a charge falls on, None where it does not match."""
    if charge.wallet != cap.wallet:
        return None
    names = {**charge.tags, "operation": charge.operation, "model": charge.model}
    node = []
    for name, wanted in cap.match.items():
        value = names.get(name)
        if value is None:
            return None
        if name == "operation" and wanted.endswith(".*") and value.startswith(wanted[:-1]):
            value = wanted
        elif wanted not in ("*", value):
            return None
        node.append(value)
    return tuple(node)


def local(at: datetime, zone: str) -> datetime:
    """Return an instant as the local time of a zone, without the zone."""
    return at.astimezone(ZoneInfo(zone)).replace(tzinfo=None)


def _list(value: object) -> list[dict[str, object]]:
    assert isinstance(value, list)
    return value


def _moment(value: object) -> datetime | None:
    assert value is None or isinstance(value, datetime)
    return value


def _fraction(value: object) -> Fraction:
    assert isinstance(value, Fraction)
    return value
