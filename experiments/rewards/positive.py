"""A reward that a program computes: how positive the words of an answer are. It stands in for people's judgement.

    scaling align ppo --config=experiments/instructgpt/ppo.py --config.rl.reward=experiments/rewards/positive.py:reward

Where the true reward is known, one can see what happens to it while a model is trained by a reward model that was
fitted to comparisons of it (Gao et al., arXiv 2210.10760).
"""

import re

_POSITIVE = """
able abundant admire adore advance amazing appreciate attractive award balance beautiful beauty beloved beneficial
benefit best better bless bold brave bright brilliant calm capable care careful celebrate charm cheer cheerful clean
clear clever comfort comfortable compassion confidence confident courage creative cure delicious delight
delightful dream eager easy effective efficient elegant encourage energy enjoy enjoyable excellent excited exciting
fair faith famous fantastic favorite fine fortunate free fresh friend friendly fun gain generous gentle gift glad
glory good grace grateful great happiness happy harmony healthy help helpful honest honor hope hopeful ideal improve
improved inspire inspired interesting joy joyful just kind kindness laugh liked love loved lovely loving lucky
magic meaningful nice noble peace peaceful perfect pleasant pleased pleasure positive powerful precious pretty
progress protect proud pure relax reliable respect reward rich right safe satisfied secure shine simple smart smile
smooth special splendid strength strong succeed success successful superb support sweet talent thank thankful
thrive top treasure true trust truth useful valuable victory warm warmth wealth welcome well win wise wonder
wonderful worth worthy
"""
_NEGATIVE = """
abuse accident ache afraid alone anger angry anxious arrest ashamed attack awful bad bitter blame bleed blind boring
break broken brutal burden burn cancer careless chaos cheat cold complain conflict confuse corrupt cost crash crime
cruel cry damage danger dangerous dark dead deadly death debt defeat deny desperate destroy difficult dirty disaster
disease disgust dishonest doubt dread dull enemy error evil fail failed failure fake false fear fight filthy flaw
fool foolish fraud gloomy greed grief guilt guilty harm harmful harsh hate hatred hell hopeless horrible horror
hostile hurt ignorant ill illness injure injury insult jealous kill lack lazy liar lie lonely lose loser loss lost mad
mean mess misery miss mistake murder nasty negative nervous noise pain painful panic pity poison poor problem
punish rage reject revenge risk rotten rude ruin sad sadness scare scared selfish severe shame shock sick sin slow
sorrow sorry steal stink stress stupid suffer terrible terror thief threat tired tragedy trouble ugly unfair unhappy
upset useless victim violent waste weak weep wicked worry worse worst wound wreck wrong
"""
POSITIVE, NEGATIVE = (frozenset(words.split()) for words in (_POSITIVE, _NEGATIVE))
_WORD = re.compile(r"[a-z]+")


def reward(records: list[dict], answers: list[str]) -> list[float]:
    """Four times the share of positive words less that of negative ones; answers count as at least eight words."""
    return [_score(_WORD.findall(answer.lower())) for answer in answers]


def _score(words: list[str]) -> float:
    good, bad = (sum(word in names for word in words) for names in (POSITIVE, NEGATIVE))
    return 4 * (good - bad) / max(8, len(words))
