"""A learner beside a robot, without ROS: attempts come in, training is begun, its result judged and offered.

Everything that takes time runs in processes of idle priority (`background`): the intake of bags, training
(`improve`), evaluation (`./recap eval`) and judging. `step` looks after them and returns at once. What was
decided stands in the run's log (`offers`), so that a learner which is killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recap_learner.background import Background
from recap_learner.lesson import next_iteration
from recap_learner.offers import Offers, Standing
from recap_learner.training.logs import EventReader, Point, events_in
from recap_learner.watching import DataState, Verdict, is_due
from recap_policy.description import CheckpointError, read

OFFER_SEED = 70_000  # first start state of evaluations before an offer: not those of `./recap eval`
RETRIES = 2  # of a process that was killed
AGAIN_S = 5.0  # until the intake is begun again
EPISODES, EVALUATIONS = "episodes", "offers"  # in the run's folder


@dataclass(frozen=True)
class Settings:
    """run: the learning run, None: only what is asked for by name; bags: folder to watch, None: none; store:
    of their episodes; checkpoint: what the robot begins with; train_after: new attempts after which training
    begins by itself, 0: never; concurrent: train whenever there is a new attempt; start, fresh_share,
    value_steps, policy_steps: of `improve`, 0 steps: its default; evaluations: attempts of each policy before
    an offer, 0: none, made by the module `evaluator`; cores: that all of it may use, 0: all."""

    run: Path | None = None
    bags: Path | None = None
    store: Path | None = None
    checkpoint: Path | None = None
    station: str = "aloha"
    task: str = "handover_insert"
    task_name: str = ""
    rate_hz: float = 50.0
    settle_s: float = 30.0
    train_after: int = 0
    concurrent: bool = False
    start: str = "pretrained"
    fresh_share: float = 0.0
    value_steps: int = 0
    policy_steps: int = 0
    evaluations: int = 0
    evaluator: str = "recap"
    cores: int = 1


@dataclass
class Work:
    """What is under way. kind: "training", "evaluating" or "judging"."""

    kind: str
    process: Background
    note: str = ""
    progress: float = 0.0
    checkpoint: str = ""
    error: str = ""
    verdict: Verdict | None = None

    def listen(self) -> bool:
        """Take in what it said → whether it has ended."""
        ended = self.process.ended()
        for said in self.process.said():
            self.progress = float(said.get("progress", self.progress))
            self.note = str(said.get("note", self.note))
            self.checkpoint = str(said.get("checkpoint", self.checkpoint))
            self.error = str(said.get("error", self.error))
            if "reasons" in said:
                self.verdict = Verdict(tuple(said["reasons"]), tuple(said["notes"]))
        return ended


class Learner:
    """Not thread-safe; `step` is to be called a few times a second, in a thread that lasts."""

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError where the run's log cannot be read."""
        self.settings = settings
        self.run = settings.run
        self.offers = Offers(settings.run) if settings.run else None
        self.data = DataState()
        self.work: Work | None = None
        self.in_use = ""  # identity of the policy that commands, as it is heard
        self.trouble = ""  # of the intake
        self.notes: tuple[str, ...] = ()  # of the last verdict
        self._intake: Background | None = None
        self._intake_at_s = 0.0
        self._loaded = ""  # checkpoint that the policy node said it has
        self._killed = 0  # how often the work was, in a row
        self._evaluated: str | None = None  # why the checkpoint to judge could not be; None: not tried
        self._curves: dict[Path, EventReader] = {}

    # --- what a person asks -------------------------------------------------------------------------

    def ask(self, run: str, bags: Sequence[str]) -> str:
        """Begin to train → in words. run: "" for the settings' own. Raises ValueError where it cannot."""
        if self.work is not None:
            raise ValueError(f"{self.work.kind} is already under way")
        folder = Path(run).expanduser().absolute() if run else self.settings.run
        if folder is None:
            raise ValueError("run is empty, and the learner has none of its own: wanted a run's folder")
        if folder != self.run or self.offers is None:
            self.run, self.offers = folder, Offers(folder)
        self._begin_training(self.offers, list(bags))
        return "training started; see learner/state"

    def cancel(self) -> None:
        """End what is under way. What it had saved is there for the next training."""
        if self.work is not None and self.offers is not None:
            self.work.process.stop()
            training, self.work = self.work.kind == "training", None
            if training:
                self.offers.add("ended", checkpoint="", error="stopped by a person")
            else:
                self._judged(self.offers, Verdict(("its evaluation was stopped by a person",)))

    def decide(self, checkpoint: str, accept: bool, who: str, why: str) -> str:
        """A person's word on a checkpoint → in words. Raises ValueError as `Offers.decide`."""
        if self.offers is None:
            raise ValueError("the learner has no run")
        found = self.offers.decide(checkpoint, accept, who, why)
        return f"{found} {'will be offered' if accept else 'is not offered'}: {who.strip()}, {why.strip()}"

    def offered(self, checkpoint: str) -> None:
        """The policy node has been asked to load a checkpoint."""
        if self.offers is not None:
            self.offers.add("offered", checkpoint=checkpoint)

    def answered(self, checkpoint: str, loaded: bool, message: str) -> None:
        """The policy node has answered."""
        if self.offers is not None:
            self.offers.add("answered", checkpoint=checkpoint, loaded=loaded, message=message)
        if loaded:
            self._loaded = checkpoint

    def close(self) -> None:
        """End all processes. The next learner goes on where they were."""
        for process in (self._intake, self.work.process if self.work else None):
            if process is not None:
                process.stop()
        self._intake = self.work = None

    # --- what stands --------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        return self.offers.now if self.offers else Standing()

    @property
    def current(self) -> str:
        """Folder of the policy in use; "" where it is not known."""
        first = str(self.settings.checkpoint or "")
        if not self.in_use:
            return self._loaded or first
        trained = sorted(map(str, self.run.glob("iteration_*/policy"))) if self.run else []
        known = [self.standing.loaded, first, *reversed(trained)]
        return next((folder for folder in known if folder and _identity(folder) == self.in_use), "")

    def curves(self) -> list[tuple[str, Point]]:
        """What the training under way has logged since the last call: model, step and values."""
        found = []
        for path, reader in self._curves.items():
            try:
                points = reader.read()
            except (OSError, ValueError):  # removed, or damaged: a picture less
                continue
            workbench = path.parents[1]
            model = f"{workbench.parents[1].name}/{workbench.name}"
            found += [(model, point) for point in points]
        return found

    # --- a few times a second -----------------------------------------------------------------------

    def step(self, now_s: float) -> None:
        """now_s: of a steady clock. Raises OSError where the run's log cannot be written."""
        self._take_in(now_s)
        if self.offers is None:
            return
        if self.work is None:
            self._next(self.offers)
        else:
            if self.work.kind == "training" and self.run is not None:
                self._find_curves(self.run)
            if self.work.listen():
                self._ended(self.offers, self.work)

    def _take_in(self, now_s: float) -> None:
        how = self.settings
        if how.bags is None or how.store is None:
            return
        if self._intake is None and now_s >= self._intake_at_s:
            words = ["--bags", str(how.bags), "--store", str(how.store), "--rate-hz", str(how.rate_hz)]
            words += ["--settle-s", str(how.settle_s)]
            words += ["--run", str(how.run), "--task", how.task_name] if how.run else []
            self._intake = Background("recap_learner.intake", words, how.cores)
        if self._intake is None:
            return
        ended = self._intake.ended()
        for said in self._intake.said():
            self.trouble = str(said.get("error", ""))
            if "data" in said:
                self.data = DataState.from_dict(said["data"])
        if ended:
            self.trouble = f"the intake of bags {self._intake.end}; it is begun again"
            self._intake, self._intake_at_s = None, now_s + AGAIN_S

    def _next(self, offers: Offers) -> None:
        """What is to be done now that nothing is under way."""
        how, now = self.settings, offers.now
        if now.asked is not None:
            self._train(now.asked)
        elif now.to_judge:
            self._judge(offers, now.to_judge)
        elif self.run == how.run and is_due(self.data, how.train_after, how.concurrent):
            self._begin_training(offers, [])

    def _begin_training(self, offers: Offers, bags: list[str]) -> None:
        converted = not bags and self.run is not None and self.settings.store == self.run / EPISODES
        offers.add("asked", bags=bags, converted=converted and self.settings.bags is not None)
        self.data = replace(self.data, fresh=0)  # until the intake has counted again
        self._killed = 0
        assert offers.now.asked is not None
        self._train(offers.now.asked)

    def _train(self, asked: Any) -> None:
        how = self.settings
        words = ["--run", str(self.run), "--start", how.start]
        for option, steps in (("--value-steps", how.value_steps), ("--policy-steps", how.policy_steps)):
            words += [option, str(steps)] if steps else []
        if asked.get("converted"):
            words += ["--converted", "--task", how.task_name]
            words += ["--fresh-share", str(how.fresh_share)] if how.fresh_share else []
        elif asked["bags"]:
            words += ["--bags", *asked["bags"]]
        self._curves = {}
        self.work = Work("training", Background("recap_learner.improve", words, how.cores), "starting")

    def _judge(self, offers: Offers, checkpoint: str) -> None:
        how, current = self.settings, self.current
        evaluate = how.evaluations > 0 and current not in ("", checkpoint)
        out = self.run / EVALUATIONS if self.run else Path()
        if evaluate and self._evaluated is None:
            words = ["eval", current, checkpoint, "--attempts", str(how.evaluations), "--json"]
            words += ["--seed", str(OFFER_SEED), "--workers", str(max(1, how.cores)), "--out", str(out)]
            words += ["--station", how.station, "--task", how.task]
            note = f"{how.evaluations} attempts each, against {current}"
            self.work = Work("evaluating", Background(how.evaluator, words, how.cores), note)
            return
        if self._evaluated:
            self._judged(offers, Verdict((f"it could not be evaluated: {self._evaluated}",)))
            return
        words = ["--policy", checkpoint]
        words += ["--current", current] if current else []
        words += ["--before", offers.now.before] if offers.now.before else []
        words += ["--evaluations", str(out)] if evaluate else []
        words += ["--store", str(how.store)] if how.store and how.store.is_dir() else []
        self.work = Work("judging", Background("recap_learner.judging", words, how.cores), "gates")

    def _ended(self, offers: Offers, work: Work) -> None:
        """The work under way is over: what came of it."""
        self.work = None
        done = work.process.process.returncode == 0
        if work.process.process.returncode < 0 and not work.error and self._killed < RETRIES:
            self._killed += 1  # `_next` begins it again, and it goes on from its last save
            return
        self._killed = 0
        error = "" if done else work.error or f"{work.kind} {work.process.end}"
        if work.kind == "training":
            offers.add("ended", checkpoint="" if error else work.checkpoint, error=error)
        elif work.kind == "evaluating":
            self._evaluated = error
        else:
            verdict = work.verdict or Verdict((f"it could not be judged: {error}",))
            self._judged(offers, verdict)

    def _judged(self, offers: Offers, verdict: Verdict) -> None:
        self._evaluated, self.notes = None, verdict.notes
        checkpoint = offers.now.to_judge
        offers.add("judged", checkpoint=checkpoint, reasons=verdict.reasons, notes=verdict.notes)

    def _find_curves(self, run: Path) -> None:
        folder = run / f"iteration_{next_iteration(run):02d}" / "training"
        for workbench in folder.glob("*"):
            for path in events_in(workbench):
                self._curves.setdefault(path, EventReader(path))


def _identity(checkpoint: str) -> str:
    try:
        return read(checkpoint).identity
    except CheckpointError:
        return ""
