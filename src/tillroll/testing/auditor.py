"""The auditor: predicts every answer from the rules, and says where the ledger disagrees.

    auditor = Auditor()
    call = Call("consume", "acme", {"units": 5, "request_id": "r1"})
    expected = auditor.expect(call, at)
    problems = compare(expected, answer)     # a receipt, or the exception that was raised

It is written from the documented rules over `testing.model`, and shares no rule with the ledger:
where the two disagree, one of them is wrong. It is slow, and meant to be.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

from tillroll.ledger.products import NOTHING, Products
from tillroll.testing.model import (
    OVERDRAFT,
    Account,
    Cap,
    Charge,
    Lot,
    Move,
    Right,
    Series,
    Written,
    end_of_day,
    local,
    period_at,
)

HOLD_LIFE = timedelta(minutes=15)
HOLD_LIFE_MAX = timedelta(hours=24)
DOUBT_LIFE = timedelta(hours=24)
DOUBT_LIFE_MAX = timedelta(days=30)
REFUSAL_LIFE = timedelta(days=90)
# What a call may carry that is no part of what it asks for.
_BESIDE = ("request_id", "retry_refused", "actor")
_IN_FLIGHT = ("settle", "release", "extend", "mark_in_doubt")

# What an operation with these meters costs, None where it has no price.
Price = Callable[[str, str | None, Mapping[str, Any]], Decimal | None]


class Call(NamedTuple):
    """One verb of `Ledger` with the arguments that it was or will be called with."""

    verb: str
    account: str
    args: dict[str, Any]


@dataclass
class Expected:
    """The answer that the rules demand: an entry, a refusal, "invalid" or "conflict"."""

    written: Written | None = None
    code: str | None = None
    needed: Fraction | None = None
    available: Fraction | None = None
    held: Fraction | None = None
    seq: int = 0
    replayed: bool = False

    def again(self) -> Expected:
        """Return the same answer, given to a repeat."""
        return Expected(
            self.written, self.code, self.needed, self.available, self.held, self.seq, replayed=True
        )


class _No(Exception):
    """A refusal or an invalid request, found while deciding."""

    def __init__(self, code: str, needed: Fraction | None = None, *rest: Fraction | None) -> None:
        super().__init__(code)
        self.code = code
        self.needed = needed
        self.available, self.held = (*rest, None, None)[:2]


@dataclass
class _Known:
    asked: object
    answer: Expected
    at: datetime


@dataclass
class Auditor:
    """Predicts answers, account by account.

    Attributes:
        price: What operations cost; nothing is priced if left out.
        scale: Decimals of the units: prices are rounded up to it.
        products: What the catalog in force sells.
    """

    price: Price = field(default=lambda _operation, _model, _meters: None)
    scale: int = 6
    products: Products = NOTHING
    accounts: dict[str, Account] = field(default_factory=dict)
    known: dict[tuple[str, str], _Known] = field(default_factory=dict)

    def account(self, name: str) -> Account:
        """Return the account of that name, new where it is new."""
        return self.accounts.setdefault(name, Account(name))

    def at(self, name: str, moment: datetime) -> Account:
        """Return an account with everything done that falls due by that moment, on a copy."""
        account = self.account(name)
        if account.due_by(moment):
            account = copy.deepcopy(account)
            account.advance(max(moment, account.time))
        return account

    def expect(self, call: Call, moment: datetime) -> Expected:
        """Return the answer that the rules demand, and remember that it was given."""
        call = _plain(call)
        account = self.account(call.account)
        request_id = call.args["request_id"]
        at = max(moment, account.time)
        asked = _asked(call)
        known = self.known.get((call.account, request_id))
        forgettable = known is not None and (known.answer.code or known.answer.replayed)
        if known is not None and forgettable and moment - known.at >= REFUSAL_LIFE:
            known = None
        if known is not None:
            if known.asked != asked:
                return Expected(code="idempotency_conflict")
            if not (known.answer.code and call.args.get("retry_refused")):
                return known.answer.again()
        account.advance(at)
        try:
            answer = self._decide(account, call, at)
        except _No as no:
            answer = Expected(
                code=no.code,
                needed=no.needed,
                available=no.available,
                held=no.held,
                seq=len(account.written),
            )
        if answer.code != "invalid_input":
            self.known[call.account, request_id] = _Known(asked, answer, at)
        account.advance(at)
        return answer

    def _decide(self, account: Account, call: Call, at: datetime) -> Expected:
        if call.verb not in _IN_FLIGHT:
            if account.status == "closed":
                raise _No("account_closed")
            if account.status == "frozen" and call.verb in ("consume", "hold"):
                raise _No("account_frozen")
        rule = getattr(self, f"_{call.verb}")
        answer = rule(account, call.args, at)
        return answer if isinstance(answer, Expected) else Expected(answer, seq=answer.seq)

    # ------------------------------------------------------------ units in

    def _grant(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        effective_at = args.get("effective_at") or at
        expires_at = args.get("expires_at")
        if isinstance(expires_at, date) and not isinstance(expires_at, datetime):
            expires_at = end_of_day(expires_at, account.zone)
        elif args.get("expires_in"):
            expires_at = effective_at + args["expires_in"]
        if expires_at is not None and expires_at <= max(at, effective_at):
            raise _No("invalid_input")
        lot = Lot(
            id=args["request_id"],
            wallet=args.get("wallet", "credits"),
            units=args["units"],
            category=args.get("category", "paid"),
            priority=args.get("priority", 0),
            effective_at=effective_at,
            expires_at=expires_at,
            applies_to=tuple(args.get("applies_to", ())),
            begun=effective_at <= at,
        )
        self._check_size(account, lot)
        moves = account.issue(lot) if lot.begun else []
        account.lots[lot.id] = lot
        return account.write(
            "grant", at, lot.wallet, lot.units, moves, request_id=lot.id, effective_at=effective_at
        )

    def _check_size(self, account: Account, lot: Lot) -> None:
        issued = account.buckets(lot.wallet)["issued"] + lot.units
        if issued * 10**self.scale >= 2**53:
            raise _No("invalid_input")

    def _void(self, account: Account, args: dict[str, Any], at: datetime) -> Written | Expected:
        lot = account.lots.get(args["grant_id"])
        if lot is None:
            raise _No("grant_not_found")
        left = account.left(lot.id, lot.wallet)
        if args.get("units") is not None:
            if not lot.begun and lot.voided is None:
                raise _No("invalid_input")
            part = min(args["units"], left)
            moves = [Move(lot.wallet, lot.id, "available", "issued", part)] if part else []
            return account.write(
                *("void", at, lot.wallet, part, moves),
                request_id=args["request_id"],
                ref=lot.id,
                shortfall=args["units"] - part,
            )
        if lot.voided is not None:
            return Expected(lot.voided, replayed=True)
        units = left
        moves = [Move(lot.wallet, lot.id, "available", "issued", units)] if units else []
        lot.voided = account.write(
            "void", at, lot.wallet, units, moves, request_id=args["request_id"], ref=lot.id
        )
        return lot.voided

    def _adjust(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        wallet, units = args.get("wallet", "credits"), args["units"]
        request_id = args["request_id"]
        if units > 0:
            lot = Lot(request_id, wallet, units, "adjustment", effective_at=at)
            self._check_size(account, lot)
            moves = account.issue(lot)
            account.lots[lot.id] = lot
            return account.write("adjust", at, wallet, units, moves, request_id=request_id)
        moves = []
        missing = -units
        for lot in sorted(account.lots.values(), key=Lot.rank):
            taken = min(account.left(lot.id, wallet) if lot.wallet == wallet else 0, missing)
            if taken > 0:
                moves.append(Move(wallet, lot.id, "available", "issued", taken))
                missing -= taken
        taken = min(account.left(OVERDRAFT, wallet), missing)
        if taken > 0:
            moves.append(Move(wallet, OVERDRAFT, "available", "issued", taken))
            missing -= taken
        if missing:
            held = account.buckets(wallet)["held"]
            raise _No("insufficient_units", -units, -units - missing, held)
        return account.write("adjust", at, wallet, units, moves, request_id=request_id)

    # ------------------------------------------------------------ units out

    def _work(
        self, account: Account, args: dict[str, Any], at: datetime, *, is_hold: bool
    ) -> tuple[Charge, datetime]:
        """Return the charge that a consume or hold asks for, priced, and when it happened."""
        effective_at = args.get("effective_at") or at
        if not at - account.late_usage <= effective_at <= at + account.early_usage:
            raise _No("invalid_input")
        self._check_feature(account, args.get("feature"))
        units = args.get("units")
        if units is None:
            units = self._priced(args["operation"], args.get("model"), args.get("meters"))
        charge = Charge(
            id=args["request_id"],
            seq=len(account.written) + 1,
            at=at,
            wallet=args.get("wallet", "credits"),
            operation=args.get("operation"),
            model=args.get("model"),
            tags=args.get("tags") or {},
            units=units,
            is_hold=is_hold,
            attributes=args.get("attributes"),
        )
        return charge, effective_at

    def _check_feature(self, account: Account, feature: str | None) -> None:
        """Refuse work whose feature no entitlement brings, and that is not there by default."""
        if feature is None:
            return
        value = account.brings(feature)
        if value is None and feature in self.products.features:
            value = self.products.features[feature].default
        if value is None or value is False or value == 0:
            raise _No("not_entitled")

    def _priced(self, operation: str, model: str | None, meters: object) -> Fraction:
        exact = self.price(operation, model, meters or {})  # type: ignore[arg-type]  # a mapping
        if exact is None:
            raise _No("unpriced")
        return Fraction(math.ceil(Fraction(exact) * 10**self.scale), 10**self.scale)

    def _short(self, account: Account, charge: Charge, needed: Fraction, at: datetime) -> _No:
        free = account.spendable(charge.wallet, charge.operation, at)
        return _No("insufficient_units", needed, free, account.buckets(charge.wallet)["held"])

    def _consume(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        charge, effective_at = self._work(account, args, at, is_hold=False)
        room = account.tightest(charge, at)
        held = account.buckets(charge.wallet)["held"]
        if room is not None and room < charge.units:
            raise _No("budget_exceeded", charge.units, room, held)
        drawn, missing = account.draw(charge.wallet, charge.operation, charge.units, at)
        if missing:
            raise self._short(account, charge, charge.units, at)
        account.charges[charge.id] = charge
        moves = [Move(charge.wallet, line, "available", "used", n, charge.id) for line, n in drawn]
        return account.write(
            "consume",
            at,
            charge.wallet,
            charge.units,
            moves,
            request_id=charge.id,
            effective_at=effective_at,
        )

    def _hold(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        life = args.get("expires_in") or HOLD_LIFE
        if life > HOLD_LIFE_MAX:
            raise _No("invalid_input")
        hold, effective_at = self._work(account, args, at, is_hold=True)
        floor = hold.units if args.get("floor") is None else args["floor"]
        needed = floor or hold.units
        room = account.tightest(hold, at)
        held = account.buckets(hold.wallet)["held"]
        units = hold.units
        if room is not None and room < units:
            if room < floor or room == 0:
                raise _No("budget_exceeded", needed, room, held)
            units = room
        drawn, missing = account.draw(hold.wallet, hold.operation, units, at)
        units -= missing
        if missing and (units < floor or units == 0):
            raise self._short(account, hold, needed, at)
        hold.units = units
        hold.deadline = at + life
        account.charges[hold.id] = hold
        moves = [Move(hold.wallet, line, "available", "held", n, hold.id) for line, n in drawn]
        return account.write(
            "hold",
            at,
            hold.wallet,
            units,
            moves,
            request_id=hold.id,
            effective_at=effective_at,
            deadline=hold.deadline,
        )

    def _open(self, account: Account, hold_id: str) -> Charge:
        """Return an open hold, or refuse as its state demands."""
        hold = account.charges.get(hold_id)
        if hold is None or not hold.is_hold:
            raise _No("hold_not_found")
        if hold.ending is not None:
            expired = hold.ending.kind == "hold_expired"
            raise _No("hold_expired" if expired else "hold_finalized")
        return hold

    def _extend(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        hold = self._open(account, args["hold_id"])
        if args["expires_in"] > HOLD_LIFE_MAX:
            raise _No("invalid_input")
        hold.deadline = max(hold.deadline, at + args["expires_in"])
        return account.write(
            "extend",
            at,
            hold.wallet,
            request_id=args["request_id"],
            ref=hold.id,
            deadline=hold.deadline,
        )

    def _mark_in_doubt(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        hold = self._open(account, args["hold_id"])
        life = args.get("deadline_in") or DOUBT_LIFE
        if life > DOUBT_LIFE_MAX:
            raise _No("invalid_input")
        hold.doubt = True
        hold.at_deadline = args.get("at_deadline", "release")
        hold.deadline = at + life
        held = sum(account.reserved(hold.id).values(), Fraction(0))
        return account.write(
            "in_doubt",
            at,
            hold.wallet,
            held,
            request_id=args["request_id"],
            ref=hold.id,
            deadline=hold.deadline,
        )

    def _release(self, account: Account, args: dict[str, Any], at: datetime) -> Written | Expected:
        hold = account.charges.get(args["hold_id"])
        if hold is not None and hold.ending is not None and hold.ending.kind == "release":
            return Expected(hold.ending, replayed=True)
        hold = self._open(account, args["hold_id"])
        moves = account.returns(hold, at)
        units = sum((move.units for move in moves), Fraction(0))
        hold.ending = account.write(
            "release", at, hold.wallet, units, moves, request_id=args["request_id"], ref=hold.id
        )
        return hold.ending

    def _settle(self, account: Account, args: dict[str, Any], at: datetime) -> Written | Expected:
        hold = account.charges.get(args["hold_id"])
        if hold is not None and hold.ending is not None:
            return self._settle_ended(account, hold, args, at)
        hold = self._open(account, args["hold_id"])
        held = sum(account.reserved(hold.id).values(), Fraction(0))
        units = self._to_settle(hold, args, held)
        above = args.get("above", "available")
        if units > held and above == "refuse":
            raise _No("settle_exceeds_hold", units, held, held)
        moves = []
        rest = min(units, held)
        for line, most in account.reserved(hold.id).items():
            taken = min(most, rest)
            rest -= taken
            if taken:
                moves.append(Move(hold.wallet, line, "held", "used", taken, hold.id))
            back = most - taken
            if back and args.get("final", True):
                home = account.home(line, at)
                moves.append(Move(hold.wallet, line, "held", home, back, hold.id))
        drawn, missing = account.draw(
            hold.wallet,
            hold.operation,
            max(units - held, Fraction(0)),
            at,
            owe=above == "overdraft",
        )
        moves += [Move(hold.wallet, line, "available", "used", n, hold.id) for line, n in drawn]
        written = account.write(
            "settle",
            at,
            hold.wallet,
            units - missing,
            moves,
            request_id=args["request_id"],
            ref=hold.id,
            shortfall=missing,
        )
        account.settles[args["request_id"]] = hold.id
        if args.get("final", True):
            hold.ending = written
            hold.asked = (units, _measures(args))
        return written

    def _to_settle(self, hold: Charge, args: dict[str, Any], held: Fraction) -> Fraction:
        """Return what a settle asks for: its units, its meters' price, or all that is held."""
        if args.get("units") is not None:
            return Fraction(args["units"])
        if _measures(args) is None:
            return held
        return self._priced(hold.operation or "", hold.model, args.get("meters"))

    def _settle_ended(
        self, account: Account, hold: Charge, args: dict[str, Any], at: datetime
    ) -> Written | Expected:
        assert hold.ending is not None
        if hold.ending.kind == "settle" and _same_figures(hold, args):
            return Expected(hold.ending, replayed=True)
        if hold.ending.kind != "hold_expired" or not account.late_settlement:
            self._open(account, hold.id)
        settled = sum(
            (w.units for w in account.written if w.kind == "settle" and w.ref == hold.id),
            Fraction(0),
        )
        once_held = max(hold.units - settled, Fraction(0))
        units = self._to_settle(hold, args, once_held)
        above = args.get("above", "available")
        if units > once_held and above == "refuse":
            raise _No("settle_exceeds_hold", units, once_held, once_held)
        owe = above == "overdraft"
        drawn, missing = account.draw(hold.wallet, hold.operation, units, at, owe=owe)
        if missing and above == "refuse":
            held = account.buckets(hold.wallet)["held"]
            raise _No("insufficient_units", units, units - missing, held)
        moves = [Move(hold.wallet, line, "available", "used", n, hold.id) for line, n in drawn]
        hold.asked = (units, _measures(args))
        hold.ending = account.write(
            "settle",
            at,
            hold.wallet,
            units - missing,
            moves,
            request_id=args["request_id"],
            ref=hold.id,
            shortfall=missing,
        )
        account.settles[args["request_id"]] = hold.id
        return hold.ending

    # ------------------------------------------------------------ units back

    def _refund(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        charge_id = account.settles.get(args["charge"], args["charge"])
        charge = account.charges.get(charge_id)
        ever = [w for w in account.written if w.ref == charge_id and w.kind == "settle"]
        if charge is None or (charge.is_hold and not ever):
            raise _No("charge_not_found")
        paid = account.paid(charge.id)
        left = sum(paid.values(), Fraction(0))
        units = left if args.get("units") is None else args["units"]
        if units > left or left == 0:
            raise _No("refund_exceeds_charge", units, left)
        moves: list[Move] = []
        opened: list[Lot] = []
        rest = units
        for line, most in reversed(paid.items()):
            back = min(most, rest)
            rest -= back
            if back:
                moves += self._give_back(account, charge, args, line, back, at, opened)
        for lot in opened:
            account.lots[lot.id] = lot
        return account.write(
            "refund", at, charge.wallet, units, moves, request_id=args["request_id"], ref=charge.id
        )

    def _give_back(
        self,
        account: Account,
        charge: Charge,
        args: dict[str, Any],
        line: str,
        units: Fraction,
        at: datetime,
        opened: list[Lot],
    ) -> list[Move]:
        """Return how units go back to the line that paid, or where the policy sends them."""

        def move(target: str) -> list[Move]:
            return [Move(charge.wallet, line, "used", target, units, charge.id)]

        lot = account.lots.get(line)
        if line == OVERDRAFT or lot is None:
            return move("available")
        if lot.voided:
            return move("issued")
        if not lot.over(at):
            return move("available")
        policy = args.get("expired", "expire")
        if policy == "expire":
            return move("expired")
        life = args.get("extend_by")
        number = f"~{args['request_id']}#{len(opened)}" if opened else args["request_id"]
        instead = Lot(
            id=number,
            wallet=lot.wallet,
            units=units,
            category="promo" if policy == "goodwill" else lot.category,
            priority=lot.priority,
            effective_at=at,
            expires_at=None if life is None else at + life,
            applies_to=lot.applies_to,
        )
        opened.append(instead)
        return [
            *move("issued"),
            Move(charge.wallet, instead.id, "issued", "available", units),
        ]

    # ------------------------------------------------------------ what may happen from now on

    def _freeze(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        account.status = "frozen"
        return account.write("freeze", at, "credits", request_id=args["request_id"])

    def _unfreeze(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        account.status = "open"
        return account.write("unfreeze", at, "credits", request_id=args["request_id"])

    def _close_account(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        account.status = "closed"
        account.series.clear()
        account.rights.clear()
        return account.write("close", at, "credits", request_id=args["request_id"])

    def _set_overdraft(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        wallet = args.get("wallet", "credits")
        account.limits[wallet] = args["limit"]
        return account.write("overdraft", at, wallet, request_id=args["request_id"])

    def _set_budget(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        """Set a cap; one of the same shape under the same name keeps what it counted."""
        wallet = args.get("wallet", "credits")
        written = account.write("budget", at, wallet, request_id=args["request_id"])
        cap = Cap(
            name=args["name"],
            cap=args["cap"],
            period=args.get("period", "month"),
            window=args.get("window"),
            match=args.get("match") or {},
            wallet=wallet,
            since=written.seq,
        )
        old = account.caps.get(cap.name)
        if old is not None:
            shapes = [(c.period, c.window, c.match, c.wallet) for c in (old, cap)]
            cap.since = old.since if shapes[0] == shapes[1] else cap.since
        account.caps[cap.name] = cap
        return written

    def _remove_budget(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        account.caps.pop(args["name"], None)
        return account.write("budget", at, "credits", request_id=args["request_id"])

    def _set_recurring(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        terms: dict[str, Any] = {
            "every": "month",
            "count": 1,
            "rollover_min": Fraction(0),
            "rollover_max": Fraction(0),
            "category": "plan",
            "wallet": "credits",
            "priority": 0,
            "applies_to": (),
            "ends_at": None,
        } | args
        if terms["rollover_min"] > terms["rollover_max"]:
            raise _No("invalid_input")
        old = account.series.get(args["name"])
        if old is not None and old.owner is not None:
            raise _No("invalid_input")
        series = Series(terms, 0)
        series.next = period_at(series, at, account.zone)
        if old is not None:
            series.current = old.current
            shape = ("anchor", "every", "count")
            if all(old.terms[key] == terms[key] for key in shape):
                series.next, series.until = old.next, old.until
        account.series[args["name"]] = series
        return account.write("recurring", at, terms["wallet"], request_id=args["request_id"])

    def _stop_recurring(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        series = account.series.pop(args["name"], None)
        if series is None:
            raise _No("invalid_input")
        wallet = str(series.terms["wallet"])
        return account.write("recurring", at, wallet, request_id=args["request_id"])

    def _set_alert(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        wallet = args.get("wallet", "credits")
        account.warnings.pop(args["name"], None)
        if args["on"] == "expiring":
            account.warnings[args["name"]] = (wallet, args["threshold"])
        return account.write("alert", at, wallet, request_id=args["request_id"])

    def _remove_alert(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        account.warnings.pop(args["name"], None)
        return account.write("alert", at, "credits", request_id=args["request_id"])

    # ------------------------------------------------------------ what is sold

    def _buy(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        name, quantity = args["product"], args.get("quantity", 1)
        pack, timed = self.products.packs.get(name), self.products.passes.get(name)
        if pack is not None:
            life = None if pack.expires is None else timedelta(microseconds=pack.expires)
            lot = Lot(
                id=args["request_id"],
                wallet=pack.wallet,
                units=Fraction(pack.units) * quantity,
                category=pack.category,
                priority=pack.priority,
                effective_at=at,
                expires_at=None if life is None else at + life,
                applies_to=pack.applies_to,
            )
            return self._bring(account, lot, at)
        if timed is None:
            raise _No("invalid_input")
        right = account.rights.get(name)
        if right is not None and right.kind != "time_pass":
            raise _No("invalid_input")
        lasts = timedelta(microseconds=timed.lasts) * quantity
        begins = at if right is None else right.ends_at
        bought = Right(
            name=name,
            kind="time_pass",
            status="active",
            brings=_brought(name, dict(timed.features), [], local(at, account.zone)),
            starts_at=at if right is None else right.starts_at,
            ends_at=None if begins is None else begins + lasts,
        )
        if right is not None:
            bought.brings["anchor"] = right.brings["anchor"]
        return self._stands(account, bought, args, at)

    def _bring(self, account: Account, lot: Lot, at: datetime) -> Written:
        self._check_size(account, lot)
        moves = account.issue(lot)
        account.lots[lot.id] = lot
        return account.write("grant", at, lot.wallet, lot.units, moves, request_id=lot.id)

    def _redeem(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        coupon = self.products.coupons.get(args["coupon"])
        if coupon is None:
            raise _No("invalid_input")
        if account.redeemed.count(args["coupon"]) >= coupon.most:
            raise _No("coupon_used")
        life = None if coupon.expires is None else timedelta(microseconds=coupon.expires)
        lot = Lot(
            id=args["request_id"],
            wallet=coupon.wallet,
            units=Fraction(coupon.units),
            category="promo",
            priority=coupon.priority,
            effective_at=at,
            expires_at=None if life is None else at + life,
            applies_to=coupon.applies_to,
        )
        written = self._bring(account, lot, at)
        account.redeemed.append(args["coupon"])
        return written

    def _subscribe(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        plan = self.products.plans.get(args["plan"])
        if plan is None:
            raise _No("invalid_input")
        grants = [
            {
                "name": one.name or one.wallet,
                "units": Fraction(one.units),
                "every": one.every,
                "count": one.count,
                "rollover_min": Fraction(one.rollover_min),
                "rollover_max": Fraction(one.rollover_max),
                "wallet": one.wallet,
                "priority": one.priority,
                "applies_to": one.applies_to,
            }
            for one in plan.grants
        ]
        brings = _brought(args["plan"], dict(plan.features), grants, None)
        brings |= {"every": plan.every, "count": plan.count, "sold": True}
        name = args.get("name", "subscription")
        ends = args.get("trial_ends_at")
        once = args["plan"] not in account.tried or plan.trial_again
        new = name not in account.rights and ends is None
        if new and once and args.get("trial", True) and plan.trial:
            ends = (args.get("started_at") or at) + timedelta(microseconds=plan.trial)
        args = {**args, "name": name, "kind": "subscription", "trial_ends_at": ends}
        return self._put(account, args, brings, at)

    def _entitle(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        grants = [
            {
                "name": one.get("name", one.get("wallet", "credits")),
                "units": Fraction(one["units"]),
                "every": one.get("every", "month"),
                "count": one.get("count", 1),
                "rollover_min": Fraction(one.get("rollover_min", 0)),
                "rollover_max": Fraction(one.get("rollover_max", 0)),
                "wallet": one.get("wallet", "credits"),
                "priority": one.get("priority", 0),
                "applies_to": tuple(one.get("applies_to", ())),
            }
            for one in args.get("grants", ())
        ]
        features = args.get("features")
        if features is None:
            features = {} if grants else {args["name"]: True}
        brings = _brought(args.get("product"), features, grants, None)
        brings |= {"every": args.get("every", "month"), "count": args.get("count", 1)}
        args = {"kind": "feature", **args}
        if "lasts" in args:
            right = account.rights.get(args["name"])
            begins = at if right is None else right.ends_at
            if begins is not None:
                args["ends_at"] = begins + args["lasts"]
        if "trial_ends_at" in args:
            args.setdefault("status", "trialing")
        return self._put(account, args, brings, at)

    def _put(
        self, account: Account, args: dict[str, Any], brings: dict[str, object], at: datetime
    ) -> Written:
        """Begin an entitlement, or put the one there is on other terms, at once or at the end."""
        right = account.rights.get(args["name"])
        started = args.get("started_at") or at
        if started > at and not (right is not None and args.get("when") == "period_end"):
            raise _No("invalid_input")
        if right is None:
            trial = args.get("trial_ends_at")
            brings["anchor"] = local(started, account.zone)
            status = args.get("status") or ("trialing" if trial else "active")
            fresh = Right(args["name"], args["kind"], status, brings, started)
            fresh.trial_ends_at = trial if status == "trialing" else None
            return self._stands(account, _ending(fresh, args), args, at)
        moved = copy.copy(right)
        moved.status = args.get("status") or right.status
        trial = args.get("trial_ends_at") or right.trial_ends_at
        moved.trial_ends_at = trial if moved.status == "trialing" else None
        moved.then = moved.then_at = None
        _ending(moved, args)
        if args.get("when") == "period_end":
            moved.then, moved.then_at = brings, account.period_end(right, at)
            if moved.ends_at is not None and moved.ends_at <= moved.then_at:
                raise _No("invalid_input")
            same = all(brings[key] == right.brings[key] for key in ("every", "count"))
            anchor = right.brings["anchor"]
            brings["anchor"] = anchor if same else local(moved.then_at, account.zone)
            return self._stands(account, moved, args, at)
        moved.kind = args["kind"]
        anew = brings["product"] != right.brings["product"] or args.get("started_at")
        brings["anchor"] = local(started, account.zone) if anew else right.brings["anchor"]
        moved.brings = brings
        return self._stands(account, moved, args, at)

    def _stands(
        self, account: Account, right: Right, args: dict[str, Any], at: datetime
    ) -> Written:
        """Write that an entitlement stands so from now on."""
        if right.ends_at is not None and right.ends_at <= at:
            raise _No("invalid_input")
        old = account.rights.get(right.name)
        account.rights[right.name] = right
        if right.status == "trialing" and "sold" in right.brings:
            account.tried.add(right.brings["product"])
        anew = old is not None and old.brings["product"] != right.brings["product"]
        account.run_grants(right, at, anew=anew)
        ref = f"~{right.name}/entitlement"
        return account.write(
            "entitlement", at, "credits", request_id=args["request_id"], ref=ref, right=right
        )

    def _change_entitlement(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        right = account.rights.get(args["name"])
        if right is None:
            raise _No("entitlement_not_found")
        changed = copy.copy(right)
        changed.status = args.get("status") or right.status
        trial = args.get("trial_ends_at") or right.trial_ends_at
        changed.trial_ends_at = trial if changed.status == "trialing" else None
        return self._stands(account, _ending(changed, args), args, at)

    def _end_entitlement(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        right = account.rights.get(args["name"])
        if right is None:
            raise _No("entitlement_not_found")
        if args.get("when") == "period_end":
            ending = copy.copy(right)
            end = account.period_end(right, at)
            ending.ends_at = end if right.ends_at is None else min(end, right.ends_at)
            ending.then = ending.then_at = None
            return self._stands(account, ending, args, at)
        account.drop(right.name)
        return account.write(
            "entitlement_ended",
            at,
            "credits",
            request_id=args["request_id"],
            ref=f"~{right.name}/entitlement",
            right=right,
        )

    # ------------------------------------------------------------ settings

    def _configure(self, account: Account, args: dict[str, Any], at: datetime) -> Written:
        account.zone = args.get("time_zone") or account.zone
        if args.get("late_settlement") is not None:
            account.late_settlement = args["late_settlement"]
        account.late_usage = args.get("late_usage") or account.late_usage
        account.early_usage = args.get("early_usage") or account.early_usage
        return account.write("settings", at, "credits", request_id=args["request_id"])


# ---------------------------------------------------------------- what was asked


_UNITS = ("units", "floor", "limit", "cap", "rollover_min", "rollover_max")
_SPANS = ("expires_in", "extend_by", "deadline_in", "window", "lasts", "late_usage", "early_usage")
_TIMES = (
    "effective_at",
    "ends_at",
    "expires_at",
    "anchor",
    "started_at",
    "trial_ends_at",
    "paid_until",
)
_SIZES = {"w": "weeks", "d": "days", "h": "hours", "m": "minutes", "s": "seconds"}


def _plain(call: Call) -> Call:
    """Return the call with exact fractions, spans and times, and without what says nothing."""
    args: dict[str, Any] = {}
    for name, value in call.args.items():
        if value is None:
            continue
        if name in _UNITS:
            args[name] = Fraction(value)
        elif name in _SPANS:
            args[name] = _span(value)
        elif name in _TIMES and value != "never":
            args[name] = _time(value)
            if name == "anchor" and not isinstance(args[name], datetime):
                args[name] = datetime.combine(args[name], time.min)
        else:
            args[name] = value
    verb = call.verb
    if verb == "resolve":
        verb = "settle" if args.pop("outcome") == "done" else "release"
    return Call(verb, call.account, args)


def _span(value: timedelta | str) -> timedelta:
    if isinstance(value, timedelta):
        return value
    parts = re.findall(r"(\d+)([wdhms])", value)
    return timedelta(**{_SIZES[unit]: int(number) for number, unit in parts})


def _time(value: object) -> datetime | date:
    if isinstance(value, str):
        value = datetime.fromisoformat(value) if "T" in value else date.fromisoformat(value)
    assert isinstance(value, date)
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    return value


def _brought(
    product: str | None,
    features: dict[str, Any],
    grants: list[dict[str, Any]],
    anchor: datetime | None,
) -> dict[str, object]:
    """Return what an entitlement brings, with a period of a month."""
    return {
        "product": product,
        "features": features,
        "grants": grants,
        "every": "month",
        "count": 1,
        "anchor": anchor,
    }


def _ending(right: Right, args: dict[str, Any]) -> Right:
    """Set the ends that were asked for; "never" takes one back."""
    for name in ("ends_at", "paid_until"):
        if name in args:
            setattr(right, name, None if args[name] == "never" else args[name])
    return right


def _asked(call: Call) -> object:
    """Return what two calls must have in common to be the same request."""
    args = {name: value for name, value in call.args.items() if name not in _BESIDE}
    return call.verb, sorted((name, repr(value)) for name, value in args.items())


def _measures(args: dict[str, Any]) -> object:
    if args.get("meters") is None and args.get("attributes") is None:
        return None
    return args.get("meters"), args.get("attributes")


def _same_figures(hold: Charge, args: dict[str, Any]) -> bool:
    """Return whether a settle asks again for what the one that ended the hold had asked for."""
    assert hold.ending is not None
    units, measures = hold.asked
    if not args.get("final", True):
        return False
    if args.get("units") is not None:
        return bool(args["units"] == units)
    if _measures(args) is not None:
        return measures == _measures(args)
    came_back = any(move.target != "used" for move in hold.ending.moves)
    return measures is None and not came_back and not hold.ending.shortfall


# ---------------------------------------------------------------- comparing


def compare(expected: Expected, answer: object) -> list[str]:
    """Return where an answer (a receipt or an exception) differs from what the rules demand."""
    code = getattr(answer, "code", None) if isinstance(answer, Exception) else None
    if isinstance(answer, Exception) and code is None:
        return [f"{answer!r} where only an answer may be"]
    if code != expected.code:
        wanted = expected.code or f"an entry {expected.written}"
        return [f"expected {wanted}, answered {code or answer}"]
    pairs: dict[str, tuple[object, object]] = {}
    if code in ("idempotency_conflict", "invalid_input"):
        return []
    pairs["replayed"] = expected.replayed, answer.replayed  # type: ignore[attr-defined]
    if code is not None:
        for name in ("seq", "needed", "available", "held"):
            pairs[name] = getattr(expected, name), _exact(getattr(answer, name))
    else:
        assert expected.written is not None
        pairs |= entry_pairs(expected.written, answer)
    return [
        f"{name}: expected {wanted}, answered {got}"
        for name, (wanted, got) in pairs.items()
        if wanted != got
    ]


def entry_pairs(wanted: Written, receipt: Any) -> dict[str, tuple[object, object]]:
    """Return what an entry should say beside what a receipt says."""
    entry = receipt.entry
    known = [(receipt.units, entry.units), (receipt.issued, entry.issued)]
    one = next((Fraction(exact) / count for exact, count in known if count), Fraction(1))
    moves = {
        "wanted": sorted((m.line, m.source, m.target, m.units) for m in wanted.moves),
        "got": sorted((p.line, p.source, p.target, p.units * one) for p in entry.postings),
    }
    pairs: dict[str, tuple[object, object]] = {
        name: (getattr(wanted, name), _exact(getattr(receipt, name)))
        for name in ("seq", "kind", "wallet", "units", "shortfall", "ref", "request_id")
    }
    pairs |= {
        name: (units, _exact(getattr(receipt, name))) for name, units in wanted.buckets.items()
    }
    pairs["moves"] = moves["wanted"], moves["got"]
    pairs["recorded_at"] = wanted.at, receipt.recorded_at
    pairs["effective_at"] = wanted.effective_at, receipt.effective_at
    if wanted.right is not None:
        shown = receipt.entitlement or {}
        pairs |= {
            f"entitlement.{name}": (value, _stated(shown, name))
            for name, value in wanted.right.items()
        }
    if wanted.deadline is not None:
        pairs["deadline"] = wanted.deadline, receipt.expires_at
    return pairs


def _stated(shown: Mapping[str, Any], name: str) -> object:
    """Return what a receipt's entitlement says, in the model's own terms."""
    value = shown.get(name)
    if name == "next":
        return value and value["product"]
    if name == "anchor" or (name.endswith(("_at", "_until")) and value is not None):
        return datetime.fromisoformat(str(value))
    return value


def _exact(value: object) -> object:
    return Fraction(value) if isinstance(value, Decimal) else value
