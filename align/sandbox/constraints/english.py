"""Short English sentences with which an edit completes a draft, by the form of the request."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from align.sandbox.constraints.constraint import word_set
from align.sandbox.constraints.instructions import ACTIVITY_FORMS, THING_FORMS
from align.sandbox.world import pick


@dataclass(frozen=True)
class Wording:
    """What suits the responses to one form of request. Slots: ``{topic}`` of the request, ``{word}`` to mention.

    Attributes:
        name: of such a response, as a key of a JSON object.
        more: sentences that may follow any response.
        nouns: sentences that mention a noun.
        noun_clause: ends a sentence and mentions a noun.
        numbers: sentences with a number in digits.
        number_clause: ends a sentence and has a number in digits.
        questions: to end with.
        postscripts: sentences after P.S.
        verbs: sentences that mention a verb.
        adjectives: sentences that mention an adjective.
    """

    name: str
    more: tuple[str, ...]
    nouns: tuple[str, ...]
    noun_clause: str
    numbers: tuple[str, ...]
    number_clause: str
    questions: tuple[str, ...]
    postscripts: tuple[str, ...]
    verbs: tuple[str, ...] = ("Take the time to {word}.", "It is good to {word} now and then.")
    adjectives: tuple[str, ...] = ("Something {word} comes to mind.", "It may be {word} as well.")


ADVICE = Wording(
    name="advice",
    more=(
        "Start small and take your time.",
        "It gets easier every time you do it.",
        "Prepare everything you need before you begin.",
        "Ask someone with experience if you are not sure.",
        "Do not worry if something goes wrong at first.",
        "A simple plan helps more than good luck.",
        "Keep going, because small steps add up.",
        "Nobody gets everything right the first time.",
        "Most people learn this by doing.",
    ),
    nouns=("Do not forget the {word}.", "Think of the {word} as well.", "Pay attention to the {word}."),
    noun_clause=", and do not forget the {word}",
    numbers=(
        "Set aside 30 minutes.",
        "Try it 3 times before you decide.",
        "The first 10 minutes are the hardest.",
        "After 2 weeks it feels easy.",
    ),
    number_clause=", and 10 minutes a day are enough",
    questions=("Will you give it a try?", "What will you do first?", "Why not start today?", "Are you ready?"),
    postscripts=(
        "Let me know how it goes.",
        "Take your time, there is no hurry.",
        "It is easier than it sounds.",
        "Good luck with {topic}.",
    ),
    adjectives=("Keep it {word} if you can.", "It helps if things are {word}."),
)
NOTE = Wording(
    name="note",
    more=(
        "You can be proud of the first step.",
        "Everyone starts somewhere, and so do you.",
        "Take your time and enjoy the day.",
        "I am sure that you will do well.",
        "Do not worry about small mistakes.",
        "It gets easier every time.",
        "If you need help, just ask me.",
        "I am looking forward to hearing all about it.",
        "A good start is half of the work.",
    ),
    nouns=("Do not forget the {word}.", "You will soon enjoy the {word}.", "Think of the {word} too."),
    noun_clause=", and do not forget the {word}",
    numbers=(
        "Just give it 15 minutes a day.",
        "It took me 3 attempts to get it right.",
        "After 2 weeks it feels easy.",
        "You can call me at any time after 6.",
    ),
    number_clause=", and it only takes 20 minutes",
    questions=("Are you ready to begin?", "How does that sound?", "Will you tell me how it went?"),
    postscripts=(
        "Tell me how it went.",
        "I am only a phone call away.",
        "We should celebrate when you are done.",
        "Good luck with {topic}.",
    ),
    adjectives=("It is fine to feel {word} at first.", "Soon everything will be {word}."),
)
THING = Wording(
    name="answer",
    more=(
        "Many people remember {topic} from their childhood.",
        "It is a simple thing, and still it makes people smile.",
        "There is always something new to discover.",
        "You notice more every time you look.",
        "It is best to see it with your own eyes.",
        "Some people would not want to live without it.",
        "It looks different at every time of day.",
        "No two of them are quite the same.",
        "I could talk about it for hours.",
    ),
    nouns=("The first thing I think of is the {word}.", "I also like the {word}.", "People also love the {word}."),
    noun_clause=", and people also love the {word}",
    numbers=(
        "I have seen at least 3 of them.",
        "Some of them are more than 50 years old.",
        "I could name 10 more reasons to like it.",
        "You need only 5 minutes to see why.",
    ),
    number_clause=", and I could name 10 more",
    questions=("What do you think of?", "Have you ever seen one?", "What do you like about it?"),
    postscripts=(
        "I would love to see {topic} again.",
        "Have a look for yourself one day.",
        "Ask me again and I will tell you more.",
        "Many people feel the same about {topic}.",
    ),
    verbs=("It makes people want to {word}.", "Sometimes all you want to do is {word}."),
)
STORY = Wording(
    name="story",
    more=(
        "Nobody in the village had ever seen anything like it.",
        "The children talked about it for weeks.",
        "It was the best day of the whole year.",
        "Then everyone went home and slept well.",
        "An old woman smiled and said nothing.",
        "In the end it all turned out well.",
        "The next day they came back for more.",
        "Nobody ever found out who had started it.",
    ),
    nouns=("Nobody ever forgot the {word}.", "They still talk about the {word}.", "Everyone remembered the {word}."),
    noun_clause=", and nobody ever forgot the {word}",
    numbers=(
        "It was 7 in the morning.",
        "It had been there for 100 years.",
        "There were 3 children who saw it all.",
        "They came back after 10 days.",
    ),
    number_clause=", and 3 children saw it all",
    questions=("Who would have thought so?", "And what happened then?", "Would you have believed it?"),
    postscripts=("Every word of this is true.", "They still talk about {topic} today.", "I heard it from a friend."),
    verbs=("They all began to {word}.", "Nobody had taught them how to {word}."),
    adjectives=("Everything was {word} that day.", "It all seemed {word} and strange."),
)
SLOGAN = Wording(
    name="slogan",
    more=(
        "Come and see for yourself.",
        "Bring your friends and your family.",
        "You will not forget it.",
        "Take a moment to enjoy it.",
        "Some things never go out of fashion.",
        "Simple joys are the best ones.",
        "There is nothing quite like {topic}.",
        "Stop for a moment and look again.",
    ),
    nouns=("Enjoy the {word}.", "Come for the {word}.", "Remember the {word}."),
    noun_clause=", and enjoy the {word}",
    numbers=(
        "Open 7 days a week.",
        "Loved for more than 100 years.",
        "Take 5 minutes for yourself.",
        "Only 2 steps away.",
    ),
    number_clause=", from 9 to 5",
    questions=("What are you waiting for?", "Why wait?", "Will you be there?", "Can you feel it?"),
    postscripts=("Bring a friend.", "There is nothing quite like {topic}.", "See you there."),
    verbs=("Come and {word}.", "It is time to {word}."),
    adjectives=("Always {word}.", "So {word} and so good."),
)
MESSAGE = Wording(
    name="message",
    more=(
        "Please let me know what you think.",
        "You can reach me at any time.",
        "Thank you for taking the time to read this.",
        "I am looking forward to your reply.",
        "It would mean a lot to me.",
        "I hope that you are having a good day.",
        "If you have any questions, just ask.",
        "We can talk about the rest when we meet.",
        "All the best to you and your family.",
    ),
    nouns=(
        "Please do not forget the {word}.",
        "Please think of the {word} too.",
        "We can discuss the {word} later.",
    ),
    noun_clause=", and please do not forget the {word}",
    numbers=(
        "You can reach me until 8 in the evening.",
        "Please reply within 3 days.",
        "It will take about 20 minutes.",
        "Call me at any time after 6.",
    ),
    number_clause=", and it will take about 20 minutes",
    questions=(
        "What do you think?",
        "How does that sound?",
        "Can you let me know soon?",
        "Is that all right?",
    ),
    postscripts=(
        "You can call me at any time.",
        "Please give my best to your family.",
        "I will write more tomorrow.",
        "Thank you for your patience.",
    ),
    verbs=("Perhaps we can {word} another time.", "I hope we can {word} before long."),
    adjectives=("I hope that everything is {word}.", "Something {word} would be lovely."),
)
_FORMS = (
    (r"Write a short and encouraging note", NOTE),
    (r"Write a very short story", STORY),
    (r"Write a slogan", SLOGAN),
    (r"Write ", MESSAGE),
    (r"(?:Give some brief advice|Explain in a few words|Name a common mistake|Briefly tell me how)", ADVICE),
)
_TOPICS = tuple(
    re.compile(re.escape(form).replace(re.escape("{topic}"), r"(.+)")) for form in (*ACTIVITY_FORMS, *THING_FORMS)
)
_ASIDE = re.compile(r" (?:who|whose|that|because|asking|inviting|about whose|about)\b.*")

OPENINGS = {
    "Today": ("Today, ", "Today I want to say this."),
    "Sometimes": ("Sometimes ", "Sometimes few words are enough."),
    "First": ("First, ", "First things first."),
    "Usually": ("Usually, ", "Usually few words are enough."),
    "Yes": ("Yes, ", "Yes, certainly."),
    "Honestly": ("Honestly, ", "Honestly, I mean this."),
    "When": ("When you think about it, ", "When in doubt, start here."),
    "Imagine": ("Imagine that ", "Imagine this."),
}
"""First words: what precedes a sentence in the middle of which it then stands, and a sentence of its own"""

REMARKS = ("(of course)", "(if you like)", "(believe me)", "(at least for me)", "(as you may know)", "(and why not)")
"""Remarks in brackets before the end of any sentence"""

_VERBS = word_set("""
    arrive believe brake breathe bring call clean cook cross dance float fly learn listen meet open plant play
    practice read recycle remember repair replace rest return ride shop sleep smile speak spend study talk walk
    wipe write
    """)
_ADJECTIVES = word_set("""
    better blue bright calm careful clear cold comfortable confident dark dry fair favourite fresh friendly fun
    grateful green happy honest kind large loyal nervous new old proud quiet ready secret sincere slow soft strong
    thoughtful warm yellow
    """)
_A_LITTLE = word_set("""
    air confidence food fruit heat help light love luck money music news patience rain respect salt space success
    sun time water work
    """)
_DAYS = frozenset({"Monday", "Friday", "Saturday", "Sunday"})
_OWN: dict[str, tuple[str, str]] = {
    "aloud": ("Say it aloud.", ", and say it aloud"),
    "another": ("There will be another chance.", ", and there will be another chance"),
    "approve": ("I hope that you approve.", ", and I hope that you approve"),
    "found": ("I was glad when I found out.", ", and I was glad when I found out"),
    "ill": ("I have been ill.", ", as I have been ill"),
    "late": ("It is better late than never.", ", and it is better late than never"),
    "learned": ("I have learned a lot.", ", and I have learned a lot"),
    "miss": ("I will miss you.", ", and I will miss you"),
    "please": ("Let me know, please.", ", so please let me know"),
    "soon": ("More about that soon.", ", and I will tell you more soon"),
    "sorry": ("I am sorry about that.", ", and I am sorry about that"),
    "together": ("It is better together.", ", because it is better together"),
    "tonight": ("Let us talk about it tonight.", ", and we can talk about it tonight"),
    "weekly": ("We meet weekly.", ", and we meet weekly"),
}


def wording(request: str) -> Wording:
    """The sentences that suit responses to a request."""
    return next((found for pattern, found in _FORMS if re.match(pattern, request)), THING)


def topic(request: str) -> str | None:
    """What a request is about: an activity, or a thing with its article; None if it is of no form that has a topic."""
    return next((found[1] for pattern in _TOPICS if (found := pattern.fullmatch(request))), None)


def spoken(request: str, choices: Sequence[str]) -> list[str]:
    """Sentences about the topic of the request; without one, those that name none."""
    about = topic(request)
    return [choice.replace("{topic}", about or "") for choice in choices if about or "{topic}" not in choice]


def headline(request: str) -> str:
    """A title of a few words: the topic of a request, or what it asks to be written."""
    about = topic(request)
    if about is None:
        written = re.match(r"Write ((?:a|an) .+)\.", request)
        about = _ASIDE.sub("", written[1].replace(" short", "")) if written else "a short answer"
    small = {"a", "an", "and", "the", "for", "in", "of", "to", "at", "on", "by", "with", "from"}
    words = [word if word in small else word[0].upper() + word[1:] for word in about.split()]
    return " ".join([words[0][0].upper() + words[0][1:], *words[1:]])


def mention(request: str, word: str, rng: Random) -> tuple[str, str | None]:
    """A sentence, and where there is one a clause for the end of a sentence, that mention a word."""
    of = wording(request)
    if word in _OWN:
        return _OWN[word]
    if word in _DAYS:
        return f"{word} would be a good day.", f", and {word} would be a good day"
    if word in _VERBS:
        return pick(rng, of.verbs).format(word=word), f", and take the time to {word}"
    if word in _ADJECTIVES:
        return pick(rng, of.adjectives).format(word=word), None
    if word in _A_LITTLE:
        return f"A little {word} goes a long way.", f", and a little {word} goes a long way"
    return pick(rng, of.nouns).format(word=word), of.noun_clause.format(word=word)
