"""How the expert folds a cloth in four, along its length, and lays it on the mat.

With both hands it brings the near corners over to the far ones, then the middle over to the far edge,
then the strip by its ends to the mat. What has gone wrong, as far as it looks, it does again.

Its mistakes: closing beside the cloth (seen at once); a grip on the very hem, out of which the cloth
slips on the way; letting go too early, so that an edge lies short of its place; laying it down askew. The
last two it often does not notice: they show when the strip lies on the mat and is not neat.
"""

from __future__ import annotations

import math

import numpy as np

from recap_station.contract import Station
from recap_station.sim.cloth.mesh import RADIUS, N
from recap_station.sim.cloth.scene import MAT, MID, NEAT, ClothScene
from recap_station.sim.cloth.sheet import PICK_Z
from recap_station.sim.cloth.steps import ClothSteps, Hands, Where
from recap_station.sim.script import up
from recap_station.sim.steps import LOWEST
from recap_station.sim.styles import Style

CARRY_Z = (0.10, 0.06, 0.05)  # above the first fold, the second, the table
PARK = np.array([-0.26, -0.06, 0.16]), np.array([0.26, -0.06, 0.16])
INSIDE = 0.006  # from a corner towards the cloth's middle, where it is taken, m
FOLD_PACE = 0.5  # a cloth that is swung round faster lies down askew
UNNOTICED = 0.4  # of the mistakes of its kind, how many are made where nothing shows them yet

COLUMN = (0, -1)  # of the vertices that a hand works

Index = tuple[int | slice, int | slice]
Moves = dict[int, tuple[Index, Where]]  # by arm: vertices, and where they go


class ClothScript(ClothSteps):
    PAUSE = 3.0

    def __init__(self, station: Station, style: Style, seed: int) -> None:
        super().__init__(station, style, seed)
        self._believes: set[str] = set()  # folds it has made, and does not look at again

    # ---- what it looks at --------------------------------------------------------------------------

    def start(self, scene: ClothScene) -> None:
        self._needs = ()
        held = tuple(arm for arm in (0, 1) if scene.holds[arm])
        if len(held) == 2 and self._goes_on(scene):
            return
        if held:
            self._put_down(scene, held)
        else:
            self.next_fold(scene)

    def _goes_on(self, scene: ClothScene) -> bool:
        """Go on with what somebody else has in both hands, if it is clear what he was about."""
        tips = np.stack([tip[:2] for tip in scene.tips])
        ends = scene.vertices[[0, -1], :, :2]
        if scene.quartered:
            self._to_mat(scene)
            return True
        row = min((0, MID, N - 1), key=lambda row: float(np.linalg.norm(ends[:, row] - tips, axis=1).max()))
        if np.linalg.norm(ends[:, row] - tips, axis=1).max() > 0.03 or (row == MID) != scene.halved:
            return False
        if row == MID:
            self._fold_again(scene)
        else:
            self._fold_half(scene, row)
        return True

    def next_fold(self, scene: ClothScene) -> None:
        way = scene.right_way or "way" in self._believes
        halved = scene.halved or "half" in self._believes
        again = scene.quartered or "again" in self._believes
        if scene.over and not (halved and way and again):
            self._unfold_again(scene)
        elif halved and not way:
            self._unfold_half(scene)
        elif not halved:
            self._fold_half(scene)
        elif not again:
            self._fold_again(scene)
        elif not scene.on_mat:
            self._to_mat(scene)
        else:
            self._park((0, 1))
            self._enter(self._rest, hesitate=False)

    def _rest(self, scene: ClothScene) -> None:
        if self._since > 1.0:
            self._believes.clear()
            self._enter(self.start)

    def _park(self, arms: tuple[int, ...]) -> None:
        """Hands that are not needed go out of the way."""
        for arm in arms:
            self.hand(arm).go(PARK[arm], 0.0, 0.8 * self._speed)

    # ---- grips -------------------------------------------------------------------------------------

    def _at(self, index: Index, top: bool = False) -> Where:
        """A tip on the mean of these vertices, a little towards the cloth's middle; `top`: so high that it
        takes nothing that lies below them."""

        def spot(s: ClothScene) -> np.ndarray:
            point = s.vertices[index].reshape(-1, 3).mean(axis=0)
            towards = (s.middle - point)[:2]
            inside = INSIDE * towards / max(float(np.linalg.norm(towards)), 1e-6)
            return np.array([*(point[:2] + inside), PICK_Z + 0.004 + point[2] if top else LOWEST])

        return spot

    def _grip_error(self, scene: ClothScene, index: Index) -> np.ndarray:
        """(3,) [m]: none, or a grip that takes the hem only, or nothing."""
        if not self._mistake("grasp", self.style.bad_grasp):
            return np.zeros(3)
        out = (scene.vertices[index].reshape(-1, 3).mean(axis=0) - scene.middle)[:2]
        out /= max(float(np.linalg.norm(out)), 1e-6)
        beside = self._rng.random() < 0.35
        return np.append(self._rng.uniform(*((0.032, 0.045) if beside else (0.020, 0.024))) * out, 0.0)

    def _lay_error(self, kind: str) -> np.ndarray:
        """(3,) [m] by which something is laid beside its place."""
        if not self._mistake(kind, self.style.misaligned):
            return np.zeros(3)
        angle = self._rng.uniform(-math.pi, math.pi)
        far = self._rng.uniform(1.4 * NEAT, 2.0 * NEAT)
        return far * np.array([math.cos(angle), math.sin(angle), 0.0])

    def _onto(self, arm: int, index: Index, goal: Where, z: float, part: float = 1.0) -> Where:
        """Where a hand must go that holds these vertices, for them to be `part` of the way at the goal."""

        def spot(s: ClothScene) -> np.ndarray:
            point = s.vertices[index].reshape(-1, 3).mean(axis=0)
            tip = s.tips[arm] + part * (goal(s) - point)
            return np.array([tip[0], tip[1], z])

        return spot

    # ---- folds -------------------------------------------------------------------------------------

    def _fold(
        self,
        about: str,
        scene: ClothScene,
        moves: Moves,
        high: float,
        fold: str = "",
        top: bool = False,
        pace: float = FOLD_PACE,
        crease: np.ndarray | None = None,
    ) -> None:
        """Take vertices, swing them over, lay them down at their goals. `fold`: what it then believes to
        have done, if it went wrong without its noticing; `top`: take the uppermost layer only; `crease`
        (3,) [m]: from the goals to where the cloth shall bend, above which the way leads, else half way."""
        arms = tuple(moves)
        far = max(
            float(np.linalg.norm(goal(scene) - scene.vertices[i].reshape(-1, 3).mean(axis=0)))
            for i, goal in moves.values()
        )
        if crease is None:
            high = min(high, 0.03 + 0.4 * far)
        early = self._mistake("release", self.style.early_release)
        short = self._rng.uniform(0.70, 0.85) if early else 1.0
        error = self._lay_error(fold) if fold else np.zeros(3)
        sees = self._rng.random() > UNNOTICED

        def spots(s: ClothScene, z: float | None, part: float, error: np.ndarray) -> Hands:
            """z: of the tip; None: so low that what it holds is on the table."""
            found: Hands = {}
            for arm, (index, goal) in moves.items():
                held_z = float(s.vertices[index].reshape(-1, 3)[:, 2].max())
                low = s.tips[arm][2] - held_z + 2 * RADIUS
                spot = self._onto(arm, index, goal, max(low, LOWEST + 0.003) if z is None else z, part)
                found[arm] = fixed(spot(s) + error)
            return found

        def over(s: ClothScene) -> None:
            part, beside = (0.5, np.zeros(3)) if crease is None else (1.0, crease)
            self.bring(f"{about} over", spots(s, high, part, beside), beyond, pace, near=0.1)

        def beyond(s: ClothScene) -> None:
            part = 1 - 2 * (1 - short)  # of what is left
            after = release if early else lay
            self.bring(f"{about} over", spots(s, 0.5 * high, part, 0.5 * error), after, pace, near=0.1)

        def lay(s: ClothScene) -> None:
            self.bring(f"{about} down", spots(s, None, 1.0, error), release, pace, near=0.02)

        def release(s: ClothScene) -> None:
            self.let_go(about, arms, done)

        def done(s: ClothScene) -> None:
            if fold and not sees and (early or error.any()):
                self._believes.add(fold)
            self.start(s)

        if all(scene.holds[arm] for arm in arms):
            self._needs = arms
            lay(scene) if far < 0.06 else over(scene)
            return
        self._park(tuple(arm for arm in (0, 1) if arm not in moves))
        takes = {arm: self._at(index, top) for arm, (index, _) in moves.items()}
        misses = {arm: self._grip_error(scene, index) for arm, (index, _) in moves.items()}
        self.take(about, takes, over, misses)

    def _row_over(
        self, about: str, scene: ClothScene, row: int, onto: int, high: float, fold: str, top: bool
    ) -> None:
        """The ends of a row onto those of another. An edge that lies short is not dragged there, which would
        pull the whole cloth along, but swung anew round the right crease."""
        moves: Moves = {arm: ((c, row), _vertex(c, onto)) for arm, c in enumerate(COLUMN)}
        v, middle = scene.vertices, (row + onto % N) // 2
        back = (v[:, middle] - v[:, onto]).mean(axis=0) * (1, 1, 0)
        back *= abs(middle - onto % N) / (N - 1) * _length(scene) / max(float(np.linalg.norm(back)), 1e-3)
        self._fold(about, scene, moves, high, fold, top, crease=back)

    def _fold_half(self, scene: ClothScene, held: int | None = None) -> None:
        """The near edge over to the far one, or the other way round if the print wants it; the row `held` if
        the hands have it already."""
        if held is not None:
            near_moves = held == 0
        elif scene.half_errors.min() < 0.5 * _length(scene):
            near_moves = scene.near_on_top
        else:
            near_moves = scene.print_row is None or scene.print_row < MID
            if scene.print_row is not None and self._mistake("way", self.style.misaligned):
                near_moves = not near_moves
                self._believes.add("way")
        row, onto = (0, -1) if near_moves else (-1, 0)
        about = "near edge" if near_moves else "far edge"
        lies_on_itself = bool(scene.half_errors.min() < 0.9 * _length(scene))
        self._row_over(about, scene, row, onto, CARRY_Z[0], "half", top=lies_on_itself)

    def _fold_again(self, scene: ClothScene) -> None:
        lies_on_itself = bool(scene.again_errors.min() < 0.35 * _length(scene))
        self._row_over("middle", scene, MID, -1, CARRY_Z[1], "again", top=lies_on_itself)

    def _unfold_again(self, scene: ClothScene) -> None:
        """The middle back to where it was: this fold is askew, or what lies inside must be folded again."""
        self._believes.clear()
        v = scene.vertices
        back = v[:, [MID // 2, -1 - MID // 2]].mean(axis=(0, 1)) - v[:, -1].mean(axis=0)
        back *= 0.5 * _length(scene) / max(float(np.linalg.norm(back)), 1e-3)
        moves: Moves = {arm: ((c, MID), fixed(v[c, -1] + back)) for arm, c in enumerate(COLUMN)}
        self._fold("middle back", scene, moves, CARRY_Z[1], top=True)

    def _unfold_half(self, scene: ClothScene) -> None:
        """The upper edge back to where it was."""
        self._believes.clear()
        v, row = scene.vertices, 0 if scene.near_on_top else -1
        moves: Moves = {arm: ((c, row), fixed(2 * v[c, MID] - v[c, row])) for arm, c in enumerate(COLUMN)}
        self._fold("edge back", scene, moves, CARRY_Z[0], top=True)

    def _to_mat(self, scene: ClothScene) -> None:
        """Taken by its ends, which stay as far apart as they are."""
        ends = [scene.vertices[c].mean(axis=0) for c in COLUMN]
        half = 0.5 * float(np.linalg.norm((ends[1] - ends[0])[:2]))
        moves: Moves = {
            arm: ((COLUMN[arm], slice(None)), fixed(MAT + np.array([side * half, 0.0, 0.0])))
            for arm, side in ((0, -1.0), (1, 1.0))
        }
        self._fold("strip", scene, moves, CARRY_Z[2], "place", pace=0.7)

    def _put_down(self, scene: ClothScene, held: tuple[int, ...]) -> None:
        """Somebody else began: what he holds is laid down where it is."""

        def release(s: ClothScene) -> None:
            self.let_go("what is held", held, self.start)

        low = {arm: fixed(scene.tips[arm] * (1, 1, 0) + up(LOWEST + 0.010)) for arm in held}
        self.bring("what is held down", low, release, near=0.02)


def fixed(place: np.ndarray) -> Where:
    return lambda s: place


def _vertex(column: int, row: int) -> Where:
    return lambda s: s.vertices[column, row]


def _length(scene: ClothScene) -> float:
    """Of the spread cloth from the near edge to the far one [m]."""
    return float(np.ptp(scene.shape[..., 1]))
