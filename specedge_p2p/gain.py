"""How much a draft model on a machine is worth to an engine, predicted before it is tried."""

import math

LEVELS_TO_ANSWER = 5.0
"""After a wrong guess a tree is worth verifying again when it is about this many levels deep."""
LONGEST_LEVEL_S = 10.0
_SCALE = 0.99
_ODDS_POWER = 0.85
_DECAY = 0.6
_LEAST_ACCEPTANCE, _MOST_ACCEPTANCE = 0.01, 0.97


def predicted_gain(
    acceptance: float, level_time_s: float, round_trip_s: float, step_time_s: float
) -> float:
    """Tokens that a node adds to one engine step of one session, beside plain and n-gram ones.

    A step ends on a token that its own rows lacked; what hangs below that token must have been
    grown and sent before anyone knew. So what counts is how many engine steps pass while a node
    hears of a verdict, grows a few levels and is heard, and how rarely its guesses break off, which
    goes with the odds of its first guess.

    The form was fitted to 53 simulated networks on recorded tokens of a real pair of models: steps
    of 14 to 94 ms, levels of 6 to 18 ms, round trips of 5 to 100 ms, first guesses right 69 to 85 %
    of the time. Root mean square error 0.11 tokens at a mean of 1.16. It compares nodes and draft
    models at one engine; what is measured later corrects it. However good its guesses, a node finds
    no more than one token a level, and the engine finds one a step without it: a model whose level
    takes a step brings nothing.

    Args:
        acceptance: share of first guesses of the draft model that are the target's choice.
        level_time_s: one draft forward, with all sessions that share it.
        round_trip_s: between node and engine.
        step_time_s: one engine step.
    """
    known = min(_MOST_ACCEPTANCE, max(_LEAST_ACCEPTANCE, acceptance))
    step_time_s = max(step_time_s, 1e-4)
    num_steps = (round_trip_s + LEVELS_TO_ANSWER * level_time_s) / step_time_s
    gain = _SCALE * float((known / (1 - known)) ** _ODDS_POWER) * math.exp(-_DECAY * num_steps)
    return min(gain, max(0.0, step_time_s / max(level_time_s, 1e-6) - 1))


def break_even_level_s(
    acceptance: float, gain: float, round_trip_s: float, step_time_s: float
) -> float:
    """The level time up to which a draft model of this acceptance brings at least `gain`.

    Found by halving, to a microsecond; 0 where no level is short enough.
    """
    shortest_s, longest_s = 0.0, LONGEST_LEVEL_S
    while longest_s - shortest_s > 1e-6:
        level_time_s = (shortest_s + longest_s) / 2
        if predicted_gain(acceptance, level_time_s, round_trip_s, step_time_s) >= gain:
            shortest_s = level_time_s
        else:
            longest_s = level_time_s
    return shortest_s
